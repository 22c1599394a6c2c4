"""What the documents promise of the tree: commands, links and paths."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import loader
from generator import matrix
from loader.manifest import KEYWORDS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


@each_document
def test_links_lead_somewhere(document):
    """Relative links name files of the tree."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    assert not [link for link in links if not (document.parent / link).exists()]


def calls(document: Path) -> Iterator[tuple[str, set[str]]]:
    """Kernel and keywords of every launch or plan in a document's Python; ``SyntaxError`` where it is none."""
    for block in re.findall(r"^```python\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("loader.launch", "loader.plan"):
                name = ast.literal_eval(node.args[0])
                if name in kernels():  # others are of a reader's own matrix
                    yield name, {keyword.arg for keyword in node.keywords if keyword.arg}


@cache
def kernels() -> dict[str, dict[str, Any]]:
    expansion = matrix.load(ROOT / "kernels.yaml")
    return {**expansion.families, **expansion.composites}


@each_document
def test_calls_name_arguments_of_the_kernel(document):
    """Python in a document is Python, and a launch in it gives what kernels.yaml has."""
    for name, keywords in calls(document):
        items = (*kernels()[name]["arguments"], *kernels()[name]["scalars"])
        assert keywords <= {item["name"] for item in items} | set(KEYWORDS), f"{document.name}: {name}"


def test_calls_are_found():
    """In the README and in the pages of docs/."""
    assert {name for document in DOCUMENTS for name, _ in calls(document)} >= {"grouped_fp4", "moe_fp4", "gemm_fp4"}


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/design.md"])
def test_paths_exist(name):
    """A path in backquotes is one of the tree."""
    words = re.findall(r"`((?:\.\w+/|\w+/)[\w./]*)`", (ROOT / name).read_text())
    assert words
    assert not [word for word in words if not (ROOT / word).exists()]


def test_ci_runs_the_second_command_of_the_readme():
    """The two are one line. Before the two commands of a checkout stands the one that installs a wheel."""
    commands = re.findall(r"```bash\n(.+)\n```", (ROOT / "README.md").read_text())
    assert len(commands) == 3
    assert commands[0] == f"pip install block_scaled-{loader.__version__}-py3-none-any.whl"
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == commands[2]


def test_the_version_stands_once():
    """In loader/__init__.py, from where a distribution takes it."""
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project and 'version = {attr = "loader.__version__"}' in project
    assert not re.search(r"^version\s*=\s*\"", project, re.MULTILINE)


@pytest.mark.parametrize("package", ["loader", "emulator", "integrations"])
def test_type_hints_are_shipped(package):
    """What users import is typed, and an installed package says so to type checkers."""
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())
    assert (ROOT / package / "py.typed").read_bytes() == b""
    assert "py.typed" in project["tool"]["setuptools"]["package-data"][package]
