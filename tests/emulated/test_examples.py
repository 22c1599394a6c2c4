"""The programs of the gallery that run without a GPU, as its page says."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))

from site_pages.examples import WITHOUT_GPU  # noqa: E402


@pytest.mark.parametrize("name", WITHOUT_GPU)
def test_examples_run(name, packs):
    """By the command of the page; each compares its own result, and prints what came of it."""
    python, *words = shlex.split(WITHOUT_GPU[name])
    assert python == "python"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if packs is not None:
        environment["LOADER_ARTIFACTS"] = os.pathsep.join(packs)
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error" in done.stdout or "the same bytes" in done.stdout, done.stdout
