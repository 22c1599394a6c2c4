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
import itertools
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
FP4_ROWS = (1, 8, 16, 32, 64, 1024)
FP4_GROUPS, FP4_ROOM = 32, 128  # rows that each group has room for, or as many as there are
EINSUM_ROWS = (4, 32, 128, 4096, 8192)
EINSUMS = ((128, 512, 128), (8, 4096, 1024))  # heads, r, d
SUMS = tuple((s, *mnk) for s in (129, 4096, 8192) for mnk in ((128, 384, 128), (256, 256, 256), (384, 128, 384)))
HYPER_ROWS, HYPER_COLUMNS, HYPER_DEPTHS, HYPER_SHARES = (13, 137, 4096, 8192), 24, (28672, 7680, 7168), 16
QUERIES, KEYS, HEADS, HEAD_WIDTHS = (2048, 8192), (4096, 8192, 65536), (32, 64), (32, 64, 128)
REQUESTS, CONTEXTS, MAX_CACHED, PAGE = (256, 4096), (8192, 65536), 1 << 25, 64
# Relative root mean square of what both wrote: two roundings to bf16 make 0.0025.
MAX_DIFFERENCE = 0.005

Call = Callable[[ModuleType, torch.Tensor], torch.Tensor | None]


@dataclass(frozen=True)
class Problem:
    """``call`` of a library into an output like ``out``, whose ``rows`` are there, or into one that the call makes and
    returns; the peer's call where it differs."""

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
    room = max(mean, FP4_ROOM)
    a, out = tokens(FP4_GROUPS, room, k), bf16(FP4_GROUPS, room, n)
    count, rows = _masked_rows([mean] * FP4_GROUPS, room)

    def call(library: ModuleType, d: torch.Tensor) -> None:
        library.m_grouped_fp8_fp4_gemm_nt_masked(a, b, d, count, mean, recipe_a=(1, 128), recipe_b=(1, 32))

    def peer_call(library: ModuleType, d: torch.Tensor) -> None:
        library.m_grouped_fp8_gemm_nt_masked(a, (as_fp8, blocks), d, count, mean)

    return Problem(call, out, moved(a, out, share=mean / room) + moved(b), rows, peer_call)


