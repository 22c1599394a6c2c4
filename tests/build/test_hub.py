"""A build folder of Hugging Face's kernels: by the rules of ``kernels`` one by one, and by itself where that is."""

import ast
import base64
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from generator import hub
from generator.errors import ToolchainError
from generator.toolchain import find_toolchain

ROOT = Path(__file__).resolve().parents[2]
BUILD = ("--arch", "90a,120f", "--kernel", "nvfp4_global_scale")

# As kernels loads a folder: its __init__.py, under the id of its metadata, as a package.
LOAD = """
import importlib.util, json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
name = json.loads((folder / "metadata.json").read_text())["id"]
spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
module = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import importlib
for path in sorted((folder / "integrations").glob("[a-z]*.py")):
    importlib.import_module(f"{name}.integrations.{path.stem}")
registry = module.loader.registry.registry()
others = {"loader", "emulator", "integrations", "generator"} & sys.modules.keys()
print(registry.source, *module.loader.kernels(), *others)
"""

try:
    find_toolchain()
except ToolchainError as error:
    pytest.skip(f"no compiler: {error}", allow_module_level=True)


def build(place: Path) -> Path:
    """What build.py makes in ``place``."""
    command = [sys.executable, "build.py", "--hf", str(place), "--out", str(place / "pack"), *BUILD]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "build" / "torch-cuda"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("hub"))


def clean() -> dict[str, str]:
    """The environment, without what would name another pack."""
    return {name: value for name, value in os.environ.items() if name not in ("LOADER_ARTIFACTS", "PYTHONPATH")}


def test_imports_itself_torch_and_the_standard_library(folder: Path) -> None:
    """Wherever a module is imported; what needs more is not there, and neither is what imports that."""
    for path in folder.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                inside = path.parents[node.level - 1] if node.level else folder
                assert folder in (inside, *inside.parents), f"{path} imports from above the folder"
                names = [] if node.level else [node.module]
            for name in names:
                assert name.partition(".")[0] in {"torch", *sys.stdlib_module_names}, f"{path} imports {name}"
    there = {path.name for path in (folder / "integrations").iterdir()}
    assert {"ops.py", "transformers.py", "torch_experts.py", "vllm.py", "deep_gemm.py"} <= there
    assert not {"jax.py", "checkpoint.py", "expert_formats.py"} & there


def test_metadata_says_what_is_there(folder: Path) -> None:
    """A name and an id that are allowed, archs as torch writes them, and the digest of every file but its own."""
    found = json.loads((folder / "metadata.json").read_text())
    assert re.fullmatch(r"[a-z][-a-z0-9]*[a-z0-9]", found["name"]) and found["id"].isidentifier()
    assert found["backend"] == {"type": "cuda", "archs": ["9.0a", "12.0f"]}
    assert type(found["version"]) is int and re.fullmatch(r"\d+\.\d+\.\d+", found["kernels-minver"])
    assert found["python-depends"] == []
    files = {path.relative_to(folder).as_posix(): base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
             for path in folder.rglob("*") if path.is_file() and path.name != "metadata.json"}  # fmt: skip
    assert found["digest"] == {"algorithm": "sha256", "files": files}


def test_loads_as_a_package_of_any_name(folder: Path) -> None:
    """With its own pack, whatever else is installed, and no module under a name that is anybody's."""
    done = subprocess.run([sys.executable, "-B", "-c", LOAD, str(folder)], env=clean(), cwd=folder, text=True,
                          capture_output=True)  # fmt: skip
    assert done.stdout == "this package nvfp4_global_scale\n", done.stderr


def test_equal_trees_give_equal_folders(folder: Path, tmp_path: Path) -> None:
    """One that is there is replaced, and nothing of it stays."""
    left = tmp_path / "build" / hub.VARIANT / "left"
    left.mkdir(parents=True)
    other = hub.write(tmp_path, lambda pack: shutil.copytree(folder / "kernels", pack))
    assert not left.exists() and [path.name for path in other.parent.iterdir()] == [hub.VARIANT]
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 50 and all((folder / path).read_bytes() == (other / path).read_bytes() for path in files)


def test_by_kernels_itself(folder: Path) -> None:
    """Its digest is the one that kernels computes, and LOCAL_KERNELS finds the folder."""
    if not list(importlib.metadata.distributions(name="kernels")):  # a module of tests has its name
        pytest.skip("kernels is not installed: .[transformers]")
    program = ("import kernels, sys\n"
               "from kernels._rust import Digest, DigestAlgorithm, Metadata\n"
               "folder = sys.argv[1]\n"
               "found = Metadata.read_from_file(f'{folder}/metadata.json')\n"
               "found.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, folder))\n"
               "print(*kernels.get_kernel('me/block-scaled', version=0).loader.kernels())\n")  # fmt: skip
    environment = {**clean(), "LOCAL_KERNELS": f"me/block-scaled={folder}"}
    done = subprocess.run([sys.executable, "-B", "-c", program, str(folder)], cwd=folder, text=True, env=environment,
                          capture_output=True)  # fmt: skip
    assert done.stdout == "nvfp4_global_scale\n", done.stderr
