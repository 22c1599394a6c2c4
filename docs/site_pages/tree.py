"""Documents of the tree that do not lie in ``docs/``, as pages; and links to files, as links to their pages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

# Files and folders of the tree -> their pages, below docs/ and without a suffix.
PAGES = {
    "README.md": "generated/readme",
    "CONTRIBUTING.md": "generated/contributing",
    "benchmarks/NOTES.md": "generated/notes",
    "artifacts/README.md": "generated/artifacts",
    "examples": "generated/examples",
    "benchmarks/results": "generated/benchmarks/index",
}
_LINK = re.compile(r"\[([^\[\]]*)\]\((?!\w+:|#|/)([^)#\s]+)(#[^)\s]*)?\)")


def page_of(path: str) -> str | None:
    """The page of a file of the tree, if it has one."""
    if path in PAGES:
        return PAGES[path]
    folder, name = os.path.split(path)
    if folder == "examples":
        return PAGES[folder]
    if folder == "benchmarks/results" and name.endswith(".json"):
        return f"generated/benchmarks/{name.removesuffix('.json')}"
    return None


def relink(root: Path, text: str, source: Path, target: Path) -> str:
    """``text`` that was written in the folder ``source``, with relative links that hold in a page in ``target``. A
    link to a folder without a page becomes its name in words: there is nothing to open."""

    def replace(match: re.Match[str]) -> str:
        words, link, fragment = match[1], match[2], match[3] or ""
        path = (source / link).resolve()
        if not path.is_relative_to(root) or not path.exists():
            return match[0]  # Sphinx says so
        page = page_of(path.relative_to(root).as_posix())
        if page is not None:
            path = root / "docs" / f"{page}.md"
        elif path.is_dir():
            return words
        return f"[{words}]({os.path.relpath(path, target)}{fragment})"

    return _LINK.sub(replace, text)


def pages(root: Path) -> Iterator[tuple[str, str]]:
    for file, page in PAGES.items():
        path = root / file
        if path.is_file():
            folder = (root / "docs" / page).parent
            yield page.removeprefix("generated/"), relink(root, path.read_text(), path.parent, folder)
