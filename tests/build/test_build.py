"""build.py end to end on two small kernels: what it writes, what it reuses, how it fails."""

import errno
import fcntl
import hashlib
import json
import lzma
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from generator import cli, files, lock, pack, toolchain
from generator.errors import ToolchainError
from generator.matrix import load
from loader import reader, trust
from loader.manifest import Manifest

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).resolve().parent / "data"

# A body that reads accumulators of wgmma before it waits for them, so that ptxas puts a wait after every one.
EAGER_WGMMA = """{
    float d0 = 0, d1 = 0, d2 = 0, d3 = 0;
    asm volatile("wgmma.fence.sync.aligned;");
    for (int i = 0; i < 4; i++) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 { %0, %1, %2, %3 }, %4, %4, 1, 1, 1, 0, 0;"
                     : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3) : "l"(0x4000000000010000ull));
        d0 += a[i];
    }
    asm volatile("wgmma.commit_group.sync.aligned;");
    asm volatile("wgmma.wait_group.sync.aligned 0;");
    out[threadIdx.x] = d0 + d1 + d2 + d3;
}"""
# A body whose array cannot be kept in registers.
LOCAL_ARRAY = "{ float v[64] = {}; for (int i = 0; i < 64; i++) v[(int)a[i]] = b[i]; out[0] = v[(int)c[0]]; }"

# A build that ends by SIGKILL, its compilers too, right before the event of the given number among those that Python
# tells its auditors of files that are written and of processes. Number 0 ends nothing; the last line is their number.
BUILD = """
import os, signal, sys
from generator import cli
last, events = int(sys.argv.pop(1)), 0
KINDS = ("os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.", "fcntl.", "subprocess.")
def hook(event, arguments):
    global events
    if event.startswith(KINDS) or event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        events += 1
        if events == last:
            os.killpg(0, signal.SIGKILL)
sys.addaudithook(hook)
assert cli.main(sys.argv[1:]) == 0
print(events)
"""

try:
    toolchain.find_toolchain()
except ToolchainError as error:
    pytest.skip(f"no compiler: {error}", allow_module_level=True)


class Project:
    """A copy of the small matrix that a test may edit, with its pack."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(DATA, folder / "sources")
        self.matrix, self.templates = folder / "sources" / "kernels.yaml", folder / "sources" / "templates"
        self.out = folder / "pack"

    def arguments(self, *options: str) -> list[str]:
        return ["--matrix", str(self.matrix), "--templates", str(self.templates), "--out", str(self.out), *options]

    def build(self, *options: str) -> int:
        return cli.main(self.arguments("--jobs", "1", *options))

    def edit(self, path: Path, old: str, new: str) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    @property
    def manifest(self) -> dict:
        return json.loads((self.out / "manifest.json").read_text())

    def labels(self) -> set[str]:
        return {"{family}/{variant}@{arch}".format_map(artifact) for artifact in self.manifest["artifacts"]}

    def files(self) -> dict[str, bytes]:
        """Every file of the pack, the store aside."""
        paths = [path for path in self.out.rglob("*") if path.is_file() and ".build" not in path.parts]
        return {path.relative_to(self.out).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A pack of both kernels for 120a and 90a; tests only read it."""
    project = Project(tmp_path_factory.mktemp("built"))
    assert project.build("--arch", "120a,90a") == 0
    return project


def check_files(project: Project) -> Manifest:
    """The manifest keeps its contract, and every file has the digest and size that it names."""
    manifest = reader.parse((project.out / "manifest.json").read_bytes())
    for artifact in manifest.artifacts:
        for stored in (artifact.binary, artifact.ptx):
            content = (project.out / stored.file).read_bytes()
            assert (hashlib.sha256(content).hexdigest(), len(content)) == (stored.sha256, stored.size)
    return manifest


def test_the_loader_reads_what_was_written(built):
    """All of it, by its own reader."""
    manifest = check_files(built)
    assert len(manifest.artifacts) == 10
    assert manifest.toolchain["nvcc"] == toolchain.find_toolchain().version


def test_the_pack_holds_nothing_else(built):
    """Manifest, cubins, PTX."""
    named = {artifact["file"] for artifact in built.manifest["artifacts"]}
    named |= {artifact["ptx"]["file"] for artifact in built.manifest["artifacts"]}
    assert set(built.files()) == named | {"manifest.json"}


