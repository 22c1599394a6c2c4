"""Which variants a pack holds, and the pack of the shipped kernels that tests build and share."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loader.manifest import Artifact
from loader.registry import registry

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "tests" / ".cache" / "kernels"
ARCHS = ("90a", "100a", "120a")  # those whose kernels are all built, and emulated


@contextmanager
def turn(file: str = "kernels.lock") -> Iterator[None]:
    """Hold CACHE, or what another file beside it stands for. Test processes take turns."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with CACHE.with_name(file).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_kernels(archs: Sequence[str]) -> subprocess.CompletedProcess:
    """Build every shipped kernel for ``archs`` into CACHE, incrementally."""
    with turn():
        command = [sys.executable, "build.py", "--arch", ",".join(archs), "--out", str(CACHE)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def need_kernels(archs: Sequence[str]) -> None:
    """Build them unless a process of this run has done so: to find that nothing changed takes ten seconds."""
    run, noted = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid())), CACHE.with_name("kernels.run")
    with turn(noted.name):
        started, *have = noted.read_text().split() or [""]
        have = have if started == run else []
        if not set(archs) <= set(have):
            done = build_kernels(archs)
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
            noted.write_text(" ".join([run, *have, *archs]))


def artifacts(family: str, runs: Callable[[str], bool], packs: Sequence[str] | None = None) -> list[Artifact]:
    """Those of a family whose arch ``runs``."""
    found = [candidate.artifact for candidate in registry(packs).candidates(family)]
    return [artifact for artifact in found if runs(artifact.arch)]


def output_types(family: str, runs: Callable[[str], bool], packs: Sequence[str] | None = None) -> dict[str, str]:
    """Variant -> output type, of the artifacts of a family whose arch ``runs``."""
    return {artifact.variant: artifact.axes["out"] for artifact in artifacts(family, runs, packs)}
