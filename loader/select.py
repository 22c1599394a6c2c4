"""Which artifact runs a problem on a device, with a reason for every candidate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from loader import arch, expression
from loader.errors import NoKernelError, UnknownVariantError
from loader.expression import Number
from loader.manifest import Artifact, Family, MeasuredRow
from loader.registry import Candidate, Registry, closest_names


class DeviceFacts(NamedTuple):
    """What selection needs to know of a device; ``shared_limit`` is dynamic shared memory a CTA may opt in to."""

    name: str
    capability: tuple[int, int]
    sm_count: int
    shared_limit: int


class Decision(NamedTuple):
    """One candidate: ``accepted`` is true for the one that runs, ``reason`` says why or why not."""

    variant: str
    arch: str
    pack: str
    accepted: bool
    reason: str


class Selection(NamedTuple):
    chosen: Candidate
    decisions: tuple[Decision, ...]


def _hardware_refusal(artifact: Artifact, device: DeviceFacts, variant: str | None) -> str | None:
    if variant is not None and artifact.variant != variant:
        return f"the call asks for variant {variant}"
    reason = arch.refusal(arch.ARCHS[artifact.arch], device.capability)
    needed = artifact.launch.shared + artifact.static_shared
    if reason is None and needed > device.shared_limit:
        return f"needs {needed} bytes of shared memory, the device gives {device.shared_limit}"
    return reason


def _refusal(artifact: Artifact, family: Family, device: DeviceFacts, dtypes: Mapping[str, str],
             variant: str | None) -> str | None:
    reason = _hardware_refusal(artifact, device, variant)
    for axis, argument in family.match.items():
        if reason is None and artifact.axes[axis] != dtypes[argument]:
            reason = f"computes {argument} as {artifact.axes[axis]}, the call has {dtypes[argument]}"
    return reason


def runnable(registry: Registry, family: Family, device: DeviceFacts, variant: str | None = None) -> list[Candidate]:
    """Every artifact of a family that some problem could run on a device."""
    everything = _known_variant(registry, family, variant)
    return list(_best_archs([c for c in everything
                             if _hardware_refusal(c.artifact, device, variant) is None]).values())


def _known_variant(registry: Registry, family: Family, variant: str | None) -> list[Candidate]:
    """The family's candidates; ``UnknownVariantError`` if none has the variant asked for."""
    everything = registry.candidates(family.name)
    known = sorted({candidate.artifact.variant for candidate in everything})
    if variant is not None and variant not in known:
        closest = closest_names(str(variant), known)
        hint = f"; did you mean {' or '.join(closest)}?" if closest else ""
        raise UnknownVariantError(f"{family.name} has no variant {variant!r}; known are {', '.join(known)}{hint}",
                                  name=family.name, variant=variant, known=known, closest=closest)
    return everything


def _best_archs(fitting: Sequence[Candidate]) -> dict[str, Candidate]:
    """Of each variant, the candidate of the most specific arch."""
    best: dict[str, Candidate] = {}
    for candidate in fitting:
        name = candidate.artifact.variant
        if name not in best or _rank(candidate) > _rank(best[name]):
            best[name] = candidate
    return best


def _rank(candidate: Candidate) -> tuple[int, int, int]:
    return arch.rank(arch.ARCHS[candidate.artifact.arch])


def _distance(features: Mapping[str, float], row: MeasuredRow) -> float:
    """Euclidean distance of the features' binary logarithms; a feature of 0 counts as 2^-20."""
    return math.dist(*([math.log2(max(values[key], 2.0**-20)) for key in row.features]
                       for values in (features, row.features)))


def _nearest_row(family: Family, device: DeviceFacts, features: Mapping[str, float],
                 candidates: Mapping[str, Candidate]) -> MeasuredRow | None:
    """The nearest measured row that times a candidate; rows of this very device come first."""
    timed = {(c.artifact.arch, c.artifact.tile) for c in candidates.values()}
    rows = [row for row in family.measured if any((row.arch, tile) in timed for tile in row.microseconds)]
    rows = [row for row in rows if row.device == device.name] or rows
    return min(rows, key=lambda row: _distance(features, row), default=None)


def _point(features: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in features.items())


def _by_measurement(row: MeasuredRow, candidates: Mapping[str, Candidate]) -> tuple[str, dict[str, str]]:
    times = {name: row.microseconds[c.artifact.tile] for name, c in candidates.items()
             if c.artifact.arch == row.arch and c.artifact.tile in row.microseconds}
    chosen = min(times, key=lambda name: (times[name], name))
    where = f"measured at {_point(row.features)} on {row.device}"
    return chosen, {name: f"{times[name]:g} us {where}" if name in times else f"not {where}" for name in candidates}


def _by_cost(candidates: Mapping[str, Candidate],
             values: Mapping[str, Number]) -> tuple[str | None, dict[str, str]]:
    costs = {name: expression.evaluate(c.artifact.cost, {**values, **c.artifact.axes})
             for name, c in candidates.items() if c.artifact.cost is not None}
    chosen = min(costs, key=lambda name: (costs[name], name), default=None)
    return chosen, {name: f"{costs[name]:g} us estimated" if name in costs else "neither measured nor estimated"
                    for name in candidates}


def select(registry: Registry, family: Family, device: DeviceFacts, dtypes: Mapping[str, str],
           values: Mapping[str, Number], variant: str | None = None) -> Selection:
    """The artifact for a problem.

    ``dtypes`` are those of the arguments, ``values`` dimensions, scalars and element sizes. ``NoKernelError`` carries
    the decisions.
    """
    everything = _known_variant(registry, family, variant)
    values = {**values, "sm_count": device.sm_count}
    features = {key: expression.evaluate(value, values) for key, value in family.features.items()}
    refusals = [(c, _refusal(c.artifact, family, device, dtypes, variant)) for c in everything]
    fitting = _best_archs([candidate for candidate, refusal in refusals if refusal is None])
    row = _nearest_row(family, device, features, fitting)
    if row is not None:
        chosen, reasons = _by_measurement(row, fitting)
    else:
        chosen, reasons = _by_cost(fitting, {**values, **features})
    if chosen is None and len(fitting) == 1:  # the only one needs no estimate
        chosen = next(iter(fitting))

    decisions = []
    for candidate, refusal in refusals:
        name = candidate.artifact.variant
        accepted = refusal is None and chosen == name and fitting[name] is candidate
        if refusal is None and fitting[name] is not candidate:
            refusal = f"sm_{fitting[name].artifact.arch} is more specific"
        decisions.append(Decision(name, candidate.artifact.arch, candidate.pack.directory, accepted,
                                  refusal or reasons[name]))
    if chosen is None:
        raise _no_kernel(family, device, decisions)
    return Selection(fitting[chosen], tuple(decisions))


def _no_kernel(family: Family, device: DeviceFacts, decisions: Sequence[Decision]) -> NoKernelError:
    archs = sorted({decision.arch for decision in decisions})
    lines = [f"  {d.variant} sm_{d.arch}: {d.reason}" for d in decisions]
    major, minor = device.capability
    return NoKernelError(
        f"no variant of {family.name} runs this on {device.name} (compute capability {major}.{minor}); the packs hold "
        f"{', '.join('sm_' + name for name in archs) or 'no artifact of it'}\n" + "\n".join(lines),
        kernel=family.name, device=device.name, decisions=tuple(decisions))
