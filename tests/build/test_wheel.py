"""The wheel: the same bytes from anywhere, nothing generic in it, and launches where nothing else is installed."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import key_files
import pytest
from environments import Environment
from packs import ARCHS, CACHE, turn

import loader
from generator.errors import ToolchainError
from generator.toolchain import find_toolchain

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 40e6
DIST_INFO = f"block_scaled-{loader.__version__}.dist-info"
# What a build reads.
SOURCES = ("LICENSE", "README.md", "build.py", "kernels.yaml", "benchmarks/results", "emulator", "generator",
           "include", "integrations", "loader", "pyproject.toml", "templates")  # fmt: skip

# grouped_fp4 by the loader of the wheel, with whose numbers examples/ compares.
LAUNCH = f"""
import sys; sys.path.append({str(ROOT / "examples")!r})
import numpy as np, nvfp4
from block_scaled import loader
problem = nvfp4.routed_problem(seed=0, tokens=8, experts=4, top_k=2, n=64, k=128)
out = np.full(problem.shape, np.nan, np.float32)
loader.launch("grouped_fp4", **problem.inputs, out=out, device="emulated:120a")
assert np.linalg.norm(out - problem.expected) < 1e-3 * np.linalg.norm(problem.expected)
"""

try:
    find_toolchain()
except ToolchainError as error:
    pytest.skip(f"no compiler: {error}", allow_module_level=True)


def build(folder: Path, *options: str, root: Path = ROOT, mask: int = 0o022) -> Path:
    """The wheel that build.py makes in ``folder``."""
    command = [sys.executable, "build.py", "--wheel", str(folder), *options]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, umask=mask)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Of every shipped kernel, for the archs whose kernels tests have anyway; those that ship are as large."""
    with turn():
        return build(tmp_path_factory.mktemp("wheel"), "--arch", ",".join(ARCHS), "--out", str(CACHE))


@pytest.fixture
def environment(tmp_path) -> Environment:
    return Environment(tmp_path / "environment")