def test_the_ptx_is_what_the_cubin_was_made_of(built, tmp_path):
    """ptxas on the PTX of the pack gives the cubin of the pack."""
    artifact = next(a for a in built.manifest["artifacts"] if (a["variant"], a["arch"]) == ("t64_f32_f32", "120a"))
    (tmp_path / "kernel.ptx").write_bytes(lzma.decompress((built.out / artifact["ptx"]["file"]).read_bytes()))
    command = [toolchain.find_toolchain().ptxas, "-arch=sm_120a", "-v", "-O3", "kernel.ptx", "-o", "kernel.cubin"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "kernel.cubin").read_bytes() == (built.out / artifact["file"]).read_bytes()


def test_no_path_reaches_the_pack(built):
    """Neither the sources' nor the pack's place is in any byte."""
    for name, content in built.files().items():
        text = lzma.decompress(content) if name.endswith(".xz") else content
        assert str(built.out.parent).encode() not in text, name


def test_an_unchanged_rebuild_compiles_and_writes_nothing(built, capsys, monkeypatch):
    """From any directory: every kernel comes from the store, and no file of pack or store is touched but the lock."""
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in built.out.rglob("*") if path.name != "lock"}

    before = state()
    monkeypatch.setattr(cli.Compiler, "_run", lambda *arguments: pytest.fail("a compiler was started"))
    monkeypatch.chdir("/")
    assert built.build("--arch", "120a,90a") == 0
    assert "0 compiled, 10 up to date, 0 failed; pack unchanged" in capsys.readouterr().out
    assert state() == before


def test_the_same_sources_give_the_same_bytes(project, capsys):
    """Two builds from copies in different directories."""
    assert project.build("--arch", "120a", "--check-reproducible") == 0
    assert "reproducible: 5 kernels, 11 files" in capsys.readouterr().out
    assert not project.out.exists()


def test_the_compiler_of_pypi_gives_the_same_bytes(project, monkeypatch):
    """A machine with pip alone builds the pack of a machine with a toolkit."""
    compiler = toolchain.find_toolchain()
    folders = os.environ["PATH"].split(os.pathsep)
    packaged = [path for path in toolchain.candidates("nvcc") if path.is_file() and str(path.parent) not in folders]
    if not packaged or compiler.nvcc in packaged:
        pytest.skip("needs nvcc both on PATH and from PyPI")
    options = ["--arch", "120a", "--variant", "t64*"]
    assert project.build(*options) == 0
    first = project.files()
    without = [folder for folder in folders if not Path(folder, "nvcc").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join(without))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    assert toolchain.find_toolchain().nvcc in packaged
    assert toolchain.find_toolchain().version == compiler.version
    shutil.rmtree(project.out)
    assert project.build(*options) == 0
    assert project.files() == first


def test_a_path_in_the_code_is_refused(project, capsys):
    """__FILE__ of a header would make bytes depend on where the sources lie."""
    header = project.templates / "scale" / "convert.cuh"
    header.write_text(header.read_text() + "\n__device__ inline const char* here() { return __FILE__; }\n")
    project.edit(project.templates / "scale" / "scale.cu.j2", "if (index < n)", "if (here()[index] == 'x')")
    assert project.build("--arch", "120a", "--variant", "t64_f32*") == 1
    assert "reached the compiled code" in capsys.readouterr().out


def test_archs_add_up(project, capsys):
    """A build for another arch keeps what is there, and the pack equals one that was built at once."""
    assert project.build("--arch", "120a") == 0
    assert project.build("--arch", "90a") == 0
    two_steps = project.files()
    shutil.rmtree(project.out)
    assert project.build("--arch", "120a", "--arch", "90a") == 0
    assert project.files() == two_steps


def test_stale_artifacts_are_dropped(project, capsys):
    """What was built of other sources does not stay beside the new ones."""
    project.build("--arch", "120a,90a")
    project.edit(project.templates / "scale" / "convert.cuh", "return value;", "return value + 0.0f;")
    capsys.readouterr()
    assert project.build("--arch", "120a") == 0
    assert {label for label in project.labels() if label.endswith("@90a")} == {"nop9/t32@90a"}
    output = capsys.readouterr().out
    assert "4 compiled, 1 up to date" in output  # nop9 does not include the header
    assert "dropped from the pack, sources changed or files damaged: scale/t256_f16_f16@90a" in output
    assert project.build("--arch", "120a") == 0
    assert len([name for name in project.files() if name.endswith("cubin")]) == 6


