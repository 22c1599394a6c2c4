"""Sphinx configuration: ``python -m sphinx -W -b html docs docs/_build``. What is generated: ``site_pages``."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

project = "Block-scaled kernels"
author = "the authors of block-scaled"
extensions = ["myst_parser", "site_pages"]
exclude_patterns = ["_build"]
nitpicky = True

myst_heading_anchors = 4
myst_links_external_new_tab = False

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
# A reader needs no web font and no script of another host.
html_theme_options = {"top_of_page_buttons": []}