def dummy(folder: Path) -> Path:
    """A distribution of another project that installs a module named loader."""
    path = folder / "loader-9-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("loader/__init__.py", "theirs = True\n")
        archive.writestr("loader-9.dist-info/METADATA", "Metadata-Version: 2.1\nName: loader\nVersion: 9\n")
        archive.writestr("loader-9.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("loader-9.dist-info/RECORD", "")
    return path


def test_same_bytes_from_anywhere(tmp_path):
    """Two checkouts in directories of different depth, with different modes of files: one wheel."""
    wheels = []
    for place, mask in ((tmp_path / "a", 0o022), (tmp_path / "another" / "and-longer" / "place", 0o077)):
        for source in map(ROOT.joinpath, SOURCES):
            target = place / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
            target.chmod(target.stat().st_mode & ~mask)
        options = ("--arch", "90a", "--kernel", "nvfp4_quantize", "--out", str(place / "pack"))
        wheels.append(build(place / "dist", *options, root=place, mask=mask))
    assert wheels[0].name == wheels[1].name
    assert wheels[0].read_bytes() == wheels[1].read_bytes()


def test_a_checkout_is_no_distribution(tmp_path):
    """It would install names that are anybody's, and no kernels; what to do is said instead."""
    for source in ("LICENSE", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / source, tmp_path)
    for package in ("loader", "emulator", "generator", "integrations"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "made", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "`python build.py --wheel` makes one" in done.stderr
    assert not list(tmp_path.glob("made/*.whl"))


def test_what_is_in_it(wheel):
    """One package and no other name, no generator, every kernel once, and not more than its budget."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"block_scaled", DIST_INFO}
    assert {name.split("/")[1] for name in names if name.startswith("block_scaled/")} == {
        "__init__.py", "py.typed", "kernels", "loader", "emulator", "integrations", "include"}  # fmt: skip
    headers = {path.relative_to(ROOT).as_posix() for path in (ROOT / "include").rglob("*.h")}
    assert {name for name in names if name.endswith(".h")} == {f"block_scaled/{name}" for name in headers}
    kernels = [info for info in zipfile.ZipFile(wheel).infolist() if info.filename.endswith((".cubin", ".ptx.xz"))]
    assert len(kernels) == len({info.CRC for info in kernels})
    assert wheel.stat().st_size < MAX_BYTES


def test_bill_of_materials(wheel):
    """It stands where PEP 770 has it, and names what was built, from what, and with what."""
    with zipfile.ZipFile(wheel) as archive:
        name = f"{DIST_INFO}/sboms/block_scaled.cdx.json"
        bill, manifest = json.loads(archive.read(name)), archive.read("block_scaled/kernels/manifest.json")
        assert f"\n{name},sha256=".encode() in archive.read(f"{DIST_INFO}/RECORD")
    assert bill["bomFormat"] == "CycloneDX" and bill["metadata"]["component"]["version"] == loader.__version__
    (kernels,) = bill["components"]
    assert kernels["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(manifest).hexdigest()}]
    facts = {entry["name"]: entry["value"] for entry in kernels["properties"]}
    assert facts["nvcc"] == json.loads(manifest)["toolchain"]["nvcc"] and facts["archs"] == "100a 120a 90a"


def test_installed_where_nothing_is(environment, wheel):
    """Packs are found, told of and explained without numpy and a driver; with numpy, a launch."""
    environment.install(wheel)
    installed = {path.name for path in environment.packages.iterdir()}
    assert installed == {"block_scaled", DIST_INFO}
    done = environment.run("-c", "import numpy")
    assert "No module named 'numpy'" in done.stderr
    done = environment.run("-m", "block_scaled.loader", "list")
    assert "grouped_fp4_swiglu" in done.stdout and not done.stderr
    done = environment.run("-m", "block_scaled.loader", "doctor")
    assert f"{environment.packages}/block_scaled/kernels" in done.stdout and "build.py" not in done.stdout
    done = environment.run("-c", "from block_scaled import loader\n"
                                 "print(loader.explain('gemm_fp8', M=8, N=128, K=128, out='bf16', device='90a'))")
    assert "m16n32s1_bf16" in done.stdout, done.stderr
    environment.with_numpy()
    done = environment.run("-W", "ignore::RuntimeWarning", "-c", LAUNCH)
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize("ours_first", [True, False])
def test_beside_a_distribution_named_loader(environment, wheel, tmp_path, ours_first):
    """Neither breaks the other, whichever is installed first."""
    wheels = [wheel, dummy(tmp_path)]
    for one in wheels if ours_first else wheels[::-1]:
        environment.install(one)
    done = environment.run("-c", "import loader; from block_scaled import loader as ours\n"
                                 "print(loader.theirs, len(ours.kernels()) > 50)")
    assert done.stdout == "True True\n", done.stderr


def test_both_names_in_one_process(environment, wheel):
    """A checkout's loader and the wheel's are two modules, and both launch."""
    environment.install(wheel)
    environment.with_numpy()
    (environment.packages / "checkout.pth").write_text(f"{ROOT}\n")
    both = LAUNCH + LAUNCH.replace("from block_scaled import loader", f"""
import os; os.environ["LOADER_ARTIFACTS"] = {str(CACHE)!r}
import block_scaled, loader, emulator, integrations.safetensors_file, block_scaled.integrations.safetensors_file
assert loader is not block_scaled.loader and loader.__version__ == block_scaled.__version__
assert loader.ShapeError is not block_scaled.loader.ShapeError and emulator is not block_scaled.emulator""")
    done = environment.run("-W", "ignore::RuntimeWarning", "-c", both)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_pack_of_ones_own(environment, wheel, tmp_path):
    """A wheel of kernels alone is found beside the whole one; packs that agree combine."""
    options = ("--arch", "100f", "--kernel", "nvfp4_global_scale", "--out", str(tmp_path / "pack"))
    alone = build(tmp_path / "dist", *options, "--pack-only", "mine")
    assert alone.name.startswith("block_scaled_mine-")
    environment.install(wheel)
    environment.install(alone)
    done = environment.run("-c", "from block_scaled import loader\n"
                                 "print(*loader.kernels()['nvfp4_global_scale'].archs)")
    assert done.stdout == "90a 100a 100f 120a\n", done.stderr


def test_signed(tmp_path):
    """The pack of a wheel can be signed as it is made; a key that is none is an error, and no wheel is left."""
    keys = key_files.Owner(tmp_path, "release")
    options = ("--arch", "90a", "--kernel", "nvfp4_global_scale", "--out", str(tmp_path / "pack"), "--pack-only")
    signed = build(tmp_path / "dist", *options, "--sign", keys.private)
    zipfile.ZipFile(signed).extractall(tmp_path / "site")
    assert loader.verify(str(tmp_path / "site" / "block_scaled_pack"), trust=loader.Trust("require", keys.public))
    command = [sys.executable, "build.py", "--wheel", str(tmp_path / "other"), *options, "--sign", keys.public]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "--sign: key file" in done.stderr and not (tmp_path / "other").exists()


@pytest.mark.parametrize(("options", "message"), [
    (["--pack-only"], "--pack-only and --sign say what --wheel makes; it is missing"),
    (["--sign", "key.pem"], "--pack-only and --sign say what --wheel makes; it is missing"),
    (["--wheel", "--pack-only", "No-Name"], "of lower-case letters, digits and underscores, got 'No-Name'"),
])
def test_wrong_options(options, message):
    """Each is an error before anything is built."""
    done = subprocess.run([sys.executable, "build.py", *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr and not done.stdout