def test_a_changed_manifest_is_not_signed(project):
    """A signature stays as long as the bytes that it was made of."""
    signature = project.out / trust.SIGNATURE_NAME
    assert project.build("--arch", "120a", "--kernel", "nop9") == 0
    signature.write_text("of this manifest\n")
    assert project.build("--arch", "120a", "--kernel", "nop9") == 0
    assert signature.read_text() == "of this manifest\n"
    project.edit(project.matrix, "grid: [1, 1, 1]", "grid: [2, 1, 1]")
    assert project.build("--arch", "120a", "--kernel", "nop9") == 0
    assert not signature.exists()


def test_files_of_the_manifest_before_stay_for_one_build(project):
    """A process that read it may still load its kernels lazily."""
    project.build("--arch", "120a", "--kernel", "nop9")
    first = project.files()
    project.edit(project.templates / "nop9" / "nop9.cu.j2", "{}", "{ out[0] = 1.0f; }")
    project.build("--arch", "120a", "--kernel", "nop9")
    second = project.files()
    del first["manifest.json"]
    assert len(first) == 2 and first.items() < second.items() and len(second) == 5
    project.build("--arch", "120a", "--kernel", "nop9")
    assert project.files() == {name: content for name, content in second.items() if name not in first}


def test_headers_in_angle_brackets_count(project, capsys):
    """A header of the project is part of the digest however it is included."""
    project.edit(project.templates / "scale" / "scale.cu.j2", '"scale/convert.cuh"', "<scale/convert.cuh>")
    project.build("--arch", "120a")
    project.edit(project.templates / "scale" / "convert.cuh", "return value;", "return value + 0.0f;")
    capsys.readouterr()
    assert project.build("--arch", "120a") == 0
    assert "4 compiled, 1 up to date" in capsys.readouterr().out


def test_the_digest_of_the_sources_is_of_sources(project):
    """An editor's files do not count, headers and templates do."""
    before = pack.source_digest(project.matrix, project.templates)
    for name in (".convert.cuh.swp", "convert.cuh~", "notes.txt"):
        (project.templates / "scale" / name).write_text("anything")
    assert pack.source_digest(project.matrix, project.templates) == before
    (project.templates / "scale" / "more.cuh").write_text("")
    assert pack.source_digest(project.matrix, project.templates) != before


def test_a_runtime_header_of_ones_own_is_in_the_digest(project, capsys):
    """nvcc reads that of templates/ before every file, instead of the toolkit's, so all kernels depend on it."""
    header = project.templates / "cuda_runtime.h"
    header.write_text("#include_next <cuda_runtime.h>\n#define ONE 1.0f\n")
    project.edit(project.templates / "nop9" / "nop9.cu.j2", "{}", "{ out[0] = ONE; }")
    assert project.build("--arch", "120a", "--kernel", "nop9") == 0
    before = pack.source_digest(project.matrix, project.templates)
    project.edit(header, "1.0f", "2.0f")
    capsys.readouterr()
    assert project.build("--arch", "120a", "--kernel", "nop9") == 0
    assert "1 compiled, 0 up to date" in capsys.readouterr().out
    assert pack.source_digest(project.matrix, project.templates) != before


def test_a_header_that_would_not_count_is_refused(project, capsys):
    """Its name has to end as headers of the project end."""
    (project.templates / "scale" / "convert.cuh").rename(project.templates / "scale" / "convert.h")
    project.edit(project.templates / "scale" / "scale.cu.j2", "convert.cuh", "convert.h")
    assert project.build("--arch", "120a", "--variant", "t64_f32*") == 1
    assert "templates/scale/convert.h: the name of a template ends in .j2, that of a header in .cuh" in (
        capsys.readouterr().out)  # fmt: skip


def test_launch_geometry_changes_without_a_compiler(project, capsys):
    """The grid is data of the manifest, also of artifacts that were not selected."""
    project.build("--arch", "120a,90a", "--kernel", "nop9")
    project.edit(project.matrix, "grid: [1, 1, 1]", "grid: [2, 1, 1]")
    capsys.readouterr()
    assert project.build("--arch", "120a", "--kernel", "nop9") == 0
    assert "0 compiled, 1 up to date, 0 failed\n" in capsys.readouterr().out
    assert [artifact["launch"]["grid"] for artifact in project.manifest["artifacts"]] == [[2, 1, 1]] * 2


