"""Which variant is fastest here: all that could run a problem are timed on the device, in turn.

Needs the driver alone. A variant beats another one where the slowest of its blocks is faster than the fastest of the
other's: then the difference is more than the noise. What beats the choice of the packs becomes a row of a user's file.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from . import __version__, buffer_specs, dlpack, expression, operands
from .call import Call
from .driver import OUT_OF_MEMORY, Device
from .errors import DriverError, LoaderError, TuningError
from .launchable import Slot
from .manifest import Family
from .problems import Shape
from .registry import Registry
from .select import Selection
from .signature import Problem
from .tuned import TunedRow

BLOCKS = 7  # of which each gives a time of each variant
ROUNDS = 6  # of a block, in each of which every variant has its turn with every routing
ROUTINGS = 2  # real ones are uneven, and one may suit a tile
# Written before each launch: twice the largest L2, and time for the host to queue what follows.
FLUSH_BYTES = 256 << 20
STREAM = 0


class Task(NamedTuple):
    """A shape that can be launched, and what the packs would run."""

    shape: Shape
    call: Call
    problem: Problem
    selection: Selection

    @property
    def default(self) -> str:
        return self.selection.chosen.artifact.variant

    def variant_of(self, rows: Iterable[TunedRow], device: Device) -> str | None:
        """The variant that a row of this very problem names, None where there is no such row."""
        variants = {found.artifact.binary.sha256: name for name, found in self.selection.candidates.items()}
        return next((variants[row.cubin] for row in rows if row.cubin in variants and row.kernel == self.shape.kernel
                     and row.device == device.facts.name and row.features == self.selection.features), None)


class Outcome(NamedTuple):
    """What came of a shape. times: microseconds of each block by variant; none where there is one variant, and where
    ``error`` says why it was not timed. row: what is to be kept, if anything beats the default."""

    shape: Shape
    task: Task | None
    times: Mapping[str, Sequence[float]]
    row: TunedRow | None
    error: LoaderError | None = None


def tune(found: Registry, shapes: Iterable[Shape], device: Device, rows: Sequence[TunedRow],
         seed: int) -> Iterator[Outcome]:
    """Time every shape on a device; of those that are one problem to selection, the first.

    found: packs without tuned rows, whose choice is the default. rows: those of earlier, which stay where nothing is
    faster by more than the noise. An error of a shape is its outcome; those of the driver are raised, but that memory
    is short.
    """
    known = set()
    with device.current(), device.scratch(FLUSH_BYTES, STREAM) as flush:
        for shape in shapes:
            try:
                task = task_of(found, shape, device)
                key = shape.kernel, tuple(task.selection.features.values()), frozenset(task.selection.candidates)
                if key in known:
                    continue
                known.add(key)
                outcome = _outcome(task, device, flush, rows, random.Random(seed))
            except LoaderError as error:
                if isinstance(error, DriverError) and error.facts.get("code") != OUT_OF_MEMORY:
                    raise
                outcome = Outcome(shape, None, {}, None, error)
            yield outcome


def merged(rows: Iterable[TunedRow], outcome: Outcome, device: Device) -> list[TunedRow]:
    """The rows with what came of a shape in the place of what was known of it. Those of other cubins are others'."""
    if not outcome.times:
        return list(rows)
    kept = [row for row in rows if outcome.task.variant_of([row], device) is None]
    return kept if outcome.row is None else [*kept, outcome.row]


def choose(times: Mapping[str, Sequence[float]], default: str, incumbent: str | None) -> str | None:
    """The variant to keep, None for the default: the fastest of those that beat it, but the incumbent before one that
    does not beat that."""
    better = [variant for variant in times if _beats(times[variant], times[default])]
    best = min(better, key=lambda variant: (statistics.median(times[variant]), variant), default=None)
    if incumbent in better and not _beats(times[best], times[incumbent]):
        return incumbent
    return best


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return max(one) < min(other)


def task_of(found: Registry, shape: Shape, device: Device) -> Task:
    """What a shape comes to on a device; ``LoaderError`` as for a launch, and where nothing would be launched."""
    call = Call(shape.kernel, device.ordinal, None, found)
    problem, _ = buffer_specs.solved(call, (), {**_assumed(call.family), **shape.given})
    skip = call.family.skip
    if skip is not None and expression.evaluate(skip, problem.values):
        raise TuningError(f"{shape.kernel}: nothing to compute: {expression.to_text(skip)}", expected="work", got=None)
    return Task(shape, call, problem, call.select(device.facts, problem))


