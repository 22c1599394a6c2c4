"""One problem as every schedule has it: rows packed by expert, in a matrix each with a count, or of one matrix."""

from __future__ import annotations

import dataclasses

import numpy as np
import reference

import loader

MX_OPERANDS = {"mxfp4": reference.MXFP4, "mxfp8": reference.MXFP8, "mxfp8_mxfp4": reference.MXFP8_MXFP4}
OPERANDS = {"fp4": reference.NVFP4, **MX_OPERANDS}


def masked_inputs(problem: reference.GroupedProblem, rng: np.random.Generator, max_rows: int) -> dict[str, np.ndarray]:
    """The inputs of ``grouped_fp4`` and its like by ``mask``. Rows from the mask on hold any elements, and NaN for
    scales."""
    experts, counts, groups = problem.shape[3], np.diff(problem.expert_offsets), problem.a_groups.shape[1]
    a = rng.integers(0, 256, (experts, max_rows, problem.a.shape[1]), dtype=np.uint8)
    scales = np.full((experts, reference.round_up(max_rows, 128), reference.round_up(groups, 4)),
                     problem.formats.nan_scale, np.uint8)
    for e, (begin, count) in enumerate(zip(problem.expert_offsets[:-1], counts, strict=True)):
        a[e, :count] = problem.a[begin : begin + count]
        scales[e, :count, :groups] = problem.a_groups[begin : begin + count]
    kept = {name: value for name, value in problem.inputs().items() if name in ("b", "b_scale", "alpha")}
    return {**kept, "a": a, "a_scale": reference.to_scale_layout(scales), "mask": counts.astype(np.int32)}


def places(problem: reference.GroupedProblem, max_rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Of each owned row: its row in a and out, and that of its scales; where given, of matrices of ``max_rows``."""
    counts = np.diff(problem.expert_offsets)
    experts = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(experts))
    within = rows - problem.expert_offsets[experts]
    if max_rows is None:
        return rows, within + problem.scale_offsets[experts]
    return within + experts * max_rows, within + experts * reference.round_up(max_rows, 128)


def extents(problem: reference.GroupedProblem, max_rows: int | None = None) -> tuple[int, int]:
    """Rows of a and out, and of scales; where given, of matrices of ``max_rows``."""
    if max_rows is None:
        return problem.shape[0], len(problem.a_scale)
    return problem.shape[3] * max_rows, problem.shape[3] * reference.round_up(max_rows, 128)


def masked_layer_inputs(
    problem: reference.GroupedProblem, rng: np.random.Generator, max_rows: int, row_weight: np.ndarray
) -> dict[str, np.ndarray]:
    """``masked_inputs``, and the weights of rows, NaN from the mask on."""
    weights = np.full((problem.shape[3], max_rows), np.nan, np.float32)
    rows, _ = places(problem, max_rows)
    weights.reshape(-1)[rows] = row_weight[: len(rows)]
    return {**masked_inputs(problem, rng, max_rows), "row_weight": weights}


def check_next_layer(
    weights: reference.GroupedProblem, out: np.ndarray, out_scale: np.ndarray, max_rows: int, context: str,
    on_hopper: bool = False, **options: object,
) -> None:  # fmt: skip
    """What a fused GEMM by mask left in its buffers, as tokens of the GEMM with these weights: against float64 of it.
    Rows from the mask on are poison in out_scale, and reach nothing."""
    operands, counts = weights.formats, np.diff(weights.expert_offsets).astype(np.int32)
    _, n, k, experts = weights.shape
    name = next(name for name, formats in OPERANDS.items() if formats is operands)
    result = np.full((experts, max_rows, n), -1, np.int32).view(np.float32)
    given = {key: value for key, value in weights.inputs().items() if key in ("b", "b_scale", "alpha")}
    loader.launch(f"grouped_{name}", **given, a=out, a_scale=out_scale, mask=counts, out=result, **options)
    rows, scale_rows = places(weights, max_rows)
    groups = k // operands.group
    scales = out_scale.reshape(-1)[reference.scale_offset(scale_rows[:, None], np.arange(groups), groups)]
    second = dataclasses.replace(weights, a=out.reshape(experts * max_rows, -1)[rows], a_groups=scales)
    verify_masked(second, reference.grouped_reference(second, on_hopper=on_hopper), result, "f32", context)


def matrices(buffer: np.ndarray, experts: int, max_rows: int | None) -> np.ndarray:
    """An output as the launch has it: [rows, ..], or [E, rows, ..] by ``mask``."""
    return buffer if max_rows is None else buffer.reshape(experts, -1, buffer.shape[-1])


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
