"""Which artifact runs a problem on a device, with a reason for every candidate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from . import arch, expression
from .errors import NoKernelError, UnknownVariantError
from .expression import Number
from .manifest import Artifact, Family, MeasuredRow
from .registry import Candidate, Registry, closest_names
from .tuned import TunedRow

# What may decide: the caller; a measured row of the very problem on a device of this name; another row, near or far;
# the manifest's estimate; or that there is no choice.
REASONS = ("named", "measured", "nearest", "far", "estimated", "only")
# A row is far from a problem where some feature of one is more than so many times that of the other.
FAR = 2


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


def _is_far(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return any(max(value, other[key]) > FAR * min(value, other[key]) for key, value in one.items())


def _point(features: Mapping[str, float], keys: Iterable[str]) -> tuple[float, ...]:
    """Features as binary logarithms; one of 0 counts as 2^-20."""
    return tuple(math.log2(max(features[key], 2.0**-20)) for key in keys)


class Choice:
    """The candidates of a family for one device and the dtypes of the arguments: selection, but for the problem.

    A new problem of a known choice costs one estimate a candidate that fits, and no words: ``Selection`` finds the
    reasons when it is asked.
    """

    def __init__(self, registry: Registry, family: Family, device: DeviceFacts, dtypes: Mapping[str, str],
                 variant: str | None) -> None:
        self.family, self.device, self.variant = family, device, variant
        self.refusals = [(candidate, _refusal(candidate.artifact, family, device, dtypes, variant))
                         for candidate in _known_variant(registry, family, variant)]
        self.fitting = _best_archs([candidate for candidate, refusal in self.refusals if refusal is None])
        self._features = {key: expression.function(value) for key, value in family.features.items()}
        self._costs = {name: (expression.function(c.artifact.cost), c.artifact.axes)
                       for name, c in self.fitting.items() if c.artifact.cost is not None}
        self._rules = {name: [(rule.text, expression.function(rule.expression)) for rule in c.artifact.requires]
                       for name, c in self.fitting.items() if c.artifact.requires}
        self._rows = [(_point(row.features, self._features), row) for row in self._measured()]
        self._tuned = self._tuned_by(registry.tuned.get(family.name, ()))

    def _measured(self) -> list[MeasuredRow]:
        """The measured rows that time a candidate; only those of this very device, if there are some."""
        timed = {(c.artifact.arch, c.artifact.tile) for c in self.fitting.values()}
        rows = [row for row in self.family.measured if any((row.arch, tile) in timed for tile in row.microseconds)]
        return [row for row in rows if row.device == self.device.name] or rows

    def _tuned_by(self, rows: Sequence[TunedRow]) -> dict[tuple[float, ...], tuple[str, MeasuredRow]]:
        """By features: the user's row that decides there, and for which variant. A row of another cubin is dead."""
        variants = {c.artifact.binary.sha256: name for name, c in self.fitting.items()}
        found = {}
        for row in sorted(rows, key=lambda row: -row.microseconds):  # of several the fastest
            name = variants.get(row.cubin)
            if name is not None and row.device == self.device.name and row.features.keys() == self._features.keys():
                artifact = self.fitting[name].artifact
                found[tuple([row.features[key] for key in self._features])] = name, MeasuredRow(
                    artifact.arch, row.device, row.features, {artifact.tile: row.microseconds})
        return found

    def select(self, values: Mapping[str, Number]) -> Selection:
        """The artifact for a problem: that of a tuned row of it, else the fastest at the nearest measured point, else
        the lowest estimate.

        ``values`` are dimensions, scalars and element sizes. ``NoKernelError`` carries the decisions.
        """
        values = {**values, "sm_count": self.device.sm_count}
        features = {key: feature(values) for key, feature in self._features.items()}
        unfit = self._unfit(values)
        row = None
        tuned, tuned_row = self._tuned.get(tuple(features.values()), (None, None)) if self._tuned else (None, None)
        if tuned is not None and tuned not in unfit:
            row, scores = tuned_row, {tuned: tuned_row.microseconds[self.fitting[tuned].artifact.tile]}
        elif self._rows:
            here = _point(features, features)
            rows = [entry for entry in self._rows if self._times(entry[1], unfit)] if unfit else self._rows
            _, row = min(rows, key=lambda entry: math.dist(here, entry[0]), default=(None, None))
            scores = self._times(row, unfit) if row else {}
        else:
            values.update(features)
            scores = {name: cost({**values, **axes}) for name, (cost, axes) in self._costs.items() if name not in unfit}
        chosen = min(scores, key=lambda name: (scores[name], name), default=None)
        left = self.fitting.keys() - unfit
        if chosen is None and len(left) == 1:  # the only one needs no estimate
            chosen = left.pop()
        if chosen is None:
            raise _no_kernel(self.family, self.device, _decisions(self, None, scores, row, unfit))
        return Selection(self, self.fitting[chosen], scores, row, unfit, features)

    def _times(self, row: MeasuredRow, unfit: Mapping[str, str]) -> dict[str, float]:
        return {name: row.microseconds[c.artifact.tile] for name, c in self.fitting.items()
                if c.artifact.arch == row.arch and c.artifact.tile in row.microseconds and name not in unfit}

    def _unfit(self, values: Mapping[str, Number]) -> dict[str, str]:
        """The candidates that require something else of a problem, and what."""
        unfit = {}
        for name, rules in self._rules.items():
            of_variant = {**values, **self.fitting[name].artifact.axes}
            if broken := [text for text, holds in rules if not holds(of_variant)]:
                unfit[name] = f"requires {' and '.join(broken)}"
        return unfit


