"""The wheel that ``python build.py --wheel`` made, on a GPU: alone, and from torch, JAX and CuPy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from environments import Environment

ROOT = Path(__file__).resolve().parents[2]
WHEELS = sorted((ROOT / "dist").glob("block_scaled-*.whl"))
pytestmark = pytest.mark.skipif(len(WHEELS) != 1, reason=f"{len(WHEELS)} wheels in dist/; build.py --wheel makes one")

# An example of the checkout, with the loader of the wheel.
EXAMPLE = """
import runpy, sys
from block_scaled import loader
sys.modules["loader"] = loader
runpy.run_path(sys.argv[1], run_name="__main__")
assert "block_scaled" in loader.__file__
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("environment"))
    made.install(*WHEELS)
    return made


def test_nothing_else_is_needed(environment):
    """No compiler, numpy or framework: the driver and the standard library."""
    done = environment.run(str(ROOT / "tests" / "gpu" / "bare_launch.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    done = environment.run("-m", "block_scaled.loader", "doctor")
    assert done.returncode == 0 and "grouped_fp4: " in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("framework", ["torch", "jax", "cupy"])
def test_from_a_framework(environment, framework):
    """The examples run as they are, with the loader of the wheel in the place of the checkout's."""
    pytest.importorskip(framework)
    path = ROOT / "examples" / f"{framework}_example.py"
    command = [sys.executable, "-W", "ignore", "-c", EXAMPLE, str(path)]
    variables = {**os.environ, "PYTHONPATH": f"{environment.packages}{os.pathsep}{path.parent}"}
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert done.returncode == 0 and "relative error" in done.stdout, done.stdout + done.stderr