def einsum(b: int, h: int, r: int, d: int, turned: bool, in_bf16: bool = True) -> Problem:
    """Of heads; b's rows are slices of longer ones, as in DeepGEMM's test. turned: bhd,hdr->bhr."""
    expr, of_a, of_b = ("bhd,hdr->bhr", d, (d, r)) if turned else ("bhr,hdr->bhd", r, (d, r))
    out = bf16(b, h, r if turned else d)
    if in_bf16:
        x, y = bf16(b, h, of_a), bf16(h, of_b[0], of_b[1] + 128)[..., : of_b[1]]
        return Problem(lambda library, z: library.einsum(expr, x, y, z), out, moved(x, out) + 2 * y.numel())
    x, y = (fp8(b, h, r), scales(b, h, r // 128)), (fp8(h, d, r), scales(h, d // 128, r // 128))
    return Problem(lambda library, z: library.fp8_einsum(expr, x, y, z), out, moved(x, y, out))


def einsum_of_batch(s: int, m: int, n: int, k: int, in_fp32: bool) -> Problem:
    """bmk,bnk->mn, which fp32 is added to."""
    x, y = bf16(s, m, k), bf16(s, n, k)
    if not in_fp32:
        return Problem(lambda library, d: library.einsum("bmk,bnk->mn", x, y, d), bf16(m, n), moved(x, y))
    return Problem(lambda library, d: library.einsum("bmk,bnk->mn", x, y, d, d), torch.empty(m, n, device="cuda"),
                   moved(x, y))  # fmt: skip


def hyper(m: int, k: int, shares: int | None) -> Problem:
    """Products and sums of squares; the shares of K are left as they are by both."""
    lead = () if shares is None else (shares,)
    a, b = bf16(m, k), torch.randn(HYPER_COLUMNS, k, device="cuda")
    out, square_sum = (torch.empty(*lead, m, *columns, device="cuda") for columns in ((HYPER_COLUMNS,), ()))
    return Problem(lambda library, d: library.tf32_hc_prenorm_gemm(a, b, d, square_sum, num_splits=shares), out,
                   moved(a, b, out, square_sum))  # fmt: skip


def mqa_logits(queries: int, keys: int, heads: int, width: int, dtype: torch.dtype, compressed: bool) -> Problem:
    """Causal, the last queries of a sequence. What is not seen becomes -inf, or has no column."""
    q, kv, scale = fp8(queries, heads, width), fp8(keys, width), scales(keys)
    of_heads = torch.randn(queries, heads, device="cuda")
    starts = torch.zeros(queries, dtype=torch.int32, device="cuda")
    ends = torch.arange(queries, dtype=torch.int32, device="cuda") + keys - queries
    seen = torch.arange(keys - 1 if compressed else keys, device="cuda") < ends[:, None]

    def call(library: ModuleType, _: torch.Tensor) -> torch.Tensor:
        return library.fp8_fp4_mqa_logits((q, None), (kv, scale), of_heads, starts, ends, not compressed,
                                          keys - 1 if compressed else 0, dtype)  # fmt: skip

    return Problem(call, torch.empty(0, device="cuda"),
                   moved(q, kv, scale, of_heads, starts, ends) + seen.numel() * dtype.itemsize, seen)  # fmt: skip


def paged_mqa_logits(requests: int, next_n: int, heads: int, mean: int, dtype: torch.dtype) -> Problem:
    """Pages in any order; the table of shares of each library is made before the clock starts."""
    lengths = torch.randint(int(0.7 * mean), int(1.3 * mean), (requests,), dtype=torch.int32, device="cuda")
    lens = lengths[:, None].repeat(1, next_n)
    width, total = int(lengths.max()) // PAGE + 1, int((lengths // PAGE + 1).sum())
    table = torch.randint(0, total, (requests, width), dtype=torch.int32, device="cuda")
    pages = torch.empty(total, PAGE * 132, dtype=torch.uint8, device="cuda")
    pages[:, : PAGE * 128] = fp8(1, PAGE * 128).view(torch.uint8)
    pages[:, PAGE * 128 :] = scales(total, PAGE).view(torch.uint8)
    q, of_heads = fp8(requests, next_n, heads, 128), torch.randn(requests * next_n, heads, device="cuda")
    shares: dict[ModuleType, torch.Tensor] = {}

    def call(library: ModuleType, _: torch.Tensor) -> torch.Tensor:
        if library not in shares:
            shares[library] = library.get_paged_mqa_logits_metadata(lens, PAGE, library.get_num_sms())
        return library.fp8_fp4_paged_mqa_logits((q, None), pages.view(total, PAGE, 1, 132), of_heads, lens, table,
                                                shares[library], width * PAGE, logits_dtype=dtype)  # fmt: skip

    seen = torch.arange(width * PAGE, device="cuda") < lens.view(-1, 1)
    read = int(lengths.sum()) * 132 + moved(q, of_heads, lens, table)
    return Problem(call, torch.empty(0, device="cuda"), read + int(seen.sum()) * dtype.itemsize, seen)


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
    yield from einsum_cells()
    yield from cells_of_attention()
    for m in HYPER_ROWS:
        for k in HYPER_DEPTHS:
            yield "hc prenorm", f"{m} x {k}", lambda m=m, k=k: hyper(m, k, None)
            yield "hc prenorm in shares", f"{HYPER_SHARES} x {m} x {k}", lambda m=m, k=k: hyper(m, k, HYPER_SHARES)


def einsum_cells() -> Iterator[Cell]:
    for b in EINSUM_ROWS:
        for h, r, d in EINSUMS:
            what = f"{b} x {h} x {r} x {d}"
            for expr, turned in (("bhr,hdr->bhd", False), ("bhd,hdr->bhr", True)):
                yield f"einsum {expr}", what, lambda b=b, h=h, r=r, d=d, t=turned: einsum(b, h, r, d, t)
        yield "FP8 einsum bhr,hdr->bhd", what, lambda b=b, h=h, r=r, d=d: einsum(b, h, r, d, False, in_bf16=False)
    for s, m, n, k in SUMS:
        for in_fp32, of in ((False, "bf16"), (True, "fp32")):
            yield (f"einsum bmk,bnk->mn in {of}", f"{s} x {m} x {n} x {k}",
                   lambda s=s, m=m, n=n, k=k, f=in_fp32: einsum_of_batch(s, m, n, k, f))  # fmt: skip


def cells_of_attention() -> Iterator[Cell]:
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        for s, t, h, d, c in itertools.product(QUERIES, KEYS, HEADS, HEAD_WIDTHS, (False, True)):
            if t > s:
                yield ("MQA logits", f"{s} x {t} x {h} x {d} {name}{' compressed' if c else ''}",
                       lambda s=s, t=t, h=h, d=d, dtype=dtype, c=c: mqa_logits(s, t, h, d, dtype, c))  # fmt: skip
        for b, n, h, mean in itertools.product(REQUESTS, (1, 2), HEADS, CONTEXTS):
            if b * mean <= MAX_CACHED:
                yield ("paged MQA logits", f"{b} x {n} x {h} x {mean} {name}",
                       lambda b=b, n=n, h=h, mean=mean, dtype=dtype: paged_mqa_logits(b, n, h, mean, dtype))


def compare(problem: Problem, peer: ModuleType, timer: Timer) -> dict[str, float]:
    """Microseconds of both, whose results have been compared."""
    starts = torch.zeros if problem.out.dtype == torch.float32 else torch.empty  # what is added to, or written
    outs = [starts(problem.out.shape, dtype=problem.out.dtype, device="cuda") for _ in range(2)]
    ways = [lambda: problem.call(ours, outs[0]), lambda: (problem.peer_call or problem.call)(peer, outs[1])]
    made = [way() for way in ways]
    results = [out if new is None else new for out, new in zip(outs, made, strict=True)]
    mine, theirs = ((out if problem.rows is None else out[problem.rows]).float() for out in results)
    difference = float((mine - theirs).norm() / theirs.norm())
    if not difference <= MAX_DIFFERENCE:
        raise RuntimeError(f"relative difference {difference:.3g} from DeepGEMM exceeds {MAX_DIFFERENCE}")
    del mine, theirs, made, results
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
    arguments = record.parse(parser, ["gemm_fp8", "gemm_bf16", "einsum_bf16", "hc_prenorm_tf32", "mqa_logits_fp8"])
    try:
        peer = importlib.import_module("deep_gemm")
    except ImportError as error:
        raise SystemExit(f"the peer is missing: {error}; install deep_gemm") from None

    found, timer, bandwidth = begin(deep_gemm=peer.__version__)
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
    record.finish(arguments.json, "beside_deep_gemm", found, timer.facts(), {"rows": rows})


if __name__ == "__main__":
    main()
