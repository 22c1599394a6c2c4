"""One problem as every schedule has it: rows packed by expert, in a matrix each with a count, or of one matrix."""

from __future__ import annotations

import numpy as np
import reference


def masked_inputs(problem: reference.GroupedProblem, rng: np.random.Generator, max_rows: int) -> dict[str, np.ndarray]:
    """The inputs of ``grouped_fp4`` by ``mask``. Rows from the mask on hold any elements, and NaN for scales."""
    _, _, k, experts = problem.shape
    counts, groups = np.diff(problem.expert_offsets), problem.a_groups.shape[1]
    a = rng.integers(0, 256, (experts, max_rows, k // 2), dtype=np.uint8)
    scales = np.full((experts, reference.round_up(max_rows, 128), reference.round_up(groups, 4)), reference.NAN_SCALE,
                     np.uint8)
    for e, (begin, count) in enumerate(zip(problem.expert_offsets[:-1], counts, strict=True)):
        a[e, :count] = problem.a[begin : begin + count]
        scales[e, :count, :groups] = problem.a_groups[begin : begin + count]
    kept = {name: value for name, value in problem.inputs().items() if name in ("b", "b_scale", "alpha")}
    return {**kept, "a": a, "a_scale": reference.to_scale_layout(scales), "mask": counts.astype(np.int32)}


def dense_inputs(problem: reference.GroupedProblem) -> dict[str, np.ndarray]:
    """The inputs of ``gemm_fp4``, of a problem with one expert."""
    given = problem.inputs()
    return {"a": given["a"], "b": given["b"][0], "a_scale": given["a_scale"], "b_scale": given["b_scale"][0],
            "alpha": given["alpha"]}


def verify_masked(
    problem: reference.GroupedProblem, expected: reference.Expected, out: np.ndarray, out_type: str, context: str
) -> None:
    """Every element of the valid rows of ``out`` [E, Mmax, N] within the bound, and every other byte 0xFF as before."""
    counts = np.diff(problem.expert_offsets)
    valid = np.arange(out.shape[1]) < counts[:, None]
    reference.check(reference.as_float64(out[valid], out_type), expected, problem.shape[2], out_type, context)
    assert (out[~valid].view(np.uint8) == reference.GuardedOutput.POISON).all(), f"{context}: wrote beyond the mask"
