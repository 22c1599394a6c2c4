"""What programs print where the site is built: run once, and again when something that they run has changed."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

SOURCES = ("emulator", "examples", "integrations", "loader")
LIMIT = 300  # seconds of a program; each takes a few


class Output(NamedTuple):
    """What a program printed; where it failed the last line of its errors."""

    text: str
    failed: bool


def outputs(root: Path, cache: Path, commands: Mapping[str, str]) -> dict[str, Output]:
    """Of ``python ...`` commands by name, with the pack in ``artifacts/``. Only what went well is kept in ``cache``."""
    state, found, kept = _state(root), {}, set()
    cache.mkdir(parents=True, exist_ok=True)
    for name, command in commands.items():
        digest = hashlib.sha256(f"{state} {command}".encode()).hexdigest()
        file = cache / f"{name}-{digest[:16]}.txt"
        found[name] = Output(file.read_text(), False) if file.exists() else _run(root, command)
        if not found[name].failed:
            file.write_text(found[name].text)
            kept.add(file)
    for file in set(cache.glob("*.txt")) - kept:
        file.unlink()
    return found


def _state(root: Path) -> str:
    """sha256 of what decides about the output of any: the Python files and the manifest, which names all of a pack."""
    files = sorted(path for folder in SOURCES for path in (root / folder).rglob("*.py"))
    lines = [f"{path.relative_to(root).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n"
             for path in (*files, root / "artifacts" / "manifest.json")]  # fmt: skip
    return hashlib.sha256("".join([sys.version, *lines]).encode()).hexdigest()


def _run(root: Path, command: str) -> Output:
    python, *words = shlex.split(command)
    if python != "python":
        raise ValueError(f"expected a command of python, got {command!r}")
    environment = {**os.environ, "PYTHONPATH": str(root), "LOADER_ARTIFACTS": str(root / "artifacts")}
    done = subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True,
                          timeout=LIMIT, check=False)  # fmt: skip
    lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    text = lines[-1] if done.returncode else done.stdout.rstrip()
    return Output(text.replace(f"{root}{os.sep}", ""), done.returncode != 0)
