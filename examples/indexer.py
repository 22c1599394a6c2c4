"""The sparse attention indexer of DeepSeek-V3.2: the keys that each query's attention reads, by FP8 logits.

    logit[query, key] = scale[key] * sum over heads of weight[query, head] * relu(q[query, head] . key)

A query has 64 heads of 128, a key is one vector of 128, both E4M3. Its scale, 1 / sqrt(128) of the product and
1 / sqrt(64) of the heads are in the weights of a query. Attention reads the keys with the largest logits, 2048 in the
model, fewer here without a GPU. Two steps of the same requests:

    prefill: mqa_logits_fp8, keys of all requests in one matrix, of which each query sees a range --> top-k
    decode: paged_mqa_schedule, paged_mqa_logits_fp8, one query a request, its keys in pages of 64 --> top-k

On a GPU, through torch, by the names of DeepGEMM that engines call: fp8_mqa_logits, get_paged_mqa_logits_metadata and
fp8_paged_mqa_logits. SGLang's nsa indexer calls deep_gemm itself, vLLM by vllm/utils/deep_gemm.py, newer versions as
fp8_fp4_mqa_logits and fp8_fp4_paged_mqa_logits. integrations.deep_gemm answers all of these names. Without a GPU, or
with --emulate ARCH, by loader.launch from numpy. Logits are compared with float64, and so is which keys were chosen.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import nvfp4  # noqa: E402
import options  # noqa: E402

import loader  # noqa: E402

# Keys of each request before the prefill, and its queries, each of which is a key, too.
ON_GPU = {"before": [0, 3000, 6000], "queries": [200, 100, 56], "top_k": 2048}
EMULATED = {"before": [0, 90, 150], "queries": [9, 5, 1], "top_k": 48}
HEADS, HEAD_DIM, PAGE = 64, 128, 64
PAGE_BYTES = PAGE * (HEAD_DIM + 4)
STEP, FRACTION = 32, 13  # of K that the tensor core of sm_90 adds at once, and the bits of a sum that it keeps
E4M3 = np.concatenate([nvfp4.UE4M3, [np.nan], -nvfp4.UE4M3, [np.nan]])


def quantize(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[..., D] as codes of E4M3, and a float32 scale of each row, [...]."""
    scale = (np.abs(rows).max(-1) / 448).astype(np.float32)
    scaled = rows / scale[..., None]
    return (nvfp4.nearest_code(nvfp4.UE4M3, np.abs(scaled)) + 128 * (scaled < 0)).astype(np.uint8), scale