def _assumed(family: Family) -> dict[str, str | float]:
    """Words and floats that a shape need not say, though a call must: no choice depends on them, and no time that
    matters."""
    return {scalar.name: scalar.choices[0] if scalar.choices else 1.0 for scalar in family.scalars
            if scalar.default is None and (scalar.choices or scalar.dtype == "f32")}


def _outcome(task: Task, device: Device, flush: int, rows: Sequence[TunedRow], draw: random.Random) -> Outcome:
    candidates, times = task.selection.candidates, {}
    if len(candidates) > 1:
        with ExitStack() as stack:
            places = _operands(stack, task, device, draw)
            calls = [Call(task.shape.kernel, device.ordinal, name, task.call.registry) for name in candidates]
            prepared = [call.resolve(task.problem, (dlpack.CUDA, device.ordinal), STREAM) for call in calls]
            for place in places:
                prepared[0].check(place)
                prepared[0].check_values(place, STREAM)
            slots = [[one.slot(place) for place in places] for one in prepared]
            _block(device, slots, flush, draw)  # which warms up
            blocks = [_block(device, slots, flush, draw) for _ in range(BLOCKS)]
            times = dict(zip(candidates, zip(*blocks, strict=True), strict=True))
    chosen = choose(times, task.default, task.variant_of(rows, device)) if times else None
    return Outcome(task.shape, task, times, None if chosen is None else _row(task, device, times, chosen))


def _operands(stack: ExitStack, task: Task, device: Device, draw: random.Random) -> list[tuple[int, ...]]:
    """Addresses of the arguments for each routing, in device memory that goes with ``stack``."""
    family, problem = task.call.family, task.problem
    routings = [operands.integers(draw, family, problem, task.selection.features) for _ in range(ROUTINGS)]
    columns = []
    for argument, size in zip(family.arguments, problem.bytes, strict=True):
        if argument.name not in problem.dtypes:
            columns.append([0] * ROUTINGS)
            continue
        given = [routing[argument.name] for routing in routings if argument.name in routing]
        places = [stack.enter_context(device.scratch(max(size, 1), STREAM)) for _ in given or [None]]
        for place, content in zip(places, given, strict=False):
            device.write(place, content, STREAM)
        if not given and argument.direction != "out":
            _fill(device, places[0], operands.elements(draw, problem.dtypes[argument.name], size))
        columns.append(places if given else places * ROUTINGS)
    return list(zip(*columns, strict=True))


def _fill(device: Device, place: int, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        device.write(place, piece, STREAM)
        place += len(piece)


def _block(device: Device, slots: Sequence[Sequence[Slot]], flush: int, draw: random.Random) -> list[float]:
    """Of each variant the median of its rounds in microseconds, the mean of the routings. What heats or slows the
    device meets all variants alike, since their order is drawn anew in each round."""
    order: list[tuple[int, int]] = []
    for _ in range(ROUNDS):
        turns = [(variant, routing) for variant in range(len(slots)) for routing in range(ROUTINGS)]
        draw.shuffle(turns)
        order += turns
    times: dict[tuple[int, int], list[float]] = {}
    with device.events(2 * len(order)) as events:
        for (variant, routing), begin, end in zip(order, events[::2], events[1::2], strict=True):
            device.clear(flush, FLUSH_BYTES, STREAM)
            device.record(begin, STREAM)
            slots[variant][routing].launch(STREAM)
            device.record(end, STREAM)
        for turn, begin, end in zip(order, events[::2], events[1::2], strict=True):
            times.setdefault(turn, []).append(device.microseconds(begin, end))
    return [statistics.fmean(statistics.median(times[variant, routing]) for routing in range(ROUTINGS))
            for variant in range(len(slots))]


def _row(task: Task, device: Device, times: Mapping[str, Sequence[float]], chosen: str) -> TunedRow:
    pack, artifact = task.selection.candidates[chosen]
    median, version = statistics.median(times[chosen]), device.driver.version
    return TunedRow(
        task.shape.kernel, chosen, artifact.binary.sha256, artifact.arch, device.facts.name,
        dict(task.selection.features), round(median, 3), round((max(times[chosen]) - min(times[chosen])) / median, 4),
        task.default, round(statistics.median(times[task.default]), 3),
        {"loader": __version__, "driver": f"CUDA {version // 1000}.{version % 1000 // 10}", "pack": pack.digest})
