"""Errors of the build. Every one is caught by build.py, printed, and makes the exit status 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class BuildError(Exception):
    """Base of everything that a build can refuse."""


class MatrixError(BuildError):
    """kernels.yaml is wrong. ``problems`` holds every finding as ``file: entry.key: reason``."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class RenderError(BuildError):
    """A template or an include is missing, has a syntax error or uses an undefined name."""


class ToolchainError(BuildError):
    """A compiler tool is missing or unusable; the text lists where it was looked for and what to install."""


class CompileError(BuildError):
    """One kernel failed. ``command``, run in ``folder``, repeats it; ``log`` is what the tool said."""

    def __init__(self, reason: str, command: str = "", log: str = "", folder: Path | None = None) -> None:
        self.reason, self.command, self.log, self.folder = reason, command, log, folder
        super().__init__(reason)


class PackError(BuildError):
    """The output directory cannot be used, as another build holds it or its manifest is not one of ours; or the new
    manifest could not be used by a loader."""
