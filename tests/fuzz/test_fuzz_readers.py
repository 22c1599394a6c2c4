"""Every reader against its corpus, against mutations of it, and where atheris is installed half of them guided by
coverage, the run's seed says which."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
TARGETS = sorted(path.name for path in CORPUS.iterdir())
PLAIN, GUIDED = 2, 2  # seconds of each target; what is guided also takes five to start
HALF = int(os.environ["TESTS_SEED"]) % 2  # which tests/conftest.py sets


def fuzz(*arguments: object) -> subprocess.CompletedProcess:
    """A process of its own: what it watches for cannot be taken back."""
    command = [sys.executable, HERE / "run.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def test_every_target_has_a_corpus() -> None:
    """And every corpus a target; all of them together are small."""
    from fuzz_targets import TARGETS as KNOWN

    assert sorted(KNOWN) == TARGETS
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 300_000


@pytest.mark.parametrize("target", TARGETS)
def test_corpus_and_mutations(target: str, seed: int) -> None:
    """No input of the corpus and no mutation of one crashes, hangs, takes memory or reaches out."""
    done = fuzz(target, "--plain", "--seconds", PLAIN, "--seed", seed % 2**31)
    assert done.returncode == 0, done.stderr[-4000:]
    executions = int(re.search(r": (\d+) executions", done.stdout)[1])
    assert executions > len(list((CORPUS / target).iterdir()))


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="no atheris for this Python")
@pytest.mark.parametrize("target", TARGETS[HALF::2])
def test_guided_by_coverage(target: str, seed: int) -> None:
    """The same of inputs that reach new code."""
    done = fuzz(target, "--seconds", GUIDED, "--seed", seed % 2**31)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(re.search(r"number_of_executed_units: (\d+)", done.stderr)[1]) > 0


PLANTED = {
    "crash": ("raise KeyError('planted')", "KeyError: 'planted'"),
    "hang": ("while True: pass", "over 1.0 s of processor time"),
    "hang that swallows": ("while True:\n try:\n  while True: pass\n except Exception: pass", "over 1.0 s"),
    "memory": ("bytearray(1 << 30)", "MemoryError"),
    "file": ("open('/etc/hostname')", "opens '/etc/hostname'"),
    "link": ("open(fuzz_limits.store() / 'out')", "store/out'"),
    "writing": ("open('written.py', 'w')", "opens 'written.py'"),
    "code": ("exec(compile('1', 'text', 'exec'))", "executes text"),
    "command": ("__import__('os').system('true')", "os.system"),
    "deletion": ("__import__('os').remove('/nothing')", "os.remove"),
    "network": ("__import__('socket').socket()", "socket.__new__"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_findings_are_seen(planted: str, tmp_path: Path) -> None:
    """A reader that does what none may ends the run, and its input is left."""
    code, message = PLANTED[planted]
    program = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import pathlib, run, fuzz_limits, fuzz_targets
import socket
run.CACHE = pathlib.Path({str(tmp_path)!r})
def reader(data):
    if fuzz_limits._watching and len(data) % 2:
        planted = compile({code!r}, "<ptx planted>", "exec")
        exec(planted)
fuzz_targets.TARGETS["entry_points"] = fuzz_targets.TARGETS["entry_points"]._replace(run=reader)
run.plain("entry_points", 20, 10_000, 1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert len(list(tmp_path.glob("entry_points-finding-*"))) == 1
    assert not (tmp_path / "written.py").exists()
