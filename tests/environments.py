"""Empty Python environments, into which tests install wheels."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np


class Environment:
    """An empty environment: no compiler, no network, no packages but those installed here."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.folder = folder
        self.packages = next(folder.glob("lib/python*/site-packages"))
        self.variables = {"PATH": "", "HOME": str(folder), "PIP_CONFIG_FILE": os.devnull}

    def install(self, *wheels: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.folder / "bin" / "python"), "install"]
        command = [*pip, "--no-index", "--no-compile", "--quiet", "--disable-pip-version-check", *map(str, wheels)]
        subprocess.run(command, check=True, env=self.variables, cwd=self.folder)

    def with_numpy(self) -> None:
        """As the extra brings it, from where the tests have theirs."""
        (self.packages / "numpy.pth").write_text(f"{Path(np.__file__).parents[1]}\n")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.folder / "bin" / "python", *arguments], capture_output=True, text=True,
                              env=self.variables, cwd=self.folder)  # fmt: skip
