"""Launches as they are about to happen, for whoever asked to see them.

A launch asks whether ``watchers`` is empty and does nothing else where it is. Whatever a watcher raises reaches the
caller, and its launch does not happen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from . import expression
from .expression import Number
from .launchable import OneKernel
from .manifest import Family


class Operand(NamedTuple):
    """A buffer of a launch, row major; shape and strides in stored elements (``e2m1x2`` counts bytes)."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    pointer: int


class Launch(NamedTuple):
    """One launch of one kernel.

    device: its ordinal, None for the emulated one. problem: dimensions and scalars by name. reason: what chose the
    variant, one of ``select.REASONS``. composite: the call of which this is a step, None for a kernel's own call.
    buffers: by argument, without those that the call leaves out. stream: its handle, None on the emulated device.
    parameters: as the kernel reads them, tensor maps encoded.
    """

    kernel: str
    variant: str
    arch: str
    device: int | None
    grid: tuple[int, int, int]
    problem: Mapping[str, Number | str]
    reason: str
    composite: str | None
    buffers: Mapping[str, Operand]
    stream: int | None
    parameters: bytes


class Watcher:
    """``before`` is told of a launch and of what its kernel takes; ``after`` is called when it is queued, or failed."""

    def __init__(self, before: Callable[[Launch, Family], object], after: Callable[[], object] | None = None) -> None:
        self.before, self.after = before, after


# Changed in place alone: a launch looks at this very list.
watchers: list[Watcher] = []


def add(watcher: Watcher) -> Callable[[], None]:
    """Returns a function that removes the watcher; calling it again does nothing."""
    watchers.append(watcher)

    def remove() -> None:
        if watcher in watchers:
            watchers.remove(watcher)

    return remove


def on_launch(callback: Callable[[Launch], object]) -> Callable[[], None]:
    """Call ``callback`` with a ``Launch`` before each launch of this process, and return a function that ends that.

    Every launch is seen: of ``launch``, of plans that exist already, of each step of a composite, under capture and on
    the emulated device; a graph's replays are none of the loader's. Several callbacks are called in order. What one
    raises is raised by the call, and the kernel is not launched.
    """
    return add(Watcher(lambda launch, family: callback(launch)))


@contextmanager
def announced(prepared: OneKernel, pointers: Sequence[int], stream: int | None, parameters: bytes) -> Iterator[None]:
    """Around a launch: tells those who watch."""
    told: list[Watcher] = []
    try:
        if watchers:
            launch = _launch(prepared, pointers, stream, parameters)
            for watcher in tuple(watchers):
                watcher.before(launch, prepared.family)
                told.append(watcher)
        yield
    finally:
        for watcher in reversed(told):
            if watcher.after is not None:
                watcher.after()


def _launch(prepared: OneKernel, pointers: Sequence[int], stream: int | None, parameters: bytes) -> Launch:
    if prepared.described is None:
        prepared.described = _described(prepared)
    known: Launch = prepared.described
    addresses = {argument.name: pointer for argument, pointer in zip(prepared.family.arguments, pointers, strict=True)}
    buffers = {name: operand._replace(pointer=addresses[name]) for name, operand in known.buffers.items()}
    return known._replace(problem={**known.problem}, buffers=buffers, stream=stream, parameters=parameters)


def _described(prepared: OneKernel) -> Launch:
    """What is the same in every launch of a problem."""
    family, (dtypes, values, _) = prepared.family, prepared.problem
    problem: dict[str, Any] = {name: values[name] for name in family.dimensions}
    for scalar in family.scalars:
        value = values[scalar.name]
        problem[scalar.name] = scalar.choices[int(value)] if scalar.choices else value
    buffers = {}
    for argument in family.arguments:
        if argument.name in dtypes:
            shape = tuple(int(expression.evaluate(extent, values)) for extent in argument.shape)
            strides = tuple(math.prod(shape[axis + 1:]) for axis in range(len(shape)))
            buffers[argument.name] = Operand(dtypes[argument.name], shape, strides, 0)
    return Launch(family.name, prepared.variant, prepared.arch, prepared.device and prepared.device.ordinal,
                  prepared.grid, problem, prepared.selection.reason, prepared.part_of, buffers, None, b"")
