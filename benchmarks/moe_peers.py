"""What else computes an MoE layer: torch in bf16, DeepGEMM's GEMMs in FP8, vLLM's Marlin on FP4 weights (marlin_layer).

Each is a function of a layer, which prepares its weights, and gives a function of tokens, which gives a launch and the
tensor that this writes. The steps between DeepGEMM's GEMMs, which that library does not have, are Triton kernels here,
one each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import gemm_peers
import marlin_layer
import torch
import triton
import triton.language as tl
from moe_problem import DEVICE, Layer, Tokens, Way

import loader

BLOCKS = 4  # of 128 columns, of one program
ALIGNMENT = 128  # of the first row of a group


def activated(gate: torch.Tensor, up: torch.Tensor, swiglu: dict[str, float]) -> torch.Tensor:
    """SwiGLU, with gpt-oss's scalars if there are some."""
    if not swiglu:
        return torch.nn.functional.silu(gate) * up
    alpha, beta, limit = (swiglu[f"swiglu_{name}"] for name in ("alpha", "beta", "limit"))
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + beta)


def in_torch(layer: Layer) -> Way:
    """From torch's parts, on dequantised weights: sort, gather, two grouped_mm with offsets on the device, weighted
    index_add. Capturable: nothing is read back."""
    grouped_mm = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
    gate_up, down = layer.gate_up.bf16(), layer.w2.bf16()
    biases = tuple(bias.bfloat16() for bias in layer.biases or ())
    experts = torch.arange(layer.size.experts, device=DEVICE, dtype=torch.int32)

    def way(tokens: Tokens) -> tuple[Callable[[], None], torch.Tensor]:
        ids, top_k, weights = tokens["topk_ids"].flatten(), layer.size.top_k, tokens["topk_weights"].flatten()
        out = torch.full_like(tokens["x"], torch.nan)

        def launch() -> None:
            by_expert, slots = ids.sort(stable=True)
            ends = torch.searchsorted(by_expert, experts, right=True, out_int32=True)
            token = slots // top_k
            products = grouped_mm(tokens["x"].index_select(0, token), gate_up.transpose(1, 2), offs=ends)
            if biases:
                products += biases[0].index_select(0, by_expert)
            between = activated(*products.chunk(2, dim=1), layer.size.swiglu)
            rows = grouped_mm(between, down.transpose(1, 2), offs=ends)
            if biases:
                rows += biases[1].index_select(0, by_expert)
            out.zero_().index_add_(0, token, rows * weights[slots, None].to(rows.dtype))

        return launch, out

    return way


@triton.jit
def _store_quantized(values, row, block, a, scales, num_rows, K, BLOCKS: tl.constexpr):
    """``values`` [BLOCKS, 128] fp32 as E4M3 from that block of 128 of a row on; scales of neighbouring rows are
    neighbours."""
    blocks = block + tl.arange(0, BLOCKS)
    columns = blocks[:, None] * 128 + tl.arange(0, 128)[None, :]
    scale = tl.maximum(tl.max(tl.abs(values), 1), 1e-10) / 448.0
    tl.store(a + row * K + columns, (values / scale[:, None]).to(a.dtype.element_ty))
    tl.store(scales + blocks * num_rows + row, scale)