def test_a_fatbin_holds_the_selected_archs(project, capsys):
    """One file for the archs of a variant, named by each artifact."""
    assert project.build("--arch", "120a,90a", "--variant", "t64_f32*", "--format", "fatbin") == 0
    first, second = project.manifest["artifacts"]
    assert first["file"] == second["file"]
    assert first["format"] == "fatbin"
    content = (project.out / first["file"]).read_bytes()
    assert b"sm_120a" in content and b"sm_90a" in content
    reader.parse((project.out / "manifest.json").read_bytes())


def test_a_failing_kernel_does_not_stop_the_others(project, capsys):
    """Its command and log are shown, the rest is in the pack, the exit status is 1."""
    project.edit(project.templates / "nop9" / "nop9.cu.j2", "{}", "{ undeclared(); }")
    assert project.build("--arch", "120a") == 1
    output = capsys.readouterr().out
    assert "nop9/t32@120a: nvcc exited with" in output
    assert 'identifier "undeclared" is undefined' in output
    assert "4 compiled, 0 up to date, 1 failed" in output
    assert len(project.labels()) == 4
    command = next(line for line in output.splitlines() if line.startswith("cd "))
    again = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert again.returncode != 0 and "undeclared" in again.stderr


def test_a_failing_kernel_leaves_what_the_pack_held(project, capsys):
    """The artifact of the build before stays and is named; the digest of the sources stays with it."""
    assert project.build("--arch", "120a,90a", "--kernel", "nop9") == 0
    before = project.files()
    project.edit(project.templates / "nop9" / "nop9.cu.j2", "{}", "{ undeclared(); }")
    capsys.readouterr()
    assert project.build("--arch", "120a,90a", "--kernel", "nop9") == 1
    output = capsys.readouterr().out
    assert "stale, kept as the build before left them: nop9/t32@120a, nop9/t32@90a" in output
    assert [line.split()[-1] for line in output.splitlines() if line.strip().startswith("nop9 ")] == ["stale"] * 2
    assert "0 compiled, 0 up to date, 2 failed; pack unchanged" in output
    assert project.files() == before
    artifact = next(a for a in project.manifest["artifacts"] if a["arch"] == "90a")
    (project.out / artifact["file"]).write_bytes(b"damaged")
    assert project.build("--arch", "120a,90a", "--kernel", "nop9") == 1
    assert project.labels() == {"nop9/t32@120a"}
    assert "sources changed or files damaged: nop9/t32@90a" in capsys.readouterr().out


def test_a_failing_kernel_of_another_interface_does_not_stay(project, capsys):
    """The artifact of the build before would get arguments that it does not know."""
    project.build("--arch", "120a", "--kernel", "nop9")
    project.edit(project.templates / "nop9" / "nop9.cu.j2", "{}", "{ undeclared(); }")
    project.edit(project.matrix, 'name: h, direction: in, dtypes: [f32]', 'name: h, direction: in, dtypes: [f16]')
    assert project.build("--arch", "120a", "--kernel", "nop9") == 1
    assert project.labels() == set()
    assert "sources changed or files damaged: nop9/t32@120a" in capsys.readouterr().out


def test_warnings_of_ptxas_are_shown(project, capsys):
    """Also by a build that only reuses the kernel."""
    project.edit(project.templates / "nop9" / "nop9.cu.j2", "__launch_bounds__({{ threads }})",
                 "__launch_bounds__(1024, 64)")  # fmt: skip
    for _ in range(2):
        assert project.build("--arch", "120a", "--kernel", "nop9") == 0
        assert "nop9/t32@120a: ptxas warning" in capsys.readouterr().out


