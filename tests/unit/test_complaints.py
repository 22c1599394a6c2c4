"""docs/complaints.md: the page keeps its form, and what it says where no other test says it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from generator.compile import FLAGS
from generator.matrix import load
from generator.pack import source_digest
from generator.render import Renderer
from loader import arch

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "build" / "data"
LOADER_TESTS = ROOT / "tests" / "unit" / "loader"
sys.path.insert(0, str(LOADER_TESTS))

import sample_pack  # noqa: E402

import loader  # noqa: E402

PAGE = (ROOT / "docs" / "complaints.md").read_text()
ANSWERS = PAGE.partition("## Open")[0]
# Number, complaint, answer; the rows of the second table are numbered E1, E2, ...
ROWS = re.findall(r"^\| (E?\d+) \| (.+?) \| (.+) \|$", ANSWERS, re.MULTILINE)
REFERENCE = re.compile(r"`(?:tests/)?([\w/]+\.py)::(\w+)`")

# A process with the sample pack and the fake driver, which may open no socket, start no process and write no file.
PRELUDE = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(LOADER_TESTS)!r}]
FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.mkdir",
             "os.rename", "os.remove", "os.link", "os.symlink")
class Forbidden(BaseException): pass
def hook(event, arguments):
    if event.startswith(FORBIDDEN):
        raise Forbidden(event)
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        raise Forbidden(f"writing to {{arguments[0]}}")
sys.addaudithook(hook)
import loader
from loader import driver
from fake_cuda import FakeCuda
from sample_call import arguments
fake = FakeCuda()
driver.open_library = lambda: fake
"""


