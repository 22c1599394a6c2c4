"""DeepGEMM's functions by DeepGEMM and by the kernels here: ``python benchmarks/beside_deep_gemm.py --json FILE``.

The same call of ``deep_gemm``, which must be installed, and of ``integrations.deep_gemm`` on the same operands, L2
cold, median of CUDA-graph replays in turn. Shapes are those of DeepGEMM's tests, and 16 and 64 rows beside their 1 and
128. Scales have the layout that kernels read before the clock starts. Where weights are MXFP4 the peer has the same
weights in FP8; their scales are such that both products are the same numbers. The floor is the bytes of operands and
results over the measured read bandwidth.
"""

from __future__ import annotations

import argparse
import importlib
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import record
import torch
from timing import Timer, begin

from integrations import deep_gemm as ours

ROWS = (1, 16, 64, 128, 4096)
DENSE = ((2112, 7168), (576, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
GROUPED = ((6144, 7168), (7168, 3072), (4096, 4096), (4096, 2048))
BY_LABELS = ((4, 8192), (8, 4096))  # groups, rows of each on average
MASKED = ((32, 192), (6, 1024), (32, 20), (6, 20))
MASKED_ROWS = 4096  # of which each group has room for
ALONG_K = tuple((groups, m, n) for groups in (4, 8, 16) for m, n in ((4096, 7168), (7168, 2048)))
SUM_OF_K = 32768
FP4_ROWS = (1, 8, 16, 32, 64)
FP4_GROUPS = 32
# Relative root mean square of what both wrote: two roundings to bf16 make 0.0025.
MAX_DIFFERENCE = 0.005

Call = Callable[[ModuleType, torch.Tensor], None]


@dataclass(frozen=True)
class Problem:
    """``call`` of a library into an output like ``out``, whose ``rows`` are there; the peer's call where it differs."""

    call: Call
    out: torch.Tensor
    bytes: int
    rows: torch.Tensor | None = None
    peer_call: Call | None = None


Cell = tuple[str, str, Callable[[], Problem]]


def fp8(*shape: int) -> torch.Tensor:
    """Normal numbers whose largest in 128 is about E4M3's largest, as quantised ones are."""
    return (torch.randn(shape, dtype=torch.bfloat16, device="cuda") * 150).clamp(-448, 448).to(torch.float8_e4m3fn)


def bf16(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device="cuda")


def scales(*shape: int) -> torch.Tensor:
    return (torch.rand(shape, device="cuda") + 0.5) / 256


def of_rows(*shape: int) -> torch.Tensor:
    """For 128 of K of each row, as the kernels read them."""
    return ours.get_mn_major_tma_aligned_tensor(scales(*shape[:-1], -(-shape[-1] // 128)))


def tokens(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return fp8(*shape), of_rows(*shape)


def weights(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return fp8(*shape), scales(*shape[:-2], *(-(-extent // 128) for extent in shape[-2:]))


Operand = torch.Tensor | tuple[torch.Tensor, ...]  # with its scales


def operands(a: tuple[int, ...], b: tuple[int, ...], in_bf16: bool) -> tuple[Operand, Operand]:
    """Tokens and weights of these shapes."""
    return (bf16(*a), bf16(*b)) if in_bf16 else (tokens(*a), weights(*b))


def moved(*given: Operand, share: float = 1) -> int:
    """Bytes of operands and results, of which so much is there."""
    tensors = [tensor for each in given for tensor in (each if isinstance(each, tuple) else (each,))]
    return int(sum(tensor.nbytes for tensor in tensors) * share)


def dense(m: int, n: int, k: int, in_bf16: bool) -> Problem:
    a, b = operands((m, k), (n, k), in_bf16)
    out, name = bf16(m, n), "bf16_gemm_nt" if in_bf16 else "fp8_gemm_nt"
    return Problem(lambda library, d: getattr(library, name)(a, b, d), out, moved(a, b, out))


def of_inputs(n: int, k: int, in_bf16: bool) -> Problem:
    """Gradients of the inputs of a forward N x K: its weights turned."""
    if not in_bf16:
        return dense(ROWS[-1], k, n, False)
    a, b, out = bf16(ROWS[-1], n), bf16(n, k).T, bf16(ROWS[-1], k)
    return Problem(lambda library, d: library.bf16_gemm_nt(a, b, d), out, moved(a, b, out))


def of_weights(n: int, k: int, in_bf16: bool) -> Problem:
    """Gradients of its weights, added to fp32."""
    rows, out = ROWS[-1], torch.empty(n, ROWS[-1], device="cuda")
    if in_bf16:
        a, b = bf16(k, n).T, bf16(k, rows).T
        return Problem(lambda library, d: library.bf16_gemm_nt(a, b, d, d), out, moved(a, b, out, out))
    a, b = tokens(n, k), tokens(rows, k)
    return Problem(lambda library, d: library.fp8_gemm_nt(a, b, d, d, recipe=(1, 1, 128)), out,
                   moved(a, b, out, out))  # fmt: skip


def by_labels(groups: int, mean: int, n: int, k: int, in_bf16: bool) -> Problem:
    """Rows of groups behind one another, each padded to a multiple of 128."""
    labels = []
    for group in range(groups):
        rows = int(mean * random.uniform(0.7, 1.3))
        labels += [group] * rows + [-1] * (-rows % 128)
    m, of_row = len(labels), torch.tensor(labels, dtype=torch.int32, device="cuda")
    a, b = operands((m, k), (groups, n, k), in_bf16)
    out, name = bf16(m, n), f"m_grouped_{'bf16' if in_bf16 else 'fp8'}_gemm_nt_contiguous"
    return Problem(lambda library, d: getattr(library, name)(a, b, d, of_row), out, moved(a, b, out),
                   rows=of_row >= 0)  # fmt: skip


def masked(groups: int, mean: int, n: int, k: int, in_bf16: bool) -> Problem:
    counts = [int(mean * random.uniform(0.7, 1.3)) for _ in range(groups)]
    count, rows = _masked_rows(counts)
    a, b = operands((groups, MASKED_ROWS, k), (groups, n, k), in_bf16)
    out, name = bf16(groups, MASKED_ROWS, n), f"m_grouped_{'bf16' if in_bf16 else 'fp8'}_gemm_nt_masked"
    share = sum(counts) / (groups * MASKED_ROWS)
    return Problem(lambda library, d: getattr(library, name)(a, b, d, count, int(mean * 1.2)), out,
                   moved(a, out, share=share) + moved(b), rows=rows)  # fmt: skip


def along_k(groups: int, m: int, n: int, in_bf16: bool) -> Problem:
    """Gradients of weights, added to fp32."""
    ks = [-(-int(SUM_OF_K / groups * random.uniform(0.7, 1.3)) // 128) * 128 for _ in range(groups)]
    total, out = sum(ks), torch.empty(groups, m, n, device="cuda")
    ks_on_device = torch.tensor(ks, dtype=torch.int32, device="cuda")
    if in_bf16:
        a, b, name = bf16(total, m), bf16(total, n), "k_grouped_bf16_gemm_tn_contiguous"
    else:  # the groups are matrices, one behind the other
        a, b = (fp8(total * m), of_rows(m, total)), (fp8(total * n), of_rows(n, total))
        name = "k_grouped_fp8_gemm_nt_contiguous"
    return Problem(lambda library, d: getattr(library, name)(a, b, d, ks, ks_on_device, d), out,
                   moved(a, b, out, out))  # fmt: skip


def fp4_weights(mean: int, n: int, k: int) -> Problem:
    """MXFP4 by masked tokens, as many of each group; the peer has the same weights as FP8."""
    elements = torch.randint(0, 256, (FP4_GROUPS, n, k // 2), dtype=torch.uint8, device="cuda")
    magnitudes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], device="cuda")
    values = torch.cat([magnitudes, -magnitudes])
    as_fp8 = values[torch.stack([elements & 15, elements >> 4], -1).int()].flatten(-2).to(torch.float8_e4m3fn)
    blocks = torch.exp2(torch.randint(-6, 3, (FP4_GROUPS, n // 128, k // 128), device="cuda").float())
    of_32 = blocks.repeat_interleave(128, -2).repeat_interleave(4, -1)
    b = elements.view(torch.int8), ours.get_mn_major_tma_aligned_packed_ue8m0_tensor(of_32)
    a, out = tokens(FP4_GROUPS, 128, k), bf16(FP4_GROUPS, 128, n)
    count, rows = _masked_rows([mean] * FP4_GROUPS, 128)

    def call(library: ModuleType, d: torch.Tensor) -> None:
        library.m_grouped_fp8_fp4_gemm_nt_masked(a, b, d, count, mean, recipe_a=(1, 128), recipe_b=(1, 32))

    def peer_call(library: ModuleType, d: torch.Tensor) -> None:
        library.m_grouped_fp8_gemm_nt_masked(a, (as_fp8, blocks), d, count, mean)

    return Problem(call, out, moved(a, out, share=mean / 128) + moved(b), rows, peer_call)


def _masked_rows(counts: list[int], room: int = MASKED_ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    count = torch.tensor(counts, dtype=torch.int32, device="cuda")
    return count, torch.arange(room, device="cuda") < count[:, None]


def cells() -> Iterator[Cell]:
    """Part, what it is, and how to make it."""
    for in_bf16, name in ((False, "FP8"), (True, "bf16")):
        for m in ROWS:
            for n, k in DENSE:
                yield f"{name} dense", f"{m} x {n} x {k}", lambda m=m, n=n, k=k, b=in_bf16: dense(m, n, k, b)
        for make, what in ((of_inputs, "gradients of inputs"), (of_weights, "gradients of weights")):
            for n, k in DENSE:
                yield f"{name} {what}", f"{n} x {k}", lambda make=make, n=n, k=k, b=in_bf16: make(n, k, b)
        for make, what, shapes in ((by_labels, "by labels", BY_LABELS), (masked, "masked", MASKED)):
            for g, m in shapes:
                for n, k in GROUPED:
                    yield (f"{name} {what}", f"{g} x {m} x {n} x {k}",
                           lambda make=make, g=g, m=m, n=n, k=k, b=in_bf16: make(g, m, n, k, b))  # fmt: skip
        for g, m, n in ALONG_K:
            yield f"{name} along K", f"{g} x {m} x {n}", lambda g=g, m=m, n=n, b=in_bf16: along_k(g, m, n, b)
    for m in FP4_ROWS:
        for n, k in (GROUPED[0], (4096, 7168), (7168, 2048)):
            yield "FP8 by MXFP4", f"{FP4_GROUPS} x {m} x {n} x {k}", lambda m=m, n=n, k=k: fp4_weights(m, n, k)


def compare(problem: Problem, peer: ModuleType, timer: Timer) -> dict[str, float]:
    """Microseconds of both, whose results have been compared."""
    starts = torch.zeros if problem.out.dtype == torch.float32 else torch.empty  # what is added to, or written
    outs = [starts(problem.out.shape, dtype=problem.out.dtype, device="cuda") for _ in range(2)]
    ways = [lambda: problem.call(ours, outs[0]), lambda: (problem.peer_call or problem.call)(peer, outs[1])]
    for way in ways:
        way()
    mine, theirs = ((out if problem.rows is None else out[problem.rows]).float() for out in outs)
    difference = float((mine - theirs).norm() / theirs.norm())
    if not difference <= MAX_DIFFERENCE:
        raise RuntimeError(f"relative difference {difference:.3g} from DeepGEMM exceeds {MAX_DIFFERENCE}")
    del mine, theirs
    ours_us, peer_us = timer.in_turn(ways)
    return {"microseconds": ours_us, "deep_gemm": peer_us, "ratio": ours_us / peer_us, "difference": difference}


HEADERS = ("ours over DeepGEMM", "cells", "geometric mean", "over 1.05", "least", "most", "most in")


def summary(rows: list[dict[str, object]]) -> list[tuple[object, ...]]:
    """A line a part, of ``HEADERS``."""
    lines = []
    for part in dict.fromkeys(row["part"] for row in rows):
        of_part = sorted((row for row in rows if row["part"] == part), key=lambda row: row["ratio"])
        ratios = [row["ratio"] for row in of_part]
        mean, slow = f"{statistics.geometric_mean(ratios):.3f}", sum(ratio > 1.05 for ratio in ratios)
        extremes = (f"{ratio:.3f}" for ratio in (ratios[0], ratios[-1]))
        lines.append((part, len(ratios), mean, slow, *extremes, of_part[-1]["cell"]))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=sorted({part for part, _, _ in cells()}), metavar="PART",
                        help="of the table, e.g. 'FP8 dense'; all if not given")  # fmt: skip
    arguments = record.parse(parser, ["gemm_fp8", "gemm_bf16"])
    try:
        peer = importlib.import_module("deep_gemm")
    except ImportError as error:
        raise SystemExit(f"the peer is missing: {error}; install deep_gemm") from None

    found, timer, bandwidth = begin()
    found["deep_gemm"] = peer.__version__
    rows = []
    for part, cell, make in cells():
        if arguments.parts is None or part in arguments.parts:
            random.seed(f"{part} {cell}")
            problem = make()
            floor = problem.bytes / bandwidth * 1e6
            rows.append({"part": part, "cell": cell, "floor": floor, **compare(problem, peer, timer)})
            print(*(f"{value:.4g}" if isinstance(value, float) else value for value in rows[-1].values()), flush=True)
    lines = summary(rows)
    print(record.table("", HEADERS, lines))
    print(record.markdown("benchmarks/beside_deep_gemm.py", HEADERS, lines))
    record.finish(arguments.json, "beside_deep_gemm", found, {"rows": rows})


if __name__ == "__main__":
    main()