def test_serialized_wgmma_is_refused(project, capsys):
    """ptxas only remarks on it, but such a kernel is several times slower."""
    project.edit(project.templates / "nop9" / "nop9.cu.j2", "{}", EAGER_WGMMA)
    project.edit(project.matrix, "axes: {threads: [32]}", "axes: {threads: [128]}")
    assert project.build("--arch", "90a", "--kernel", "nop9") == 1
    output = capsys.readouterr().out
    assert "the compiler waits after every wgmma" in output and "wgmma.mma_async instructions are serialized" in output


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("nop9.cu.j2", "{}", "{ out[0] = {{ missing }}; }", "'missing' is undefined"),
        ("nop9.cu.j2", "{}", "{% if %}", "templates/nop9/nop9.cu.j2:4: Expected an expression"),
        ("nop9.cu.j2", "{{ symbol }}", "other", "expected one kernel, nop9_t32, got other"),
        ("nop9.cu.j2", "const float* h,", "", "parameters are, as (offset, bytes), [(0, 8)"),
        ("nop9.cu.j2", "const float* h", "float h", "kernels.yaml says [(0, 8)"),
        ("nop9.cu.j2", "__launch_bounds__({{ threads }})", "__launch_bounds__(16)", "launch.block is [32, 1, 1]"),
        ("nop9.cu.j2", "{}", LOCAL_ARRAY, "uses 256 bytes of local memory and 0 bytes of spills"),
        ("kernels.yaml", "shared: 0, pdl: false", "shared: 0, pdl: true", "the kernel never waits for the grid"),
        ("kernels.yaml", "template: nop9/nop9.cu.j2", "template: nop9/nop9.cu", "nop9/nop9.cu: the name of a"),
        ("kernels.yaml", "template: nop9/nop9.cu.j2", "template: nop9/no.j2", "templates/nop9/no.j2 does not exist"),
    ],
)  # fmt: skip
def test_a_kernel_that_is_not_what_the_matrix_says_is_refused(project, capsys, file, old, new, reason):
    """Undefined names, other symbols, parameters, launch bounds, local memory, missing waits."""
    path = project.matrix if file == "kernels.yaml" else project.templates / "nop9" / file
    project.edit(path, old, new)
    assert project.build("--arch", "120a", "--kernel", "nop9") == 1
    assert reason in capsys.readouterr().out
    assert project.labels() == set()


def test_local_memory_is_allowed_by_name(project, capsys):
    """A target may list the variants that use it."""
    project.edit(project.templates / "nop9" / "nop9.cu.j2", "{}", LOCAL_ARRAY)
    project.edit(project.matrix, "axes: {threads: [32]}", "axes: {threads: [32]}\n        local_memory: [t32]")
    assert project.build("--arch", "120a", "--kernel", "nop9") == 0
    assert project.manifest["artifacts"][0]["local_bytes"] == 256