def random_queries(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes [count, H, D], and weights of the heads with all other factors in them, float32 [count, H]."""
    q, scale = quantize(rng.standard_normal((count, HEADS, HEAD_DIM)))
    weights = rng.standard_normal((count, HEADS))  # of a projection of the hidden state
    return q, (weights * scale * HEAD_DIM**-0.5 * HEADS**-0.5).astype(np.float32)


def to_pages(
    rng: np.random.Generator, keys: Sequence[np.ndarray], scales: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Keys of each request as pages, [pages, bytes], and the pages of each request in order. A page has the codes of
    its keys, then their scales. Pages lie in any order, as those of a cache in use."""
    counts = [-(-len(of_request) // PAGE) for of_request in keys]
    cache = np.zeros((sum(counts), PAGE_BYTES), np.uint8)
    table = np.zeros((len(keys), max(counts)), np.int32)
    pages = np.split(rng.permutation(len(cache)), np.cumsum(counts)[:-1])
    for request, numbers in enumerate(pages):
        table[request, : len(numbers)] = numbers
        for begin, page in zip(range(0, len(keys[request]), PAGE), numbers, strict=True):
            some, their_scales = (of[request][begin : begin + PAGE] for of in (keys, scales))
            cache[page, : some.size] = some.ravel()
            cache[page, PAGE * HEAD_DIM :][: their_scales.nbytes] = their_scales.view(np.uint8)
    return cache, table


@dataclasses.dataclass(frozen=True)
class Batch:
    """Requests, each with some queries of a prefill and then one of a decode. ``prefill`` and ``decode`` are arguments
    of the kernels."""

    keys: list[np.ndarray]  # codes of each request, that of its decode last
    scales: list[np.ndarray]
    prefill: dict[str, np.ndarray]
    decode: dict[str, np.ndarray]

    @classmethod
    def random(cls, rng: np.random.Generator, before: Sequence[int], queries: Sequence[int]) -> Batch:
        lengths = np.add(before, queries)
        keys, scales = zip(*(quantize(rng.standard_normal((length + 1, HEAD_DIM))) for length in lengths), strict=True)
        owner = np.repeat(np.arange(len(lengths)), queries)
        # A query sees the keys of its request that are not behind its own.
        first = np.cumsum(lengths) - lengths
        own = np.concatenate([begin + np.arange(*span) for begin, *span in zip(first, before, lengths, strict=True)])
        q, weights = random_queries(rng, len(owner))
        prefill = {
            "q": q, "weights": weights, "starts": first[owner].astype(np.int32), "ends": (own + 1).astype(np.int32),
            "kv": np.concatenate([of_request[:-1] for of_request in keys]),
            "kv_scale": np.concatenate([of_request[:-1] for of_request in scales]),
        }  # fmt: skip
        q, weights = random_queries(rng, len(lengths))
        cache, table = to_pages(rng, keys, scales)
        decode = {
            "q": q[:, None], "weights": weights, "kv_cache": cache.ravel(), "block_table": table,
            "context_lens": (lengths + 1).astype(np.int32)[:, None],
        }  # fmt: skip
        return cls(list(keys), list(scales), prefill, decode)


@dataclasses.dataclass(frozen=True)
class Result:
    """Logits of a step, [queries, columns], -inf where a query does not see a key, and of each query the keys chosen,
    int64 [queries, top-k], as places in its request; -1 where it sees fewer."""

    logits: np.ndarray
    chosen: np.ndarray


def by_loader(batch: Batch, top_k: int, device: str) -> tuple[list[Result], list[str]]:
    """Both steps from numpy, and what was launched."""
    prefill, decode = batch.prefill, batch.decode
    dense = np.full((len(prefill["q"]), len(prefill["kv"])), np.nan, np.float32)
    plans = [loader.plan("mqa_logits_fp8", **prefill, form="cleaned", out=dense, device=device)]
    schedule = np.zeros((5, 2), np.int32)  # for four CTAs
    plans += [loader.plan("paged_mqa_schedule", context_lens=decode["context_lens"], schedule=schedule, device=device)]
    paged = np.full((len(decode["q"]), PAGE * decode["block_table"].shape[1]), np.nan, np.float32)
    pages = {"pages": decode["kv_cache"].size // PAGE_BYTES, "page": PAGE, "page_stride": PAGE_BYTES}
    plans += [loader.plan("paged_mqa_logits_fp8", **decode, **pages, schedule=schedule, out=paged, device=device)]
    for plan in plans:
        plan.launch()
    # No cell of a page behind the end is a logit.
    paged[np.arange(paged.shape[1]) >= decode["context_lens"]] = -np.inf

    def choose(logits: np.ndarray, starts: np.ndarray) -> Result:
        order = np.argsort(-logits, axis=1)[:, :top_k]
        seen = np.take_along_axis(logits, order, axis=1) > -np.inf
        return Result(logits, np.where(seen, order - starts[:, None], -1))

    results = [choose(dense, prefill["starts"]), choose(paged, np.zeros(len(paged), np.int64))]
    return results, [f"{plan.kernel} (sm_{plan.arch}, grid {plan.grid})" for plan in plans]


def by_deep_gemm(batch: Batch, top_k: int, device: str, num_sms: int) -> tuple[list[Result], list[str]]:
    """Both steps from torch, by DeepGEMM's names, and what was called."""
    import torch

    from integrations import deep_gemm

    prefill, decode = ({name: torch.from_numpy(array).to(device) for name, array in step.items()}
                       for step in (batch.prefill, batch.decode))  # fmt: skip
    q, kv = (prefill[name].view(torch.float8_e4m3fn) for name in ("q", "kv"))
    dense = deep_gemm.fp8_mqa_logits(q, (kv, prefill["kv_scale"]), prefill["weights"], prefill["starts"],
                                     prefill["ends"], clean_logits=True)  # fmt: skip
    lengths, table = decode["context_lens"], decode["block_table"]
    metadata = deep_gemm.get_paged_mqa_logits_metadata(lengths, PAGE, num_sms)
    paged = deep_gemm.fp8_paged_mqa_logits(
        decode["q"].view(torch.float8_e4m3fn), decode["kv_cache"].view(-1, PAGE, 1, HEAD_DIM + 4), decode["weights"],
        lengths, table, metadata, PAGE * table.shape[1], clean_logits=False)  # fmt: skip
    # No cell of a page behind the end is a logit.
    paged = paged.masked_fill(torch.arange(paged.shape[1], device=device) >= lengths, -torch.inf)

    def choose(logits: torch.Tensor, starts: torch.Tensor) -> Result:
        values, order = logits.topk(min(top_k, logits.shape[1]))
        chosen = torch.where(values > -torch.inf, order - starts[:, None], -1)
        return Result(logits.cpu().numpy(), chosen.cpu().numpy())

    results = [choose(dense, prefill["starts"]), choose(paged, torch.zeros_like(lengths[:, 0]))]
    return results, [f"deep_gemm.{function.__name__}" for function in (
        deep_gemm.fp8_mqa_logits, deep_gemm.get_paged_mqa_logits_metadata, deep_gemm.fp8_paged_mqa_logits)]


def expected(
    q: np.ndarray, weights: np.ndarray, keys: np.ndarray, scales: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of a query [H, D] the float64 logits of keys [T, D], all as codes, and how far those of the kernel may be off."""
    q, keys = E4M3[q], E4M3[keys]
    parts = (np.stack(np.split(of, HEAD_DIM // STEP, axis=1)) for of in (q, keys))
    sums = np.cumsum(next(parts) @ next(parts).swapaxes(1, 2), axis=0)  # of the first steps, [steps, H, T]
    # A step cuts its products and the sum so far off at some bits below the largest of them.
    largest = np.maximum(abs(sums).max(0), abs(q).max(1)[:, None] * abs(keys).max(1))
    off = len(sums) * (STEP + 1) * 2.0**-FRACTION * 1.05 * largest
    positive = np.maximum(sums[-1], 0)
    # The sum over heads, in any order, and the products with weight and scale round in fp32.
    rounded = (HEADS + 4) * 2.0**-24 * (positive + off)
    return scales * (weights @ positive), scales * (abs(weights) @ (off + rounded))


@dataclasses.dataclass
class Comparison:
    """With float64: the sums of squares of errors and of logits, logits outside their bounds of all; keys that float64
    chooses, too, of all that were chosen; and queries for which others were chosen than those errors explain."""

    squares: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2))
    outside: int = 0
    logits: int = 0
    same: int = 0
    keys: int = 0
    wrong: int = 0

    def add(self, logits: np.ndarray, chosen: np.ndarray, value: np.ndarray, bound: np.ndarray, top_k: int) -> None:
        """A query: the logits of the keys that it sees, and what was chosen of them."""
        error, count = np.abs(logits - value), min(top_k, len(value))
        self.squares += np.square([error, value]).sum(1)
        self.outside += int((~(error <= bound)).sum())
        self.logits += len(value)
        mine = np.isin(np.arange(len(value)), chosen)
        self.keys += count
        self.same += int(mine[np.argsort(-value)[:count]].sum())
        # Where two logits are closer than the errors, either key is right.
        least, most = value[mine].min(initial=np.inf), value[~mine].max(initial=-np.inf)
        self.wrong += not (mine.sum() == (chosen >= 0).sum() == count and least + 2 * error.max() >= most)


def compare(batch: Batch, results: Sequence[Result], top_k: int) -> list[Comparison]:
    """Prefill and decode with float64."""
    prefill, decode, comparisons = batch.prefill, batch.decode, [Comparison(), Comparison()]
    for query, span in enumerate(zip(prefill["starts"], prefill["ends"], strict=True)):
        seen = slice(*span)
        known = expected(prefill["q"][query], prefill["weights"][query], prefill["kv"][seen], prefill["kv_scale"][seen])
        comparisons[0].add(results[0].logits[query, seen], results[0].chosen[query], *known, top_k)
    for request, (keys, scales) in enumerate(zip(batch.keys, batch.scales, strict=True)):
        known = expected(decode["q"][request, 0], decode["weights"][request], keys, scales)
        comparisons[1].add(results[1].logits[request, : len(keys)], results[1].chosen[request], *known, top_k)
    return comparisons


def main() -> int:
    asked = options.parse(__doc__, "queries and keys")
    device = options.emulated(asked)
    on_gpu = device is None
    if on_gpu:
        import torch

    sizes = ON_GPU if on_gpu else EMULATED
    top_k, batch = sizes["top_k"], Batch.random(np.random.default_rng(asked.seed), sizes["before"], sizes["queries"])
    print(", ".join(f"{name} {size}" for name, size in sizes.items()) + f"; seed {asked.seed}")
    if on_gpu:
        num_sms = torch.cuda.get_device_properties(0).multi_processor_count
        results, launched = by_deep_gemm(batch, top_k, "cuda", num_sms)
    else:
        results, launched = by_loader(batch, top_k, device)
    where = f"{torch.cuda.get_device_name()} from torch" if on_gpu else "the emulated device from numpy"
    print(f"launched on {where}:", *launched, sep="\n  ")
    right = True
    for step, found in zip(("prefill", "decode"), compare(batch, results, top_k), strict=True):
        error = np.sqrt(found.squares[0] / found.squares[1])
        print(f"{step}: error against float64 on the quantised operands {error:.1e} relative, "
              f"{found.outside} of {found.logits} logits outside their bounds")  # fmt: skip
        print(f"  {found.same} of {found.keys} keys chosen are those of float64; "
              f"{found.wrong} queries with others than errors explain")  # fmt: skip
        right &= not found.outside and not found.wrong
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
