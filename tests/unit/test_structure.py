"""The size and the order of the code: files of one idea, functions that a screen shows, imports that go one way."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("benchmarks", "emulator", "examples", "generator", "integrations", "loader")
MAX_FILE, MAX_FUNCTION = 500, 60

# What is still larger than it may be. The test fails when one of them no longer is, so this list can only shrink.
LARGE_FILES = {
    f"emulator/{name}.py"
    for name in ("alu", "codegen", "codegen_alu", "parse", "scheduler", "synchronization", "tcgen05", "tensor")
}
LARGE_FUNCTIONS = {
    ("emulator/codegen_memory.py", "_bulk"),
    ("emulator/codegen_sync.py", "_tcgen05"),
    ("emulator/formats.py", "encode"),
    ("emulator/scheduler.py", "_execute"),
}


@cache
def sources() -> dict[str, str]:
    """The text of every Python file of the packages, by its path."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def imported(path: str, tree: ast.Module) -> set[str]:
    """Files of the packages that a file imports, wherever in it the import stands."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = {f"{place}{name.replace('.', '/')}.py" for name in names for place in ("", f"{Path(path).parent}/")}
    return files & sources().keys() - {path}


def circle(package: str) -> list[str]:
    """A circle of imports in a package, empty where there is none."""
    graph = {path: {file for file in imported(path, ast.parse(text)) if file.startswith(f"{package}/")}
             for path, text in sources().items() if path.startswith(f"{package}/")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_files_hold_one_idea():
    """No file has over 500 lines."""
    assert {path for path, text in sources().items() if text.count("\n") > MAX_FILE} == LARGE_FILES


def test_functions_fit_a_screen():
    """No function has over 60 lines."""
    large = {
        (path, node.name)
        for path, text in sources().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= MAX_FUNCTION
    }
    assert large == LARGE_FUNCTIONS


@pytest.mark.parametrize("package", [package for package in PACKAGES if package != "emulator"])
def test_imports_go_one_way(package):
    """No file of a package imports one that needs it, nor is one imported late to hide it."""
    assert circle(package) == []
