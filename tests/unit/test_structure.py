"""The size and the order of the code: files of one idea, functions that a screen shows, imports that go one way."""

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_FILE, MAX_FUNCTION = 500, 60

# Package -> packages of this project that it must not import: docs/design.md, the pieces.
FORBIDDEN = {
    "emulator": {"loader", "generator", "tests"},
    "loader": {"generator", "tests"},
    "generator": {"emulator", "tests"},
    "benchmarks": {"generator", "emulator"},
    "examples": {"generator", "emulator", "tests"},
    "integrations": {"generator", "emulator", "tests"},
    "docs/site_pages": {"emulator", "integrations", "benchmarks", "examples", "tests"},
}
# Programs about two packages: one profiles kernels of packs, one times the emulated device, one reads SASS.
ALLOWED = {"emulator/tools/command.py": {"loader"}, "benchmarks/emulation.py": {"emulator"},
           "benchmarks/kernel_facts.py": {"generator"}}
# Packages that a wheel has inside another one: imports among their files are relative, so that one tree has both names.
SHIPPED = ("loader", "emulator", "integrations")
PACKAGES = tuple(FORBIDDEN)

# Rooms of the emulator; a file of one imports that room and those before it alone.
ROOMS = ("checks", "text", "numbers", "machine", "units", "execution", "device", "tools")


@cache
def sources() -> dict[str, str]:
    """The text of every Python file of the packages, by its path."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


@cache
def imports(path: str) -> list[tuple[int, str]]:
    """Line and full name of whatever a file imports, wherever in it the import stands."""
    found = []
    for node in ast.walk(ast.parse(sources()[path])):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = path.split("/")[:-node.level] if node.level else []
            module = ".".join([*package, *([node.module] if node.module else [])])
            found += [(node.lineno, name) for name in (module, *(f"{module}.{alias.name}" for alias in node.names))]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            texts = {str(part.value).lstrip(".") for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)}
            found += [(node.lineno, text) for text in sorted(texts) if text.isidentifier()]
    return found


def imported(path: str) -> set[str]:
    """Files of the packages that a file imports; a script's may stand beside it."""
    places = ("", f"{Path(path).parent}/")
    files = {f"{place}{name.replace('.', '/')}.py" for _, name in imports(path) for place in places}
    return files & sources().keys() - {path}


def circle(package: str) -> list[str]:
    """A circle of imports in a package, empty where there is none."""
    graph = {path: {file for file in imported(path) if file.startswith(f"{package}/")}
             for path in sources() if path.startswith(f"{package}/")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_files_hold_one_idea():
    """No file has over 500 lines."""
    assert not {path for path, text in sources().items() if text.count("\n") > MAX_FILE}


def test_functions_fit_a_screen():
    """No function has over 60 lines."""
    large = {
        (path, node.name)
        for path, text in sources().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= MAX_FUNCTION
    }
    assert not large


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package):
    """Also inside functions."""
    paths = [path for path in sources() if path.startswith(f"{package}/")]
    assert paths
    for path in paths:
        forbidden = FORBIDDEN[package] - ALLOWED.get(path, set())
        for line, name in imports(path):
            assert name.partition(".")[0] not in forbidden, f"{path}:{line} imports {name}"


@pytest.mark.parametrize("package", SHIPPED)
def test_what_a_wheel_has_names_no_package_of_its_own(package):
    """A name that starts at the top would be another module, or none, where the wheel is installed."""
    for path in (path for path in sources() if path.startswith(f"{package}/")):
        named = [node for node in ast.walk(ast.parse(sources()[path]))
                 if isinstance(node, ast.Import) or isinstance(node, ast.ImportFrom) and node.level == 0]
        for name in (name for node in named for name in ([alias.name for alias in node.names]
                                                         if isinstance(node, ast.Import) else [node.module])):
            assert name.partition(".")[0] not in (*PACKAGES, "tests"), f"{path} imports {name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_imports_in_a_circle(package):
    """No file of a package imports one that needs it, nor is one imported late to hide it."""
    assert circle(package) == []


def test_rooms_of_the_emulator_are_in_order():
    """Each is used by those that come after it; what a circle would tie together cannot be understood alone."""
    room = {path: path.split("/")[1].removesuffix(".py") for path in sources() if path.startswith("emulator/")}
    ranks = {path: ROOMS.index(name) for path, name in room.items() if not name.startswith("__")}
    assert {ROOMS[rank] for rank in ranks.values()} == set(ROOMS)
    for path, rank in ranks.items():
        above = [file for file in imported(path) if ranks.get(file, rank) > rank]
        assert not above, f"{path} imports {above}"


TEMPLATES = [path for path in (ROOT / "templates").rglob("*") if path.is_file()]


def test_templates_are_parts() -> None:
    """A part has at most 250 lines, what a family makes of parts at most 60, and none inherits text of another."""
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in TEMPLATES}
    assert not {name: count for name, count in lines.items() if count > (60 if name.endswith(".j2") else 250)}
    assert not [path.name for path in TEMPLATES if re.search(r"{%-? *(extends|block) ", path.read_text())]


def test_inline_ptx_has_its_place() -> None:
    """One instruction a wrapper, in ptx/, and in number/ where it is arithmetic."""
    assert not [path.relative_to(ROOT).as_posix() for path in TEMPLATES
                if re.search(r"\basm\b", path.read_text()) and path.parent.name not in ("ptx", "number")]


def test_scripts_and_helpers_of_tests_have_names_of_their_own() -> None:
    """Tests import them by name alone, and of two with one name whichever comes first."""
    folders = [ROOT / "benchmarks", ROOT / "examples", ROOT / "tests", *(ROOT / "tests").iterdir()]
    places = {}
    for path in (path for folder in folders for path in folder.glob("*.py") if not (folder / "__init__.py").exists()):
        places.setdefault(path.name, []).append(path.relative_to(ROOT).as_posix())
    assert [found for name, found in places.items() if len(found) > 1 and name != "conftest.py"] == []