@triton.jit
def _scatter(x, ids, row_of_slot, expert_offsets, group_offsets, labels, places, a, scales, num_rows, K,
             TOP_K: tl.constexpr, BLOCKS: tl.constexpr):  # fmt: skip
    """A slot's token, quantised, to its row among those of its group, which begin at a multiple of 128."""
    slot, block = tl.program_id(0), tl.program_id(1) * BLOCKS
    expert = tl.load(ids + slot)
    row = tl.load(group_offsets + expert) + tl.load(row_of_slot + slot) - tl.load(expert_offsets + expert)
    row = row.to(tl.int64)
    columns = (block + tl.arange(0, BLOCKS))[:, None] * 128 + tl.arange(0, 128)[None, :]
    values = tl.load(x + (slot // TOP_K).to(tl.int64) * K + columns).to(tl.float32)
    _store_quantized(values, row, block, a, scales, num_rows, K, BLOCKS)
    if block == 0:
        tl.store(labels + row, expert)
        tl.store(places + slot, row.to(tl.int32))


@triton.jit
def _activate(products, places, h, scales, num_rows, K, BLOCKS: tl.constexpr):
    """SwiGLU of a slot's gates and ups, rounded to bf16, quantised."""
    slot, block = tl.program_id(0), tl.program_id(1) * BLOCKS
    row = tl.load(places + slot).to(tl.int64)
    columns = (block + tl.arange(0, BLOCKS))[:, None] * 128 + tl.arange(0, 128)[None, :]
    gate = tl.load(products + row * 2 * K + columns).to(tl.float32)
    up = tl.load(products + row * 2 * K + K + columns).to(tl.float32)
    values = (gate / (1.0 + tl.exp(-gate)) * up).to(tl.bfloat16).to(tl.float32)
    _store_quantized(values, row, block, h, scales, num_rows, K, BLOCKS)


@triton.jit
def _combine(rows, places, weights, out, H, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for k in range(TOP_K):
        row = tl.load(places + token * TOP_K + k).to(tl.int64)
        weight = tl.load(weights + token * TOP_K + k)
        total += weight * tl.load(rows + row * H + columns, mask=columns < H).to(tl.float32)
    tl.store(out + token.to(tl.int64) * H + columns, total.to(tl.bfloat16), mask=columns < H)


def by_deep_gemm(layer: Layer, library: ModuleType) -> Way:
    """``moe_route`` of this registry, gather and quantise, L1, SwiGLU and quantise, L2, combine. H and I are multiples
    of 512."""
    size, w13, w2 = layer.size, layer.gate_up, layer.w2
    if size.hidden % (BLOCKS * 128) or size.between % (BLOCKS * 128):
        raise ValueError(f"H = {size.hidden} and I = {size.between} must be multiples of {BLOCKS * 128}")

    def way(tokens: Tokens) -> tuple[Callable[[], None], torch.Tensor]:
        out, slots = torch.full_like(tokens["x"], torch.nan), tokens["topk_ids"].numel()
        rows = (slots + (ALIGNMENT - 1) * min(size.experts, slots)) // ALIGNMENT * ALIGNMENT

        def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=DEVICE)

        def quantized(k: int) -> tuple[torch.Tensor, torch.Tensor]:
            """Rows, and scales [rows, K / 128] of which neighbouring rows are neighbours."""
            return empty(rows, k, dtype=torch.float8_e4m3fn), empty(k // 128, rows, dtype=torch.float32).T

        expert_offsets, group_offsets, row_of_slot, slot_of_row, labels, places = (
            empty(*shape, dtype=torch.int32) for shape in
            ((size.experts + 1,), (size.experts,), tokens["topk_ids"].shape, (slots,), (rows,), (slots,)))  # fmt: skip
        route = loader.plan("moe_route", topk_ids=tokens["topk_ids"], expert_offsets=expert_offsets,
                            scale_offsets=group_offsets, row_of_slot=row_of_slot, slot_of_row=slot_of_row)  # fmt: skip
        a, h = quantized(size.hidden), quantized(size.between)
        products, results = (empty(rows, n, dtype=torch.bfloat16) for n in (2 * size.between, size.hidden))

        def launch() -> None:
            route.launch()
            labels.fill_(-1)
            _scatter[slots, size.hidden // (BLOCKS * 128)](
                tokens["x"], tokens["topk_ids"], row_of_slot, expert_offsets, group_offsets, labels, places, *a, rows,
                size.hidden, TOP_K=size.top_k, BLOCKS=BLOCKS)  # fmt: skip
            library.m_grouped_fp8_gemm_nt_contiguous(a, (w13.elements, w13.scales), products, labels)
            _activate[slots, size.between // (BLOCKS * 128)](products, places, *h, rows, size.between, BLOCKS=BLOCKS)
            library.m_grouped_fp8_gemm_nt_contiguous(h, (w2.elements, w2.scales), results, labels)
            _combine[len(out), triton.cdiv(size.hidden, 1024)](
                results, places, tokens["topk_weights"], out, size.hidden, TOP_K=size.top_k, BLOCK=1024)  # fmt: skip

        return launch, out

    return way


class Library(NamedTuple):
    """What computes the layers of some composites, how it is found in folders, with its version, and its way."""

    takes: Callable[[str], bool]
    find: Callable[[Sequence[Path]], tuple[Any, str]]
    way: Callable[[Layer, Any], Way]


LIBRARIES = {  # by column
    "DeepGEMM": Library(lambda composite: composite == "moe_fp8", gemm_peers.find_deep_gemm, by_deep_gemm),
    "Marlin": Library(marlin_layer.takes, gemm_peers.find_marlin, marlin_layer.by_marlin),
}


def libraries(folders: Sequence[Path]) -> tuple[dict[str, Any], dict[str, str]]:
    """The libraries that are there, by column; and what the record says of each: its version, or why it is left out."""
    sys.path[:0] = [str(folder) for folder in folders if str(folder) not in sys.path]
    found, said = {}, {}
    for column, library in LIBRARIES.items():
        result, reason = gemm_peers.attempt(library.find, folders)
        if reason:
            said[column] = f"left out: {reason}"
        else:
            found[column], said[column] = result
    return found, said
