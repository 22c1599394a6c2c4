"""Einsums over batches of matrices: operands with pitches of their own; references are those of grouped GEMMs."""

from __future__ import annotations

import gemm_problem
import numpy as np
import reference


def _spread(x: np.ndarray, nan: int) -> tuple[np.ndarray, int, int]:
    """What lies from the first element of x [i, j, l] to its last, the outer and the inner pitch: behind rows of ``l``
    are at least 16 bytes of NaN."""
    granule = 16 // x.itemsize
    inner = reference.round_up(x.shape[2], granule) + granule
    outer = x.shape[1] * inner + granule
    memory = np.full(x.shape[0] * outer, nan, x.dtype)
    view = np.lib.stride_tricks.as_strided(memory, x.shape, [x.itemsize * step for step in (outer, inner, 1)])
    view[:] = x
    elements = (x.shape[0] - 1) * outer + (x.shape[1] - 1) * inner + x.shape[2]
    return memory[:elements], outer, inner


def inputs(problem: gemm_problem.GemmProblem, letters: str) -> dict[str, object]:
    """Of a problem whose groups have as many rows each: a as [M, E, K], of tn as [K, E, M]; b as [E, N, K], of nn as
    [E, K, N], of tn as [K, E, N]."""
    rows = problem.counts[0]
    given, _ = gemm_problem.masked(problem, rows)
    orders = {"nt": ((1, 0, 2), (0, 1, 2)), "nn": ((1, 0, 2), (0, 2, 1)), "tn": ((2, 0, 1), (2, 0, 1))}[letters]
    strides, memory = {}, {}
    for name, order, operand in zip("ab", orders, problem.operands, strict=True):
        memory[name], outer, inner = _spread(given[name].transpose(order), gemm_problem.NAN[operand.elements])
        matrix_first = name == "b" and letters != "tn"
        strides |= {f"{name}_matrix": outer if matrix_first else inner, f"{name}_row": inner if matrix_first else outer}
    scales = {name: given[name] for name in ("a_scale", "b_scale") if name in given}
    return gemm_problem.buffers(memory | scales) | strides | {"K": problem.a.shape[1]}


def places(rows: int, groups: int, letters: str) -> np.ndarray:
    """Where the rows of the problem are in out [M, E, N], of tn [E, M, N], as [M * E, N]."""
    group, row = np.divmod(np.arange(rows * groups), rows)
    return group * rows + row if letters == "tn" else row * groups + group


def shape(rows: int, groups: int, n: int, letters: str) -> tuple[int, int, int]:
    """Of out."""
    return (groups, rows, n) if letters == "tn" else (rows, groups, n)


def chained(problem: gemm_problem.GemmProblem, matrices: int) -> dict[str, np.ndarray]:
    """a [S, M, K] and b [S, N, K] of a problem in bf16 of one group, whose K is S times theirs."""
    found = {}
    for name, x in (("a", problem.a), ("b", problem.b[0])):
        found[name] = np.ascontiguousarray(x.reshape(len(x), matrices, -1).swapaxes(0, 1))
    return found


def share_bounds(matrices: int, k: int, shares: int, block: int) -> list[int]:
    """Where shares of K begin, and the end, in elements of rows that are padded to whole blocks."""
    blocks = matrices * reference.ceil_div(k, block)
    return [blocks * share // shares * block for share in range(shares + 1)]


def of_share(
    problem: gemm_problem.GemmProblem, matrices: int, block: int, begin: int, end: int
) -> gemm_problem.GemmProblem:
    """The same with the part of K from begin to end, of rows that are padded with zeros to whole blocks."""
    def cut(x: np.ndarray) -> np.ndarray:
        parts = x.reshape(*x.shape[:-1], matrices, -1)
        padding = -parts.shape[-1] % block
        padded = np.pad(parts, [(0, 0)] * (parts.ndim - 1) + [(0, padding)])
        return padded.reshape(*x.shape[:-1], -1)[..., begin:end]

    none = np.empty(0, np.float32)
    return gemm_problem.GemmProblem("bf16", cut(problem.a), cut(problem.b), none, none, problem.counts)