def killed_build(project: Project, last: int, *options: str) -> int | None:
    """Run ``BUILD`` with the project's arguments; the number of its events, or None where it was killed."""
    command = [sys.executable, "-c", BUILD, str(last), *project.arguments(*options, "--jobs", "1")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, start_new_session=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stdout + done.stderr
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def test_a_killed_build_leaves_the_old_pack(project, tmp_path, seed):
    """Killed at 20 random points, its manifest names files that are there; the next build finishes the work."""
    options = ("--arch", "120a", "--kernel", "nop9")
    assert project.build(*options) == 0
    shutil.copytree(project.out, tmp_path / "before")
    project.edit(project.templates / "nop9" / "nop9.cu.j2", "{}", "{ out[0] = 1.0f; }")
    before = project.files()
    events = killed_build(project, 0, *options)
    finished = project.files()
    assert finished.items() > {name: before[name] for name in before.keys() - {"manifest.json"}}.items()
    points = random.Random(seed).sample(range(1, events + 1), 20)
    print(f"points {points} of {events}, seed {seed}")
    for point in points:
        shutil.rmtree(project.out)
        shutil.copytree(tmp_path / "before", project.out)
        assert killed_build(project, point, *options) is None
        assert project.files()["manifest.json"] in (before["manifest.json"], finished["manifest.json"])
        check_files(project)
        assert project.build(*options) == 0
        check_files(project)
        assert project.manifest == json.loads(finished["manifest.json"])
        assert not [path for path in project.out.rglob("*tmp*")]


def test_a_damaged_pack_is_mended(project, capsys):
    """A flipped byte or a missing file is written again, from the store or by the compiler."""
    project.build("--arch", "120a", "--kernel", "nop9")
    good = project.files()
    artifact = project.manifest["artifacts"][0]
    (project.out / artifact["file"]).write_bytes(b"damaged")
    (project.out / artifact["ptx"]["file"]).unlink()
    next((project.out / ".build").glob("*/kernel.cubin")).write_bytes(b"damaged")
    assert project.build("--arch", "120a", "--kernel", "nop9") == 0
    assert project.files() == good


def test_only_one_build_writes_to_a_pack(project, capsys):
    """The second one says so and changes nothing."""
    with pack.locked(project.out):
        assert project.build("--arch", "120a") == 1
    assert f"another build is writing to {project.out}" in capsys.readouterr().err
    assert not (project.out / "manifest.json").exists()


def test_results_are_read_while_the_pack_is_held(project, monkeypatch):
    """Table, report and lock read the store, which a second build may prune."""
    held = []

    def is_held(*arguments: object) -> int:
        with (project.out / ".build" / "lock").open("w") as handle, pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(True)
        return 0

    for function in ("_result_table", "_show_outcome", "_settle_lock"):
        monkeypatch.setattr(cli, function, is_held)
    assert project.build("--arch", "120a", "--kernel", "nop9", "--lock", str(project.out / "lock.json")) == 0
    assert len(held) == 3


MEASURED = """    select:
      features: {n: n}
      measured: [%s.json]
"""


def record(project, time):
    """A file of one measured row beside the matrix, which is named like the time."""
    row = f'{{"arch": "120a", "device": "any", "features": {{"n": 1}}, "microseconds": {{"t32": {time}}}}}'
    (project.matrix.parent / f"{time}.json").write_text(f'{{"family": "nop9", "rows": [{row}]}}')


def test_measured_rows_are_sources(project, capsys):
    """Another time is another digest in the manifest, and a build elsewhere finds the file."""
    record(project, 1.5)
    entry = "    parameters:\n      - {pointer: a}"
    project.edit(project.matrix, entry, MEASURED % 1.5 + entry)
    digests = []
    for microseconds in (1.5, 2.5):
        project.edit(project.matrix.parent / "1.5.json", ": 1.5}", f": {microseconds}}}")
        assert project.build("--arch", "120a", "--kernel", "nop9") == 0
        assert project.manifest["families"]["nop9"]["select"]["measured"][0]["microseconds"] == {"t32": microseconds}
        digests.append(project.manifest["source_digest"])
    assert digests[0] != digests[1]
    assert project.build("--arch", "120a", "--kernel", "nop9", "--check-reproducible") == 0
    assert "reproducible: 1 kernels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("    parameters:\n      - {pointer: a}", MEASURED % "NaN" + "    parameters:\n      - {pointer: a}",
         "manifest.json is no JSON document: NaN is no JSON number"),
        ("    parameters:\n      - {pointer: a}", MEASURED % "Infinity" + "    parameters:\n      - {pointer: a}",
         "manifest.json is no JSON document: Infinity is no JSON number"),
        ("name: a, direction: in, dtypes: [f32], shape: [n], alignment: 16",
         "name: a, direction: in, dtypes: [f32], shape: [n], alignment: 8192",
         "families.nop9.arguments[0].alignment: expected an integer in 1 .. 4096, got 8192"),
        ("    parameters:\n      - {pointer: a}",
         "    scalars: [{name: k, dtype: i32, doc: unused, default: 2.5}]\n    parameters:\n      - {pointer: a}",
         "families.nop9.scalars[0].default: expected a value of i32, got 2.5"),
    ],
    ids=["NaN", "infinity", "alignment", "default"],
)  # fmt: skip
def test_a_manifest_that_no_loader_reads_replaces_nothing(project, capsys, old, new, reason):
    """Whatever the matrix lets pass, the loader's own reader judges before the manifest is put in place."""
    assert project.build("--arch", "120a", "--kernel", "nop9") == 0
    before = project.files()
    record(project, "NaN")
    record(project, "Infinity")
    project.edit(project.matrix, old, new)
    capsys.readouterr()
    assert project.build("--arch", "120a", "--kernel", "nop9") == 1
    assert capsys.readouterr().err == f"no loader reads this manifest, nothing was replaced: {reason}\n"
    assert project.files() == before


