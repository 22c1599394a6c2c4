"""Which compiled architecture runs on which device.

An ``a`` target (``sm_90a``) runs on that compute capability only. An ``f`` target (``sm_120f``) runs on the same
major version with an equal or higher minor. No target of one major version runs on another. Source: PTX ISA 9.0,
section 11.1.2 (``.target``).
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Arch(NamedTuple):
    """A compilation target: ``Arch(12, 0, "f")`` is ``120f``, compiled as ``compute_120f`` / ``sm_120f``."""

    major: int
    minor: int
    suffix: str

    def __str__(self) -> str:
        return f"{self.major}{self.minor}{self.suffix}"


# A new architecture is one line here, beside its template and its YAML.
ARCHS: dict[str, Arch] = {
    "90a": Arch(9, 0, "a"),
    "100a": Arch(10, 0, "a"),
    "103a": Arch(10, 3, "a"),
    "100f": Arch(10, 0, "f"),
    "120a": Arch(12, 0, "a"),
    "121a": Arch(12, 1, "a"),
    "120f": Arch(12, 0, "f"),
}

# Dynamic shared memory that one CTA may opt in to, in bytes, by major version (CUDA programming guide, table of
# compute capabilities). The generator refuses a larger tile before it compiles it.
SHARED_MEMORY_LIMIT: dict[int, int] = {9: 232_448, 10: 232_448, 12: 101_376}


def refusal(arch: Arch, capability: tuple[int, int]) -> str | None:
    """Why code for ``arch`` cannot run on a device of ``capability``; ``None`` if it can."""
    major, minor = capability
    if arch.major != major:
        return f"sm_{arch} runs on compute capability {arch.major}.x only, the device has {major}.{minor}"
    lowest = f"{arch.major}.{arch.minor}"
    if arch.suffix == "a" and arch.minor != minor:
        return f"sm_{arch} runs on compute capability {lowest} only, the device has {major}.{minor}"
    if arch.suffix == "f" and arch.minor > minor:
        return f"sm_{arch} runs on compute capability {lowest} or higher, the device has {major}.{minor}"
    return None


def rank(arch: Arch) -> tuple[int, int, int]:
    """Sort key of the archs that run on one device: the most specific one is the largest."""
    return (arch.major, arch.minor, {"f": 0, "a": 1}[arch.suffix])


def parse(text: str) -> Arch:
    """``"120a"``, ``"sm_120a"`` or ``"compute_120a"`` to an ``Arch``; ``ValueError`` names the known ones."""
    key = re.sub(r"^(sm_|compute_)", "", text)
    if key not in ARCHS:
        raise ValueError(f"unknown arch {text!r}; known are {', '.join(ARCHS)}")
    return ARCHS[key]
