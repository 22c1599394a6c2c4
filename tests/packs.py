"""Which variants a pack holds, and the pack of the shipped kernels that tests build and share."""

from __future__ import annotations

import fcntl
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
def turn() -> Iterator[None]:
    """Hold CACHE for this process. Test processes take turns."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with CACHE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_kernels(archs: Sequence[str]) -> subprocess.CompletedProcess:
    """Build every shipped kernel for ``archs`` into CACHE, incrementally."""
    with turn():
        command = [sys.executable, "build.py", "--arch", ",".join(archs), "--out", str(CACHE)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def artifacts(family: str, runs: Callable[[str], bool], packs: Sequence[str] | None = None) -> list[Artifact]:
    """Those of a family whose arch ``runs``."""
    found = [candidate.artifact for candidate in registry(packs).candidates(family)]
    return [artifact for artifact in found if runs(artifact.arch)]


def output_types(family: str, runs: Callable[[str], bool], packs: Sequence[str] | None = None) -> dict[str, str]:
    """Variant -> output type, of the artifacts of a family whose arch ``runs``."""
    return {artifact.variant: artifact.axes["out"] for artifact in artifacts(family, runs, packs)}