def test_a_full_disk_leaves_the_old_pack(project, tmp_path, capsys, monkeypatch):
    """Full at any file, the build ends with its name in one line, and the next one finishes the work."""
    assert project.build("--arch", "120a", "--kernel", "nop9") == 0
    before, fsync, left = project.files(), os.fsync, 0
    shutil.copytree(project.out, tmp_path / "before")
    project.edit(project.templates / "nop9" / "nop9.cu.j2", "{}", "{ out[0] = 1.0f; }")

    def full(descriptor: int) -> None:
        nonlocal left
        left -= stat.S_ISREG(os.fstat(descriptor).st_mode)
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    for written in range(6):  # three files into the store, then cubin, PTX and manifest
        shutil.rmtree(project.out)
        shutil.copytree(tmp_path / "before", project.out)
        capsys.readouterr()
        left = written + 1
        assert project.build("--arch", "120a", "--kernel", "nop9") == 1
        assert re.fullmatch(r"/\S+: No space left on device\n", capsys.readouterr().err)
        after = project.files()
        assert {name: after[name] for name in before} == before
    assert project.build("--arch", "120a", "--kernel", "nop9") == 0
    assert project.files() != before


@pytest.mark.parametrize("name", ["manifest.json", ".build", "nop9"])
def test_a_file_or_directory_in_the_way_is_named(project, capsys, name):
    """Nothing is removed to make room."""
    project.out.mkdir()
    path = project.out / name
    path.mkdir() if name == "manifest.json" else path.write_text("")
    assert project.build("--arch", "120a", "--kernel", "nop9") == 1
    output = capsys.readouterr().err
    assert output.count("\n") == 1 and str(path if name != ".build" else project.out) in output
    assert path.exists()


def test_an_interrupted_build_leaves_the_old_pack(project, tmp_path):
    """Ctrl-C while a compiler runs: one line, exit status 130."""
    assert project.build("--arch", "120a", "--kernel", "nop9") == 0
    before = project.files()
    project.edit(project.templates / "nop9" / "nop9.cu.j2", "{}", "{ out[0] = 1.0f; }")
    launcher = tmp_path / "launcher"
    launcher.write_text("#!/bin/sh\nkill -INT $PPID\nexit 1\n")
    launcher.chmod(0o755)
    options = project.arguments("--arch", "120a", "--kernel", "nop9", "--jobs", "1", "--launcher", str(launcher))
    done = subprocess.run(
        [sys.executable, str(ROOT / "build.py"), *options], capture_output=True, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background ignore it
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert project.files() == before


def test_a_header_of_a_header_is_in_the_digest(project, capsys):
    """A change two includes away compiles again what it reaches, and nothing else."""
    folder = project.templates / "scale"
    (folder / "inner.cuh").write_text("#define ZERO 0.0f\n")
    project.edit(folder / "convert.cuh", "#pragma once", '#pragma once\n#include "inner.cuh"')
    assert project.build("--arch", "120a") == 0
    project.edit(folder / "inner.cuh", "0.0f", "0.5f")
    capsys.readouterr()
    assert project.build("--arch", "120a") == 0
    assert "4 compiled, 1 up to date" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 1}', '{"schema": 99}'])
def test_a_foreign_manifest_is_not_overwritten(project, capsys, content):
    """What is not ours is not replaced."""
    project.out.mkdir()
    (project.out / "manifest.json").write_text(content)
    assert project.build("--arch", "120a", "--kernel", "nop9") == 1
    assert "remove it" in capsys.readouterr().err
    assert (project.out / "manifest.json").read_text() == content


def test_a_lock_says_what_differs(project, tmp_path, capsys):
    """Equal bytes pass, others are named, another compiler is not compared."""
    path = tmp_path / "lock.json"
    options = ["--arch", "120a", "--kernel", "nop9", "--lock", str(path)]
    assert project.build(*options, "--locked") == 1
    assert "lock.json does not exist; --update-lock writes it" in capsys.readouterr().err
    assert project.build(*options) == 0
    assert f"{path} does not exist, digests were not compared; --update-lock writes it" in capsys.readouterr().out
    assert project.build(*options, "--update-lock") == 0
    assert project.build(*options, "--locked") == 0
    project.edit(project.templates / "nop9" / "nop9.cu.j2", "{}", "{ out[0] = 1.0f; }")
    capsys.readouterr()
    assert project.build(*options, "--locked") == 1
    output = capsys.readouterr().out
    assert "lock.json: nop9/t32@120a: another cubin and ptx" in output
    assert "lock.json: 1 of 1 kernels differ" in output
    assert project.build(*options) == 0
    path.write_text(path.read_text().replace(toolchain.find_toolchain().version, "1.0.0"))
    capsys.readouterr()
    assert project.build(*options) == 0
    assert "lock.json is of nvcc 1.0.0" in capsys.readouterr().out


