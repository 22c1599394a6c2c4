"""vLLM's MoE layer of FP4 weights by Marlin: its steps in their order, on 16-bit tokens.

Rows in blocks of one expert, the first GEMM, the activation, the second GEMM, which multiplies the weights of the top-k
in, and the sum over these are kernels of vLLM's library but for the activation, a Triton kernel here, whose gates come
before the ups.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
import vllm_marlin
from moe_problem import DEVICE, Layer, Tokens, Way, Weights, padded, round_up

HIDDEN, BETWEEN = 256, 128  # of what the tiles take H and I in multiples
NO_LIMIT = float(torch.finfo(torch.float32).max)
COLUMNS = 1024  # of one program


@triton.jit
def _activate(products, h, width, alpha, beta, limit, COLUMNS: tl.constexpr):
    """SwiGLU of a slot's gates and ups, with gpt-oss's scalars."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    gates, mask = products + row * 2 * width + columns, columns < width
    gate = tl.minimum(tl.load(gates, mask=mask, other=0.0).to(tl.float32), limit)
    up = tl.load(gates + width, mask=mask, other=0.0).to(tl.float32)
    up = tl.minimum(tl.maximum(up, -limit), limit)
    values = gate / (1.0 + tl.exp(-alpha * gate)) * (up + beta)
    tl.store(h + row * width + columns, values.to(h.dtype.element_ty), mask=mask)


def takes(composite: str) -> bool:
    """FP4 weights and tokens of 16 bits."""
    return composite.startswith("moe_bf16")


class Operands(NamedTuple):
    """Of a GEMM, by argument; N and K of it."""

    arguments: dict[str, torch.Tensor | None]
    n: int
    k: int


def operands(layer: Layer, vllm: Any, name: str) -> Operands:
    """Of ``w13``, gates and then ups, or of ``w2``, zeros up to what Marlin's tiles take."""
    hidden, between = round_up(layer.size.hidden, HIDDEN), round_up(layer.size.between, BETWEEN)
    (weights, halves, rows, k), biases = {
        "w13": ((layer.gate_up, 2, between, hidden), 0), "w2": ((layer.w2, 1, hidden, between), 1)}[name]  # fmt: skip
    packed, scales = _padded(weights, halves, rows, k)
    alpha = torch.full((len(packed),), layer.format.decode, device=packed.device)
    arguments = vllm_marlin.repacked(packed, scales, alpha, vllm.functions)
    bias = None
    if layer.biases is not None:
        bias = _halves_padded(layer.biases[biases][..., None], halves, rows, 1)[..., 0].bfloat16()
        bias = torch.stack([vllm.functions.marlin_permute_bias(one) for one in bias])
    return Operands({**arguments, "b_bias_or_none": bias}, halves * rows, k)


def _padded(weights: Weights, halves: int, rows: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Elements [E, N, K / 2] and scales."""
    scales = _halves_padded(weights.scales.view(torch.uint8), halves, rows, k // weights.format.block[1])
    return _halves_padded(weights.elements, halves, rows, k // 2), scales.view(weights.scales.dtype)


def _halves_padded(matrix: torch.Tensor, halves: int, rows: int, columns: int) -> torch.Tensor:
    """[E, N, ..], of which each half gets zeros behind."""
    return padded(matrix.unflatten(1, (halves, -1)), rows, columns).flatten(1, 2).contiguous()


def by_marlin(layer: Layer, vllm: Any) -> Way:
    """``vllm``: what ``gemm_peers.find_marlin`` finds. Tokens are padded before the clock starts."""
    experts, top_k = layer.size.experts, layer.size.top_k
    first, second = (operands(layer, vllm, name) for name in ("w13", "w2"))
    alpha, beta, limit = (layer.size.swiglu.get(f"swiglu_{name}", plain) for name, plain in
                          (("alpha", 1.0), ("beta", 0.0), ("limit", NO_LIMIT)))  # fmt: skip
    locks = torch.zeros(4 * vllm.multiprocessors, dtype=torch.int32, device=DEVICE)

    def way(tokens: Tokens) -> tuple[Any, torch.Tensor]:
        count, ids = len(tokens["x"]), tokens["topk_ids"]
        slots, block = ids.numel(), vllm_marlin.block_by_rule(ids.numel() / experts)
        most = min(slots + experts * (block - 1), slots * block)  # rows of all blocks

        def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=DEVICE)

        rows = {"sorted_token_ids": empty(most, dtype=torch.int32),
                "expert_ids": empty(-(-most // block), dtype=torch.int32),
                "num_tokens_past_padded": empty(1, dtype=torch.int32)}  # fmt: skip
        x, wide = padded(tokens["x"], count, first.k), empty(count, second.n).fill_(torch.nan)
        products, h, results = empty(slots, first.n), empty(slots, second.k), empty(slots, second.n)

        def multiply(a: torch.Tensor, c: torch.Tensor, by: Operands, per_token: int, weighted: bool) -> None:
            vllm.gemm(a=a, c_or_none=c, topk_weights=tokens["topk_weights"], moe_block_size=block, top_k=per_token,
                      mul_topk_weights=weighted, size_m=len(a), size_n=by.n, size_k=by.k, workspace=locks,
                      **by.arguments, **rows, **vllm_marlin.WORDS)  # fmt: skip

        def launch() -> None:
            vllm.align(ids, experts, block, *rows.values(), None)
            multiply(x, products, first, top_k, weighted=False)
            _activate[slots, triton.cdiv(second.k, COLUMNS)](products, h, second.k, alpha, beta, limit, COLUMNS=COLUMNS)
            multiply(h, results, second, 1, weighted=True)
            vllm.sum(results.view(count, top_k, -1), wide)

        return launch, wide[:, : layer.size.hidden]

    return way
