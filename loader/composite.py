"""Composites: one call that launches several kernels in order, over one workspace.

A composite is data of the manifest: its own arguments, buffers of a workspace, and steps, each a kernel with a buffer
for every argument. The workspace is an argument of the call that may be left out; then it is taken from the device's
memory pool in the order of the stream and given back behind the last step. Where the one that was given is too small
for the whole problem, the call goes in chunks along the composite's ``split`` dimension.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from . import dlpack, emulated, expression, signature
from .call import Call
from .dlpack import Buffer
from .errors import ShapeError
from .expression import Number, ceil_div, round_up
from .launchable import Launchable
from .manifest import DTYPE_BYTES, Argument, Composite, Family, Step
from .plan import Plan
from .registry import Registry
from .select import Decision, DeviceFacts
from .signature import Problem
from .values import named

WORKSPACE = Argument("workspace", "out", ("u8",), ("workspace_bytes",), 256,
                     "memory for what the steps hand on; may be left out")
ALIGNMENT = WORKSPACE.alignment  # of each buffer in it

# Where the "buffer" of an argument comes from that a step leaves out: address 0, the last of all bases.
_NOTHING = (-1, 0)

# Buffers of a problem whose addresses are not known yet lie this far apart.
_APART = 1 << 44


class CompositeCall(Call):
    """One composite of a registry with its ``device``, with or without a workspace of the caller."""

    def __init__(self, name: str, device: Any, found: Registry, with_workspace: bool) -> None:
        self.with_workspace = with_workspace
        super().__init__(name, device, None, found)
        self.composite: Composite = self.registry.composites[name]
        self.kernels = tuple(dict.fromkeys(step.kernel for step in self.composite.steps))
        self.steps = [_Step(step, Call(step.kernel, device, None, found)) for step in self.composite.steps]
        for step in self.steps:
            step.call.kernels = self.kernels
        self._shapes = {entry.name: tuple(map(expression.function, entry.shape))
                        for entry in (*self.composite.signature.arguments, *self.composite.workspace)}

    def signature(self, name: str) -> Family:
        family = self.registry.composites[name].signature
        return family._replace(arguments=(*family.arguments, WORKSPACE)) if self.with_workspace else family

    def resolve(self, problem: Problem, place: tuple[int, int], stream: int) -> PreparedComposite:
        if place[0] == dlpack.CPU:
            emulated.check_size(self.family, problem)
        values = problem.values
        total = int(values[self.composite.split])
        size = self._chunk(total, values) if self.with_workspace else total
        cache: dict[int, list[_Resolved]] = {}
        chunks, first = [], 0
        while first < total:
            count = min(size, total - first)
            if count not in cache:
                cache[count] = self._resolve_steps(problem, count, place, stream)
            chunks.append(_Chunk(first, cache[count]))
            first += count
        needed = 0 if self.with_workspace else self.workspace_bytes(values)
        return PreparedComposite(self, problem, place, chunks, needed)

    # The workspace

    def workspace_bytes(self, values: Mapping[str, Number]) -> int:
        """Bytes of the workspace for a whole problem."""
        return self._offsets(values)[1]

    def _offsets(self, values: Mapping[str, Number]) -> tuple[dict[str, int], int]:
        """Where each buffer begins in the workspace, and where the last one ends."""
        offsets, end = {}, 0
        for scratch in self.composite.workspace:
            offsets[scratch.name] = end
            size = values[f"sizeof_{scratch.dtype}"] if scratch.dtype not in DTYPE_BYTES else DTYPE_BYTES[scratch.dtype]
            end += round_up(math.prod(self._shape(scratch.name, values)) * size, ALIGNMENT)
        return offsets, end

    def _chunk(self, total: int, values: Mapping[str, Number]) -> int:
        """The largest size of equal chunks whose workspace fits into the one that was given."""
        split, given = self.composite.split, values[WORKSPACE.shape[0]]

        def fits(count: int) -> bool:
            return self.workspace_bytes({**values, split: count}) <= given

        if fits(total):
            return total
        low, high = 0, total  # fits(low), not fits(high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        if not low:
            whole, least = (self.workspace_bytes({**values, split: count}) for count in (total, 1))
            raise ShapeError(
                f"{self.family.name}: workspace expects {whole} bytes, or at least {least} to go through {split} = "
                f"{total} in chunks, got {given}", kernel=self.family.name, argument=WORKSPACE.name, expected=least,
                got=given)
        return ceil_div(total, ceil_div(total, low))

    def _shape(self, name: str, values: Mapping[str, Number]) -> tuple[int, ...]:
        return tuple(int(extent(values)) for extent in self._shapes[name])

    # The steps

    def step_problems(self, problem: Problem, count: int, place: tuple[int, int]) -> list[tuple[_Step, Problem, Any]]:
        """Each step with its problem, for a chunk of ``count``; and where its buffers come from.

        The arguments' index and the first byte's offset: into the composite's argument, past the last one into the
        workspace, or ``_NOTHING``.
        """
        values = {**problem.values, self.composite.split: count}
        offsets, _ = self._offsets(values)
        arguments = self.composite.signature.arguments
        dtypes = dict(problem.dtypes)
        dtypes |= {scratch.name: dtypes.get(scratch.dtype, scratch.dtype) for scratch in self.composite.workspace}
        sources = {argument.name: (index, 0) for index, argument in enumerate(arguments)}
        sources |= {name: (len(arguments), offset) for name, offset in offsets.items()} | {None: _NOTHING}
        found = []
        for step in self.steps:
            names = [step.arguments[argument.name] for argument in step.call.family.arguments]
            buffers = []
            for name in names:
                if name not in dtypes:  # left out, by the step or by the call
                    buffers.append(dlpack.ABSENT)
                    continue
                index, offset = sources[name]
                buffers.append(Buffer((index + 1) * _APART + offset, *place, dlpack.ELEMENT_OF[dtypes[name]],
                                      self._shape(name, values), None, False))
            scalars = [value(values) for value in step.scalars]
            found.append((step, step.call.checker.check(buffers, scalars), tuple(sources[name] for name in names)))
        return found

    def _resolve_steps(self, problem: Problem, count: int, place: tuple[int, int], stream: int) -> list[_Resolved]:
        resolved = []
        for step, inner, sources in self.step_problems(problem, count, place):
            skip = step.call.family.skip
            if skip is None or not expression.evaluate(skip, inner.values):
                prepared = step.call.resolve(inner, place, stream)
                prepared.part_of = self.family.name
                resolved.append(_Resolved(prepared, sources))
        return resolved

    def decide(self, facts: DeviceFacts, problem: Problem) -> tuple[str | None, str | None, tuple[Decision, ...]]:
        """As of one kernel; variants are ``kernel/variant``, of every step."""
        decided = [(step.call.family.name, *step.call.decide(facts, inner)) for step, inner, _ in
                   self.step_problems(problem, int(problem.values[self.composite.split]), (dlpack.CUDA, 0))]
        decisions = tuple(d._replace(variant=f"{name}/{d.variant}") for name, _, _, found in decided for d in found)
        if any(variant is None for _, variant, _, _ in decided):
            return None, None, decisions
        return ", ".join(f"{name}/{variant}" for name, variant, _, _ in decided), decided[0][2], decisions


class CompositeCalls:
    """One composite, called with or without a workspace; stands where ``Call`` stands for a kernel."""

    def __init__(self, name: str, device: Any, found: Registry) -> None:
        self._with, self._without = (CompositeCall(name, device, found, given) for given in (True, False))

    def of(self, kwargs: Mapping[str, Any]) -> tuple[CompositeCall, Mapping[str, Any]]:
        """The call that takes these arguments, and the arguments without a workspace that is None."""
        if WORKSPACE.name not in kwargs:
            return self._without, kwargs
        if kwargs[WORKSPACE.name] is not None:
            return self._with, kwargs
        return self._without, {name: value for name, value in kwargs.items() if name != WORKSPACE.name}

    def launch(self, args: Sequence[Any], kwargs: Mapping[str, Any], stream: Any) -> None:
        call, kwargs = self.of(kwargs)
        call.launch(args, kwargs, stream)

    def plan(self, args: Sequence[Any], kwargs: Mapping[str, Any], stream: Any) -> Plan:
        call, kwargs = self.of(kwargs)
        return call.plan(args, kwargs, stream)


class _Step:
    """A step with the call of its kernel."""

    def __init__(self, step: Step, call: Call) -> None:
        self.call, self.arguments = call, step.arguments
        self.scalars = [expression.function(step.scalars[scalar.name]) for scalar in call.family.scalars]


class _Resolved(NamedTuple):
    """A step of one chunk size, and (argument, offset) of each of its buffers."""

    prepared: Launchable
    sources: tuple[tuple[int, int], ...]


class _Chunk(NamedTuple):
    first: int
    steps: list[_Resolved]


class PreparedComposite:
    """One problem of a composite on one device, addresses aside; stands where ``plan.Prepared`` stands for a kernel."""

    variant = grid = None

    def __init__(self, call: CompositeCall, problem: Problem, place: tuple[int, int], chunks: Sequence[_Chunk],
                 workspace_bytes: int) -> None:
        self.family, self.problem, self.kernel = call.family, problem, call.family.name
        self.steps = tuple(step.prepared.kernel for step in chunks[0].steps)
        prepared = chunks[0].steps[0].prepared
        self.device, self.arch = prepared.device, prepared.arch
        self.decisions = tuple(decision for step in chunks[0].steps for decision in step.prepared.decisions)
        self._emulated = place[0] == dlpack.CPU
        self._workspace_bytes, self._with_workspace = workspace_bytes, call.with_workspace
        arguments = call.composite.signature.arguments
        rows = [problem.values[f"sizeof_{a.name}"] * math.prod(call._shape(a.name, problem.values)[1:])
                if a.shape[:1] == (call.composite.split,) else 0 for a in arguments]
        self._launches = [(step.prepared, tuple((index, offset + chunk.first * [*rows, 0][index])
                                                for index, offset in step.sources))
                          for chunk in chunks for step in chunk.steps]
        self._given = len(arguments)
        self._ruled = [launch for launch in self._launches if self._has_rules_of_the_call(*launch)]
        self._checked: tuple[int, ...] | None = None  # the addresses that passed last
        self._bound: tuple[Any, list[Any]] = (None, [])

    def _has_rules_of_the_call(self, step: Launchable, sources: Sequence[tuple[int, int]]) -> bool:
        """Whether a step has a rule that is about what the call gives alone."""
        given = {argument.name for argument, (index, _) in zip(step.family.arguments, sources, strict=True)
                 if 0 <= index < self._given}
        return any(named(rule) <= given for rule in step.family.values)

    def check(self, pointers: Sequence[int]) -> None:
        signature.check_addresses(self.family, pointers, self.problem.bytes)

    def check_values(self, pointers: Sequence[int | None], stream: int) -> None:
        """Of the call's own buffers; what steps make for those behind them needs no check."""
        for prepared, sources in self._ruled:
            prepared.check_values([pointers[index] + offset if 0 <= index < self._given else None
                                   for index, offset in sources], stream)

    def slot(self, pointers: tuple[int, ...]) -> _Slot:
        return _Slot(self, pointers)

    def launch(self, pointers: tuple[int, ...], stream: int) -> None:
        if pointers != self._checked:
            self.check(pointers)
            self._checked = pointers
        self.run(pointers, stream)

    def run(self, pointers: tuple[int, ...], stream: int) -> None:
        """Launch every step with these addresses, which have passed ``check``."""
        if self._with_workspace:
            self._run((*pointers, 0), stream)
            return
        with self._workspace(stream) as address:
            self._run((*pointers, address, 0), stream)

    def _run(self, bases: tuple[int, ...], stream: int) -> None:
        known, launches = self._bound
        if known != bases:
            launches = [(prepared, tuple([bases[index] + offset for index, offset in sources]))
                        for prepared, sources in self._launches]
            self._bound = bases, launches
        if self._emulated:
            self.check_values(bases, stream)
            emulated.run_in_order(launches)
            return
        for prepared, pointers in launches:
            prepared.launch(pointers, stream)

    @contextmanager
    def _workspace(self, stream: int) -> Iterator[int]:
        if not self._emulated:
            with self.device.scratch(self._workspace_bytes, stream, kernel=self.kernel) as address:
                yield address
            return
        memory = ctypes.create_string_buffer(self._workspace_bytes + ALIGNMENT)
        ctypes.memset(memory, 0xFF, len(memory))  # NaN for whoever reads what no step wrote
        yield round_up(ctypes.addressof(memory), ALIGNMENT)


class _Slot:
    """Addresses of one launch."""

    def __init__(self, prepared: PreparedComposite, pointers: tuple[int, ...]) -> None:
        self._prepared, self._pointers = prepared, pointers

    def launch(self, stream: int) -> None:
        self._prepared.run(self._pointers, stream)