def test_a_lock_is_replaced_in_one_step(project, tmp_path, monkeypatch):
    """An update that is cut short leaves the lock before it."""
    path = tmp_path / "lock.json"
    lock.update(path, "1.0.0", [], load(project.matrix))
    before = path.read_bytes()
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        lock.update(path, "2.0.0", [], load(project.matrix))
    assert path.read_bytes() == before


def test_the_last_line_says_what_the_build_took(project, capsys):
    """Seconds, compilers at once, and the peak of one process; nothing where nothing was compiled."""
    line = re.compile(r"^\d+\.\d s with --jobs 1; the largest compiler process took (\d+) MiB$", re.MULTILINE)
    project.build("--arch", "120a", "--kernel", "nop9")
    assert 10 < int(line.search(capsys.readouterr().out)[1]) < 3 << 10
    project.build("--arch", "120a", "--kernel", "nop9")
    assert not line.search(capsys.readouterr().out)


def test_list_and_dry_run_write_nothing(project, capsys):
    """They show variants, and commands."""
    assert project.build("--arch", "120a", "--list") == 0
    assert capsys.readouterr().out.count("120a") == 5
    assert project.build("--arch", "120a", "--kernel", "n*", "--dry-run") == 0
    output = capsys.readouterr().out
    assert "nop9/t32@120a: " in output and "arch=compute_120a,code=sm_120a" in output
    assert not project.out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arch", "77"], "--arch: unknown arch '77'"),
        (["--arch", "103a"], "the options select nothing; the matrix has the kernels nop9, scale and the archs"),
        (["--arch", "120a,103a"], "the options select nothing for 103a"),
        (["--kernel", "absent"], "the options select nothing"),
        (["--variant", "absent*"], "the options select nothing"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--update-lock"], "need --lock FILE"),
        (["--launcher", "nosuchtool"], "--launcher: nosuchtool is no program on PATH"),
        (["--launcher", "'"], "--launcher: No closing quotation"),
    ],
)
def test_options_that_select_nothing_are_errors(project, capsys, options, message):
    """A typing error does not give an empty pack."""
    assert cli.main(project.arguments(*options)) == 1
    assert message in capsys.readouterr().err
    assert not project.out.exists()


def test_a_launcher_runs_the_compiler(project, tmp_path):
    """Such as ccache: nvcc and its arguments follow it."""
    launcher = tmp_path / "launcher"
    launcher.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/calls\nexec "$@"\n')
    launcher.chmod(0o755)
    assert project.build("--arch", "120a", "--kernel", "nop9", "--launcher", str(launcher)) == 0
    assert (tmp_path / "calls").read_text().splitlines() == [str(toolchain.find_toolchain().nvcc)]


def test_a_launcher_that_cannot_run_fails_its_kernels(project, tmp_path, capsys):
    """As any other tool that fails: the kernel is named."""
    launcher = tmp_path / "launcher"
    launcher.write_text("no program")
    launcher.chmod(0o755)
    assert project.build("--arch", "120a", "--kernel", "nop9", "--launcher", str(launcher)) == 1
    assert f"nop9/t32@120a: {launcher} cannot be run: Exec format error" in capsys.readouterr().out


def test_another_flag_compiles_again(project, capsys):
    """Flags of a target are part of the digest."""
    project.build("--arch", "120a", "--kernel", "nop9")
    project.edit(project.matrix, "axes: {threads: [32]}", "axes: {threads: [32]}\n        flags: [-DEXTRA]")
    capsys.readouterr()
    project.build("--arch", "120a", "--kernel", "nop9")
    assert "1 compiled, 0 up to date" in capsys.readouterr().out


def test_the_report_is_escaped_html(project, monkeypatch):
    """Table and profile of each kernel; names are data."""
    try:
        toolchain.find_disassembler()
    except ToolchainError as error:
        pytest.skip(str(error))
    project.edit(project.matrix, 'name: "t{threads}"\n        launch: {', 'name: "t<{threads}>"\n        launch: {')
    monkeypatch.setattr(pack, "parse", lambda manifest: None)  # which refuses such a name
    assert project.build("--arch", "120a", "--kernel", "nop9", "--report") == 0
    page = (project.out / "report.html").read_text()
    assert "t&lt;32&gt;" in page and "t<32>" not in page
    assert "no loop with tensor-core instructions" in page
    assert '<h2 id="nop9">' in page and "https:" not in page and "http:" not in page
