"""What ``Call`` and ``Plan`` know of a prepared problem, whatever runs it: a device, the emulator or several steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from .driver import Device
from .manifest import Family
from .select import Decision, Selection
from .signature import Problem


class Slot(Protocol):
    """Addresses of one launch, which have passed ``Launchable.check``."""

    def launch(self, stream: int) -> Any: ...


class Launchable(Protocol):
    """One problem on one device, addresses aside.

    device: None on the emulated one. variant, grid: None of several kernels. steps: ``family/variant`` of each kernel.
    """

    family: Family
    kernel: str
    variant: str | None
    arch: str
    grid: tuple[int, int, int] | None
    device: Device | None

    @property
    def steps(self) -> tuple[str, ...]: ...

    @property
    def decisions(self) -> tuple[Decision, ...]: ...

    def check(self, pointers: Sequence[int]) -> None:
        """What depends on addresses."""

    def check_values(self, pointers: Sequence[int | None], stream: int) -> None:
        """Of offsets, counts and indices, behind what is queued on ``stream``."""

    def slot(self, pointers: tuple[int, ...]) -> Slot: ...

    def launch(self, pointers: tuple[int, ...], stream: int) -> None:
        """Check the addresses where they are new, and launch."""


class OneKernel(Protocol):
    """A ``Launchable`` of one kernel, as those who watch launches know it.

    part_of: the composite of which it is a step, None for a kernel's own call. described: what ``observe`` keeps of it.
    """

    family: Family
    problem: Problem
    selection: Selection
    variant: str
    arch: str
    grid: tuple[int, int, int]
    device: Device | None
    part_of: str | None
    described: Any
