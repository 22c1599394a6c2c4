"""The performance model: what the tiles of a persistent GEMM wait for, in clocks, and what a launch waits for.

The time of a launch is the longest of these: the multiprocessor (SM) with most work, memory, both of them wave by wave,
and the limit of power; beyond that a launch takes ``start``. ``docs/model.md`` tells the terms, and how far they are
from recorded times.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from chips import RATES, Chip, Rates, product_clocks
from kernel_facts import CHUNK, Facts

JOB_ROWS, JOB_DEPTH = 16, 128  # what a dequantising warp of Hopper takes at once
SWATH = 16  # row tiles whose columns come in turn
SM, MEMORY, WAVES, POWER = "busiest SM", "memory", "waves", "power"  # terms


class Problem(NamedTuple):
    """Rows of each expert, and N and K of its weights."""

    counts: tuple[int, ...]
    n: int
    k: int


class Prediction(NamedTuple):
    """Microseconds of a launch, and of the terms whose longest counts. ``stage``: clocks of a stage of a whole tile, by
    what it may wait for."""

    microseconds: float
    terms: dict[str, float]
    stage: dict[str, float]

    @property
    def bound(self) -> str:
        """The longest term but waves, which are made of others; of SMs also what a stage of theirs waits for."""
        longest = max(self.terms.keys() - {WAVES}, key=self.terms.__getitem__)
        return f"{longest}: {max(self.stage, key=self.stage.__getitem__)}" if longest == SM else longest


def stage_clocks(chip: Chip, facts: Facts, rows: int, resident: int, rates: Rates = RATES) -> dict[str, float]:
    """Of a stage of a tile of so many rows, by what it may wait for, where so many CTAs share a multiprocessor."""
    multiplied, loop = facts.loop(rows)
    clocks = loop.products * product_clocks(facts.generation, multiplied, facts.pair)
    terms = {"loads": resident * facts.stage_bytes / chip.intake.value * chip.clock.value}
    if facts.generation == "10":  # one thread issues for the whole SM
        return terms | {"tensor core": resident * clocks, "issue": rates.lone_warp.value * loop.issued}
    tensor, slots = clocks * facts.warps / 4, loop.slots * facts.warps / 4
    if not facts.token_warps:
        return terms | {"tensor core": resident * tensor, "issue": resident * slots}
    groups = facts.block[2] / JOB_DEPTH
    token_slots = -(-rows // JOB_ROWS) * groups * facts.job.issued / facts.token_warps
    # The same warps dequantise weights and wait for their products: neither hides the other.
    multiplying = tensor + slots + rates.token_issue.value * token_slots
    return terms | {"weights and products": resident * multiplying + rates.hand_over.value * groups,
                    "tokens": rates.lone_warp.value * token_slots}  # fmt: skip


def tile_clocks(chip: Chip, facts: Facts, rows: int, depth: int, resident: int, rates: Rates = RATES) -> float:
    """Of a tile. Warps that have only the epilogue work beside the next tile; else the next one waits for it."""
    stages = -(-depth // facts.block[2]) * max(stage_clocks(chip, facts, rows, resident, rates).values())
    if facts.chunk.issued:
        return max(stages, rates.lone_warp.value * facts.chunk.issued * -(-rows // CHUNK))
    return stages + rates.between_tiles.value * facts.around.issued * facts.warps / 4


def tile_rows(problem: Problem, facts: Facts) -> np.ndarray:
    """Rows of each tile, in the order in which CTAs take them."""
    tokens, columns = facts.block[0], -(-problem.n // facts.block[1])
    found = [np.zeros(0, int)]
    for count in problem.counts:
        rows = np.minimum(tokens, count - np.arange(0, count, tokens))
        for swath in np.split(rows, range(SWATH, len(rows), SWATH)) if count else []:
            turns = (np.arange(len(swath)) + np.arange(columns)[:, None]) % len(swath)
            found.append(swath[turns].ravel())
    return np.concatenate(found)


def memory_bytes(problem: Problem, facts: Facts) -> float:
    """Weights of every expert that has rows, tokens and results, once each."""
    (tokens, weights), depth = facts.row_bytes, facts.block[2]
    experts, rows = sum(count > 0 for count in problem.counts), sum(problem.counts)
    return (experts * problem.n * weights + rows * tokens) * problem.k / depth + rows * problem.n * facts.out_bytes


def joules(problem: Problem, facts: Facts, tiles: int, rates: Rates = RATES) -> float:
    """Of the products that a problem asks for, and of dequantised weights: all of its column block in every tile."""
    products = 2 * sum(problem.counts) * problem.n * problem.k * rates.product.value
    return (products + tiles * facts.block[1] * problem.k * rates.weight.value * bool(facts.token_warps)) * 1e-12


def predict(chip: Chip, facts: Facts, problem: Problem, rates: Rates = RATES) -> Prediction:
    """Of one launch. A problem without rows takes ``start``."""
    rows = tile_rows(problem, facts)
    ctas = min(facts.ctas_per_sm * int(chip.sms.value), len(rows))
    resident = max(1, -(-ctas // int(chip.sms.value)))
    clocks = {count: tile_clocks(chip, facts, count, problem.k, resident, rates) for count in set(rows.tolist())}
    times = np.array([clocks[count] for count in rows.tolist()]) / chip.clock.value / 1e3
    memory = memory_bytes(problem, facts) / chip.dram.value / 1e6
    waves = [times[first : first + ctas] for first in range(0, len(rows), ctas)] if ctas else []
    terms = {
        SM: max(np.bincount(np.arange(len(rows)) % max(ctas, 1), times), default=0.0),
        MEMORY: memory,
        WAVES: sum(max(wave.mean(), memory * len(wave) / len(rows)) for wave in waves),
    }
    if chip.power is not None:
        terms[POWER] = joules(problem, facts, len(rows), rates) / chip.power.value * 1e6
    stage = stage_clocks(chip, facts, facts.block[0], resident, rates)
    terms = {name: float(time) for name, time in terms.items()}
    return Prediction(max(terms.values()) + chip.start.value, terms, stage)