def run(code: str, packs: Path) -> str:
    """Output of a fresh interpreter whose only pack is ``packs``."""
    environment = {**os.environ, "LOADER_ARTIFACTS": str(packs)}
    done = subprocess.run([sys.executable, "-B", "-c", PRELUDE + code], env=environment, capture_output=True, text=True,
                          timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_complaint_has_one_row():
    """Fifty of registries, thirty of kernels."""
    numbers = [number for number, _, _ in ROWS]
    assert numbers == [*(str(i) for i in range(1, 51)), *(f"E{i}" for i in range(1, 31))]


def test_every_row_is_answered():
    """By a test, by a file, by `open`, by a row that is, or by saying that the complaint is about something else."""
    answers = {number: answer for number, _, answer in ROWS}
    for number, complaint, answer in ROWS:
        assert re.search(r"[\w.-]+#\d+", complaint), f"{number} names no issue"
        same = re.search(r"\bas (E?\d+)", answer, re.IGNORECASE)
        texts = answer + (answers[same[1]] if same else "")
        assert re.search(r"::|\]\(|\*\*open\*\*|does not concern", texts, re.IGNORECASE), f"{number} is not answered"


def test_named_tests_exist():
    """A renamed test takes its name in the page along."""
    found = REFERENCE.findall(PAGE)
    assert len(found) > 100
    for file, name in found:
        path = ROOT / "tests" / file
        assert path.is_file(), f"{file} does not exist"
        assert re.search(rf"^def {name}\(", path.read_text(), re.MULTILINE), f"{file} has no {name}"


def test_the_package_holds_no_kernel():
    """Its packages are those that row 36 names, and no data of theirs is a pack."""
    project = (ROOT / "pyproject.toml").read_text()
    packages = re.findall(r'"([\w.]+)"', re.search(r"^packages = \[(.*?)\]$", project, re.MULTILINE | re.DOTALL)[1])
    folders = {path.parent for name in packages for path in (ROOT / name.partition(".")[0]).rglob("*.py")}
    assert sorted(packages) == sorted(str(folder.relative_to(ROOT)).replace("/", ".") for folder in folders)
    answer = {number: answer for number, _, answer in ROWS}["36"]
    named = re.search(r"The package holds ([\w, ]+), no kernel", answer)[1]
    assert re.split(", | and ", named) == [name for name in packages if "." not in name]
    data = re.search(r"^\[tool.setuptools.package-data\]\n((?:\w+ = .*\n)+)", project, re.MULTILINE)[1]
    assert not re.search(r"cubin|ptx|manifest", data)


def test_what_is_open_is_listed():
    """The closing list and the rows marked open are the same."""
    listed = re.findall(r"^- (E?\d+(?:, E?\d+)*):", PAGE.partition("## Open")[2], re.MULTILINE)
    assert sorted(", ".join(listed).split(", ")) == sorted(number for number, _, text in ROWS if "**open**" in text)


def test_a_launch_opens_no_socket_starts_no_process_and_writes_no_file(tmp_path):
    """Neither a server nor a compiler nor a cache has a part in it. The last line shows that the hook bites."""
    sample_pack.write(tmp_path)
    printed = run("""
loader.launch("scale_rows", **arguments())
loader.plan("scale_rows", **arguments(device=(2, 2))).launch()
loader.preload()
assert all(outcome.error is None for outcome in loader.verify())
print(len(fake.launches))
for forbidden in ("import socket; socket.socket()", "open('x', 'w')", "os.system('true')"):
    try: exec(forbidden)
    except Forbidden as event: print(event)
""", tmp_path)
    assert printed.splitlines() == ["2", "socket.__new__", "writing to x", "os.system"]


def test_import_reads_no_pack(tmp_path):
    """A pack that cannot be used is an error of the call that needs it."""
    (tmp_path / "manifest.json").write_text("damaged")
    printed = run("""
try: loader.kernels()
except loader.ManifestSyntaxError as error: print(type(error).__name__)
""", tmp_path)
    assert printed == "ManifestSyntaxError\n"


@pytest.mark.parametrize("version", ["0.0.0+unknown", "99.0"])
def test_a_pack_is_not_bound_to_a_version_of_the_loader(tmp_path, version):
    """Schema and ABI decide, not what the distribution is called."""
    sample_pack.write(tmp_path)
    assert run(f"""
loader.__version__ = {version!r}
loader.launch("scale_rows", **arguments())
print(len(fake.launches))
""", tmp_path) == "1\n"


def test_digests_belong_to_paths_not_to_bare_names(tmp_path):
    """Files of one name in two folders are told apart: exchanging them is found in both places."""
    manifest, files = sample_pack.build(["100a", "120a"])
    first, second = "scale_rows/sm_100a/m16_f32.cubin", "scale_rows/sm_120a/m16_f32.cubin"
    sample_pack.write(tmp_path / "good", manifest, files)
    assert all(outcome.error is None for outcome in loader.verify(packs=str(tmp_path / "good")))
    files[first], files[second] = files[second], files[first]
    sample_pack.write(tmp_path / "exchanged", manifest, files)
    outcomes = loader.verify(packs=str(tmp_path / "exchanged"))
    assert {o.file for o in outcomes if isinstance(o.error, loader.IntegrityError)} == {first, second}


def test_digests_do_not_depend_on_where_the_sources_lie(tmp_path):
    """The key of a compiled kernel and the digest of the sources; a changed header changes both."""

    def digests(folder: Path) -> list[str]:
        renderer = Renderer(folder / "templates", "13.0.88", FLAGS)
        found = [renderer.render(variant).digest for variant in load(folder / "kernels.yaml").variants]
        return [*found, source_digest(folder / "kernels.yaml", folder / "templates")]

    here, there = tmp_path / "a", tmp_path / "another" / "place"
    for folder in (here, there):
        shutil.copytree(DATA, folder)
    before = digests(here)
    assert before == digests(there)
    header = there / "templates" / "scale" / "convert.cuh"
    header.write_text(header.read_text() + "\n")
    changed = [old != new for old, new in zip(before, digests(there), strict=True)]
    assert changed[-1] and any(changed[:-1]) and not all(changed)  # the other family does not include the header


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((8, 9), []),
        ((9, 0), ["90a"]),
        ((10, 0), ["100a", "100f"]),
        ((10, 3), ["103a", "100f"]),
        ((11, 0), []),
        ((12, 0), ["120a", "120f"]),
        ((12, 1), ["121a", "120f"]),
        ((12, 2), ["120f"]),
        ((13, 0), []),
    ],
)
def test_which_arch_runs_where(capability, runs):
    """`a` on its capability only, `f` from its minor upward, nothing across majors; the most specific comes first."""
    found = [name for name, target in arch.ARCHS.items() if arch.refusal(target, capability) is None]
    assert sorted(found, key=lambda name: arch.rank(arch.ARCHS[name]), reverse=True) == runs


def test_device_code_asks_for_families_not_for_one_arch():
    """A guard for exactly 12.0 would trap on 12.1."""
    exact = re.compile(r"__CUDA_ARCH__\s*[!=]=|[!=]=\s*__CUDA_ARCH__|\barch(_minor)?\s*[!=]=")
    sources = [path for path in (ROOT / "templates").rglob("*") if path.suffix in (".cuh", ".j2")]
    assert sources
    assert exact.search("#if __CUDA_ARCH__ == 1200") and not exact.search("#if __CUDA_ARCH__ >= 1200")
    assert not [path.name for path in sources if exact.search(path.read_text())]
