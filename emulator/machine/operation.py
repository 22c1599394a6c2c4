"""Asynchronous operations: posted now, carried out later in steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from ..text.instructions import Instruction


class Owner(Protocol):
    """The CTA of an operation."""

    index: tuple[int, int, int]

    def wake_copies(self) -> None:
        """Wakes those who wait for operations."""


class Operation:
    """Work of the asynchronous engines. It starts when those in `after` are done and, unless nothing else can run,
    when the clock reaches `due`. The first step reads its sources; after the last one it is done.
    """

    __slots__ = ("name", "cta", "steps", "after", "due", "read_done", "done", "origin")

    def __init__(
        self, name: str, cta: Owner, steps: list[Callable[[], None]], after: list[Operation], origin: Instruction | None
    ):
        self.name, self.cta, self.steps, self.origin = name, cta, steps, origin
        self.after = [op for op in after if not op.done]
        self.due: float = math.inf
        self.read_done = self.done = False

    def ready(self) -> bool:
        if self.after:
            self.after = [op for op in self.after if not op.done]
        return not self.after

    def advance(self) -> None:
        """Carries out the next step."""
        step = self.steps.pop(0)
        step()
        self.read_done = True
        if not self.steps:
            self.done = True
