"""The programs of the gallery that run without a GPU, as its page says."""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packs import ARCHS

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "examples")]

import indexer  # noqa: E402
from site_pages.examples import WITH_PACKAGES, WITHOUT_GPU  # noqa: E402

import loader  # noqa: E402


@pytest.mark.parametrize("command", [*WITHOUT_GPU.values(), "python examples/gpt_oss.py --emulate 90a"])
def test_examples_run(command, packs):
    """By the command of the page, and where tokens stay in bf16; each compares its own result, and prints what came of
    it."""
    run(command, packs)


@pytest.mark.parametrize("name", WITH_PACKAGES)
def test_examples_run_where_their_package_is(name, packs):
    """As those that need none."""
    package, command = WITH_PACKAGES[name]
    pytest.importorskip(package, reason=f"{package} is not installed: .[{package}]")
    run(command, packs)


def run(words, packs):
    python, *words = shlex.split(words)
    assert python == "python"
    # Of the newest arch the tests' pack may hold a sample alone.
    environment = {"LOADER_EMULATED_ARCH": ARCHS[-1], **os.environ, "PYTHONPATH": str(ROOT)}
    if packs is not None:
        environment["LOADER_ARTIFACTS"] = os.pathsep.join(packs)
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error" in done.stdout or "the same bytes" in done.stdout, done.stdout


@pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning")
def test_indexer_by_both_names(rng, packs, monkeypatch):
    """DeepGEMM's calls from torch give the bytes and the keys of the loader's from numpy; another key is seen."""
    for name in ("launch", "plan"):
        monkeypatch.setattr(loader, name, functools.partial(getattr(loader, name), packs=packs))
    batch, top_k = indexer.Batch.random(rng, [0, 70], [3, 2]), 40
    results, _ = indexer.by_loader(batch, top_k, "emulated:90a")
    monkeypatch.setattr(loader, "launch", functools.partial(loader.launch, device="emulated:90a"))
    by_name, _ = indexer.by_deep_gemm(batch, top_k, "cpu", 4)
    for result, other in zip(results, by_name, strict=True):
        assert np.array_equal(result.logits, other.logits) and np.array_equal(result.chosen, other.chosen)
    assert not any(found.outside or found.wrong for found in indexer.compare(batch, results, top_k))
    chosen = results[1].chosen.copy()
    chosen[1, 0] = next(key for key in range(73) if key not in chosen[1])
    swapped = [results[0], indexer.Result(results[1].logits, chosen)]
    assert [found.wrong for found in indexer.compare(batch, swapped, top_k)] == [0, 1]
