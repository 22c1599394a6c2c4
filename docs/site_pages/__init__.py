"""Sphinx extension: pages made of the tree itself, written to ``docs/generated/`` before every build, and links to
files of the tree that have a page there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from generator import matrix, pack
from site_pages import examples, outputs, results, tree
from site_pages.families import Families

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GENERATED = DOCS / "generated"


def pages(expansion: matrix.Expansion) -> Iterator[tuple[str, str]]:
    """Path below ``docs/generated`` without its suffix, and Markdown."""
    records = results.read(ROOT / "benchmarks" / "results")
    artifacts = _artifacts(expansion)
    families = Families(expansion, artifacts, lambda family: results.of_family(records, family))
    yield from families.pages()
    yield from results.pages(records, ROOT / "benchmarks", set(families.families))
    printed = outputs.outputs(ROOT, GENERATED / "outputs", examples.WITHOUT_GPU) if artifacts else {}
    yield from examples.pages(ROOT, GENERATED, printed)
    yield from tree.pages(ROOT)


def _sources(expansion: matrix.Expansion) -> str:
    return pack.source_digest(ROOT / "kernels.yaml", ROOT / "templates", expansion.measured)


def _artifacts(expansion: matrix.Expansion) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Those of the checkout's pack, by family, variant and arch; none where it is missing or of other sources."""
    path = ROOT / "artifacts" / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else None
    if manifest is None or manifest["source_digest"] != _sources(expansion):
        return {}
    return {(entry["family"], entry["variant"], entry["arch"]): entry for entry in manifest["artifacts"]}


def write(made: dict[str, str]) -> None:
    """Pages as files; those that did not change keep their time, those that are no longer made go."""
    files = {GENERATED / f"{name}.md": text for name, text in made.items()}
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    for path in GENERATED.rglob("*.md"):
        if path not in files:
            path.unlink()


def _generate(app: Sphinx) -> None:
    expansion = matrix.load(ROOT / "kernels.yaml")
    write(dict(pages(expansion)))
    report = ROOT / "artifacts" / "report.html"
    if report.exists() and _sources(expansion) in report.read_text():
        app.tags.add("with_report")
        app.config.html_extra_path = [*app.config.html_extra_path, str(report)]


def _relink(app: Sphinx, docname: str, source: list[str]) -> None:
    """Links of a hand-written page; those of generated ones are relinked as they are made."""
    if not docname.startswith("generated/"):
        source[0] = tree.relink(ROOT, source[0], DOCS / Path(docname).parent, DOCS / Path(docname).parent)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", _generate)
    app.connect("source-read", _relink)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