class Selection:
    """The candidate chosen for a problem, and what it was chosen by; ``features`` are those of the problem."""

    __slots__ = ("chosen", "features", "_choice", "_scores", "_row", "_unfit")

    def __init__(self, choice: Choice, chosen: Candidate, scores: Mapping[str, float], row: MeasuredRow | None,
                 unfit: Mapping[str, str], features: Mapping[str, Number]) -> None:
        self.chosen, self._choice, self._scores, self._row, self._unfit = chosen, choice, scores, row, unfit
        self.features = features

    @property
    def reason(self) -> str:
        """What decided, in a word of ``REASONS``."""
        if self._choice.variant is not None:
            return "named"
        if self._row is None:
            return "estimated" if self._scores else "only"
        if self._row.device == self._choice.device.name and self._row.features == self.features:
            return "measured"
        return "far" if _is_far(self.features, self._row.features) else "nearest"

    @property
    def candidates(self) -> dict[str, Candidate]:
        """By variant, all that could run the problem."""
        return {name: found for name, found in self._choice.fitting.items() if name not in self._unfit}

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Every candidate with its reason."""
        return _decisions(self._choice, self.chosen, self._scores, self._row, self._unfit)


def _decisions(choice: Choice, chosen: Candidate | None, scores: Mapping[str, float],
               row: MeasuredRow | None, unfit: Mapping[str, str]) -> tuple[Decision, ...]:
    how, without = "estimated", "neither measured nor estimated"
    if row is not None:
        how = f"measured at {', '.join(f'{key} {value:g}' for key, value in row.features.items())} on {row.device}"
        without = f"not {how}"
    decisions = []
    for candidate, refusal in choice.refusals:
        name = candidate.artifact.variant
        if refusal is None and choice.fitting[name] is not candidate:
            refusal = f"sm_{choice.fitting[name].artifact.arch} is more specific"
        reason = refusal or unfit.get(name) or (f"{scores[name]:g} us {how}" if name in scores else without)
        decisions.append(Decision(name, candidate.artifact.arch, candidate.pack.directory, candidate is chosen, reason))
    return tuple(decisions)


def _no_kernel(family: Family, device: DeviceFacts, decisions: Sequence[Decision]) -> NoKernelError:
    archs = sorted({decision.arch for decision in decisions})
    lines = [f"  {d.variant} sm_{d.arch}: {d.reason}" for d in decisions]
    major, minor = device.capability
    return NoKernelError(
        f"no variant of {family.name} runs this on {device.name} (compute capability {major}.{minor}); the packs hold "
        f"{', '.join('sm_' + name for name in archs) or 'no artifact of it'}\n" + "\n".join(lines),
        kernel=family.name, device=device.name, decisions=decisions)
