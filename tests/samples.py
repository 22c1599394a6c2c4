"""The blocks of a document of docs/ as a reader meets them: files to write, commands to run, and what these print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"(?P<before>[^\n]*)\n*^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Sample:
    """``file`` is the name in backquotes that ends the line before a block; ``reason``, why it is not run."""

    language: str
    text: str
    file: str | None
    reason: str | None


def read(document: Path) -> Iterator[Sample]:
    for block in _BLOCK.finditer(document.read_text()):
        name = re.search(r"`([\w./]+)`:$", block["before"])
        reason = re.fullmatch(r"<!-- not run: (.+) -->", block["before"])
        yield Sample(block["language"], block["text"], name and name[1], reason and reason[1])


def run(document: Path, folder: Path) -> list[Sample]:
    """Write and run all samples in ``folder``, in order; ``AssertionError`` where a command fails or prints something
    else than the document says. Returns what was run."""
    (folder / "build.py").symlink_to(ROOT / "build.py")
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": programs, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done, printed = [], None
    for sample in read(document):
        if sample.reason is not None:
            if sample.language == "python":
                compile(sample.text, document.name, "exec")
            continue
        if sample.file is not None:
            path = folder / sample.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(sample.text)
        elif sample.language == "bash":
            script = ["bash", "-euo", "pipefail", "-c", sample.text]
            result = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            assert result.returncode == 0, f"{document.name}: {sample.text}{result.stdout}{result.stderr}"
            printed = result.stdout
        elif sample.language == "text":
            assert printed == sample.text, f"{document.name} says\n{sample.text}not\n{printed}"
        else:
            raise AssertionError(f"{document.name}: a {sample.language} block without the name of a file before it")
        done.append(sample)
    return done
