"""The NVFP4 mega MoE: the experts of a rank on staged activations, in the place of DeepGEMM's fp8_nvfp4_mega_moe.

A routed row is one token at one of its experts. It goes through L1, SwiGLU, requantisation and L2 on its own; the top-k
weights are applied once, where the rows of a token are summed. No device memory is read on the host.
``torch.ops.block_scaled.nvfp4_mega_moe`` is the whole call as one custom op.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import ops
from .nvfp4 import GROUP, SCALE, TILE_ROWS, packed_scale_shape, scale_bytes, to_blocks

AMAX_SHARES = 512  # CTAs that look for the largest magnitude
UNLIMITED = torch.finfo(torch.float32).max


def stage_activation(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [T, K] bf16 -> FP4 int8 [T, K/2], scales e4m3 [T, K/16] row major, and the global scale, one float32:
    amax / (6 * 448), with which results are multiplied. amax is at least 1e-8."""
    (tokens, k), columns = x.shape, -(-x.shape[1] // (4 * GROUP)) * 4
    out = x.new_empty((tokens, k // 2), dtype=torch.int8)
    scale = x.new_empty((tokens, columns), dtype=SCALE)
    partial = x.new_empty(AMAX_SHARES, dtype=torch.float32)
    encode, decode = (x.new_empty(1, dtype=torch.float32) for _ in range(2))
    ops.amax(x, partial)
    ops.nvfp4_global_scale(partial, x.new_ones(1, dtype=torch.float32), encode, decode)
    ops.nvfp4_quantize(x, decode, out, scale, global_scale_kind="decode", division="ieee", scale_layout="linear")
    return out, scale[:, : k // GROUP].contiguous(), decode


def prepare_weights(
    l1: Sequence[torch.Tensor], l2: Sequence[torch.Tensor]
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """(weights, scales) of both layers as the engine has them, to the layout of the kernels; do it once, when loading.

    l1: [E, K/2, 2 I] and [E, K/16, 2 I], columns of gate, then of up; l2: [E, I/2, H] and [E, I/16, H]. Scales may be
    int32 of four. Returns w13 [E, 2 I, K/2], rows of gate and up in turn, and w2 [E, H, I/2], with scales in blocks.
    """
    (w13, w13_scale), (w2, w2_scale) = (
        [scale_bytes(tensor.transpose(1, 2).contiguous()) for tensor in pair] for pair in (l1, l2)
    )
    return (_interleave(w13), to_blocks(_interleave(w13_scale))), (w2, to_blocks(w2_scale))


def nvfp4_mega_moe_full(
    y: torch.Tensor,
    l1: Sequence[torch.Tensor],
    l2: Sequence[torch.Tensor],
    symm_buffer: object,
    activation_clamp: float | None = None,
    fast_math: bool = False,
    l1_weight_scale: torch.Tensor | None = None,
    l2_weight_scale: torch.Tensor | None = None,
    intermediate_scale: torch.Tensor | None = None,
) -> None:
    """Write to y [T, H] what the local experts add to each token; the caller sums over the ranks.

    ``symm_buffer`` has the staged activations (x, x_sf, input_global_scale), the routing (topk_idx, topk_weights, of at
    least T tokens) and experts_start_idx, the id of the first local expert. Ids of other ranks, and -1, add nothing.

    ``l1`` and ``l2`` are (weights, scales), as ``prepare_weights`` gives them, or as it takes them: column-major views,
    which are brought into the layout in every call.

    - activation_clamp: gate is at most this, up within +- this
    - fast_math: approximate reciprocals in the requantisation
    - l1_weight_scale, l2_weight_scale: [E], global scales with which results are multiplied; 1 if not given
    - intermediate_scale: [E], the same for what L2 multiplies (``w2_input_scale`` of a checkpoint). If not given,
      activation_clamp^2 / (6 * 448), which nothing exceeds, or 1 without a clamp: a range of 2688, in which blocks of
      magnitudes below 0.1 are quantised more coarsely.
    """
    if l1[0].stride(1) == 1:
        l1, l2 = prepare_weights(l1, l2)
    tokens = y.shape[0]
    mega_moe(
        symm_buffer.x[:tokens],
        scale_bytes(symm_buffer.x_sf[:tokens]),
        symm_buffer.input_global_scale,
        symm_buffer.topk_idx[:tokens],
        symm_buffer.topk_weights[:tokens],
        *l1,
        *l2,
        l1_weight_scale,
        l2_weight_scale,
        intermediate_scale,
        y,
        first_expert=symm_buffer.experts_start_idx,
        activation_clamp=activation_clamp,
        fast_math=fast_math,
    )


@torch.library.custom_op(f"{ops.NAMESPACE}::nvfp4_mega_moe", mutates_args=("y",))
def mega_moe(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_global_scale: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    w13: torch.Tensor,
    w13_scale: torch.Tensor,
    w2: torch.Tensor,
    w2_scale: torch.Tensor,
    w13_global_scale: torch.Tensor | None,
    w2_global_scale: torch.Tensor | None,
    intermediate_scale: torch.Tensor | None,
    y: torch.Tensor,
    *,
    first_expert: int,
    activation_clamp: float | None = None,
    fast_math: bool = False,
) -> None:
    """``nvfp4_mega_moe_full`` on weights in the layout of the kernels, the first T tokens of everything."""
    (tokens, topk), experts, intermediate = topk_ids.shape, w13.shape[0], w13.shape[1] // 2
    rows = tokens * topk
    _check_scale(x, x_scale)

    def new(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    expert_offsets, scale_offsets = new(experts + 1), new(experts)
    row_of_slot, slot_of_row = new(tokens, topk), new(rows)
    ops.moe_route(topk_ids, expert_offsets, scale_offsets, row_of_slot, slot_of_row, first_expert=first_expert)
    # Rows beyond the last expert's are never read; any token will do for them.
    token_of_row = slot_of_row.clamp(min=0) // topk
    a = x.view(torch.uint8).index_select(0, token_of_row)
    a_scale = new(*packed_scale_shape(rows, experts, 2 * x.shape[1]), dtype=torch.uint8)
    _scatter_scales(x_scale.view(torch.uint8), token_of_row, expert_offsets, scale_offsets, a_scale)
    ones = torch.ones(experts, dtype=torch.float32, device=x.device)
    decode = _intermediate_scale(ones, activation_clamp) if intermediate_scale is None else intermediate_scale
    scales = new(a_scale.shape[0], packed_scale_shape(rows, experts, intermediate)[1], dtype=torch.uint8)
    activated = new(rows, intermediate // 2, dtype=torch.uint8)
    ops.grouped_fp4_swiglu(
        a,
        w13,
        a_scale,
        w13_scale,
        x_global_scale.reshape(1) * (ones if w13_global_scale is None else w13_global_scale),
        expert_offsets,
        scale_offsets,
        torch.ones(rows, dtype=torch.float32, device=x.device),
        decode,
        activated,
        scales,
        global_scale_kind="decode",
        division="approximate" if fast_math else "ieee",
        intermediate="bf16",
        swiglu_limit=UNLIMITED if activation_clamp is None else activation_clamp,
    )
    results = new(rows, y.shape[1], dtype=y.dtype)
    alpha = decode if w2_global_scale is None else decode * w2_global_scale
    ops.grouped_fp4(activated, w2, scales, w2_scale, alpha, expert_offsets, scale_offsets, results)
    ops.moe_combine(results, row_of_slot, topk_weights, y)


mega_moe.register_fake(lambda *tensors, **values: None)


def _check_scale(x: torch.Tensor, x_scale: torch.Tensor) -> None:
    if x_scale.nbytes * GROUP != 2 * x.nbytes:
        raise ValueError(f"x_scale expects a byte for {GROUP} values of x {list(x.shape)}, got {list(x_scale.shape)}")


def _intermediate_scale(ones: torch.Tensor, activation_clamp: float | None) -> torch.Tensor:
    """With which L2 multiplies what the clamp lets pass."""
    return ones if activation_clamp is None else ones * (activation_clamp**2 / (6 * 448))


def _scatter_scales(
    scale: torch.Tensor,
    token_of_row: torch.Tensor,
    expert_offsets: torch.Tensor,
    scale_offsets: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Scales [T, K/16] of tokens to the rows of experts in ``out``, in the block layout; padding columns are 0."""
    rows, columns = token_of_row.shape[0], out.shape[1]
    row = torch.arange(rows, dtype=torch.int32, device=out.device)
    # Rows of no expert count as the last one's and land in padding that nothing else is written to.
    expert = torch.searchsorted(expert_offsets[1:-1], row, right=True)
    row = (row - expert_offsets[expert] + scale_offsets[expert]).long()[:, None]
    column = torch.arange(columns, device=out.device)
    block = row // TILE_ROWS * (columns // 4) + column // 4
    byte = row % 32 * 16 + row % TILE_ROWS // 32 * 4 + column % 4
    padded = torch.nn.functional.pad(scale, (0, columns - scale.shape[1]))
    out.view(-1)[block * 512 + byte] = padded[token_of_row]


def _interleave(halves: torch.Tensor) -> torch.Tensor:
    """[E, 2 I, C], gate then up, as gate and up in turn."""
    experts, rows, columns = halves.shape
    return halves.view(experts, 2, rows // 2, columns).transpose(1, 2).reshape(experts, rows, columns)
