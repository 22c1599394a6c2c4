"""A warning of this project is an error of its tests; a warning of anybody else is not."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def warn_from(module: str) -> None:
    """As a line of that module would."""
    exec('import warnings; warnings.warn("mend me", DeprecationWarning)', {"__name__": module})


@pytest.mark.parametrize(
    "module",
    ["loader", "loader.registry", "emulator.device", "generator.cli", "integrations.vllm", "hopper.case", "record",
     "nvfp4", "reference", "conftest", __name__],
)  # fmt: skip
def test_own_warnings_are_errors(module):
    """Of packages, of programs and of tests."""
    with pytest.raises(DeprecationWarning, match="mend me"):
        warn_from(module)


@pytest.mark.parametrize("module", ["torch", "torch.loader", "loaders", "pytest_benchmark.session", "records"])
def test_foreign_warnings_are_not(module):
    """However much their names look like ours."""
    with warnings.catch_warnings(record=True) as caught:
        warn_from(module)
    assert [str(warning.message) for warning in caught] == ["mend me"]


def test_a_plugin_that_warns_does_not_end_the_run(tmp_path):
    """As one for benchmarks does beside xdist, before any test is collected."""
    (tmp_path / "noisy.py").write_text(
        "import pytest, warnings\n"
        "def pytest_configure():\n"
        "    warnings.warn('of no use here', pytest.PytestWarning)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "noisy", "-p", "no:cacheprovider", "--collect-only", "-q",
               "tests/unit/test_own_warnings.py"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
