"""The documentation site: it builds without a warning, what it links to is there, and its generated pages are whole."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

from generator import matrix

ROOT = Path(__file__).resolve().parents[2]
DIAGNOSTICS = 4000


@cache
def expansion() -> matrix.Expansion:
    return matrix.load(ROOT / "kernels.yaml")


def broken_links(site: Path) -> list[str]:
    """Of every page: links and sources to files that are not there, or to places that a page does not have."""
    pages = {path: path.read_text() for path in site.rglob("*.html")}
    ids = {path: set(map(unescape, re.findall(r'\bid="([^"]+)"', text))) for path, text in pages.items()}
    broken = []
    for path, text in pages.items():
        for link in map(unescape, re.findall(r'\b(?:href|src)="([^"]*)"', text)):
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            missing = not target.exists() or (parts.fragment and target in ids and parts.fragment not in ids[target])
            if not parts.scheme and not parts.netloc and missing:
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken


def test_the_site_is_whole(tmp_path):
    """It builds without a warning, no link in it leads nowhere, and each family and composite, each recorded result has
    a page, where each argument and scalar of a family stands."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-DIAGNOSTICS:]
    assert broken_links(tmp_path) == []
    for name, family in {**expansion().families, **expansion().composites}.items():
        page = (tmp_path / "generated" / "families" / f"{name}.html").read_text()
        for item in (*family["arguments"], *family["scalars"]):
            assert f'<span class="pre">{item["name"]}</span>' in page, f"{name}: {item['name']}"
    for record in (ROOT / "benchmarks" / "results").glob("*.json"):
        page = (tmp_path / "generated" / "benchmarks" / f"{record.stem}.html").read_text()
        assert json.loads(record.read_text())["environment"]["date"] in page, record.name


def test_a_broken_link_is_found(tmp_path):
    """A page that is missing, and a place that a page does not have; not what lies elsewhere."""
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="b.html#there"><a href="c.html"><a href="#here"><a href="https://x/y">')
    (tmp_path / "b.html").write_text('<a href="a.html#here">')
    assert broken_links(tmp_path) == ["a.html: b.html#there", "a.html: c.html"]

