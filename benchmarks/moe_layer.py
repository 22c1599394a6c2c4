"""A random MoE layer and tokens on the device, and its ways to be computed: one call, its kernels, torch in bf16.

For timing and a rough check. Tests judge correctness.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from problem import GROUP, dequantize, to_scale_layout

import loader

# Powers of two near 6 * 448 / amax, so that torch's weights, which hold decode scales, are exact in bf16.
X_ENCODE, H_ENCODE, WEIGHT_DECODE = 512.0, 32.0, 2.0**-7


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a model's MoE layer, from its published configuration; hidden and between are multiples of 128."""

    experts: int
    top_k: int
    hidden: int
    between: int


SIZES = {"DeepSeek-V3": Size(256, 8, 7168, 2048), "Qwen3-235B": Size(128, 8, 4096, 1536)}


def interleave(gate_up: torch.Tensor) -> torch.Tensor:
    """Rows of gate, then of up [E, 2 I, ..] to gate and up in turn."""
    experts, rows = gate_up.shape[:2]
    halves = gate_up.reshape(experts, 2, rows // 2, *gate_up.shape[2:])
    return halves.transpose(1, 2).reshape(gate_up.shape).contiguous()


class Weights:
    """One weight of every expert: uint8 [E, N, K/2] and its scales [E, N, K/16] in plain order and as kernels read
    them."""

    def __init__(self, packed: torch.Tensor, groups: torch.Tensor) -> None:
        self.packed, self.groups, self.scale = packed, groups, to_scale_layout(groups)

    @classmethod
    def random(cls, generator: torch.Generator, experts: int, n: int, k: int) -> Weights:
        def random_bytes(low: int, high: int, *shape: int) -> torch.Tensor:
            return torch.randint(low, high, shape, dtype=torch.uint8, device="cuda", generator=generator)

        return cls(random_bytes(0, 256, experts, n, k // 2), random_bytes(0x30, 0x40, experts, n, k // GROUP))

    def bf16(self) -> torch.Tensor:
        """[E, N, K], exactly; by expert, because the float32 of all would be large."""
        experts, n, half_k = self.packed.shape
        values = torch.empty(experts, n, 2 * half_k, dtype=torch.bfloat16, device="cuda")
        for expert in range(experts):
            groups = self.groups[expert].view(torch.float8_e4m3fn)
            values[expert] = dequantize(self.packed[expert], groups) * WEIGHT_DECODE
        return values

    def bytes_of_expert(self) -> int:
        return self.packed[0].nbytes + self.groups[0].nbytes


class Layer:
    """Weights, and what the kernels take beside them."""

    def __init__(self, size: Size, seed: int = 0) -> None:
        generator = torch.Generator("cuda").manual_seed(seed)
        self.size = size
        self.gate_up = Weights.random(generator, size.experts, 2 * size.between, size.hidden)
        self.w13 = Weights(interleave(self.gate_up.packed), interleave(self.gate_up.groups))
        self.w2 = Weights.random(generator, size.experts, size.hidden, size.between)

        def each(value: float) -> torch.Tensor:
            return torch.full((size.experts,), value, device="cuda")

        self.x_encode, self.h_encode = each(X_ENCODE), each(H_ENCODE)
        self.w13_alpha, self.w2_alpha = each(WEIGHT_DECODE / X_ENCODE), each(WEIGHT_DECODE / H_ENCODE)

    def tokens(self, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
        """Every token picks distinct experts, all equally popular; arguments of ``moe_fp4``."""
        generator = torch.Generator("cuda").manual_seed(seed)
        keys = torch.rand(count, self.size.experts, device="cuda", generator=generator)
        weights = torch.rand(count, self.size.top_k, device="cuda", generator=generator)
        return {
            "x": torch.randn(count, self.size.hidden, device="cuda", generator=generator).bfloat16(),
            "topk_ids": keys.argsort(dim=1)[:, : self.size.top_k].int().contiguous(),
            "topk_weights": weights / weights.sum(dim=1, keepdim=True),
        }

    def least_bytes(self, tokens: dict[str, torch.Tensor]) -> int:
        """What must move: weights of the experts that have tokens, the tokens, and as many results."""
        experts = len(tokens["topk_ids"].unique())
        weights = self.w13.bytes_of_expert() + self.w2.bytes_of_expert()
        return experts * weights + 2 * tokens["x"].nbytes


def whole_arguments(layer: Layer, tokens: dict[str, torch.Tensor], out: torch.Tensor) -> dict[str, Any]:
    """Of ``moe_fp4``, with a workspace of the caller."""
    arguments = {
        "w13": layer.w13.packed, "w13_scale": layer.w13.scale, "w13_alpha": layer.w13_alpha, "w2": layer.w2.packed,
        "w2_scale": layer.w2.scale, "w2_alpha": layer.w2_alpha, "x_global_scale": layer.x_encode,
        "h_global_scale": layer.h_encode, "global_scale_kind": "encode", **tokens, "out": out,
    }  # fmt: skip
    memory = torch.empty(loader.workspace_bytes("moe_fp4", **arguments), dtype=torch.uint8, device="cuda")
    return {**arguments, "workspace": memory}


def whole(layer: Layer, tokens: dict[str, torch.Tensor], out: torch.Tensor) -> loader.Plan:
    """``moe_fp4`` as a plan."""
    return loader.plan("moe_fp4", **whole_arguments(layer, tokens, out))


def steps(
    layer: Layer, tokens: dict[str, torch.Tensor], out: torch.Tensor, fused: bool
) -> list[tuple[str, loader.Plan]]:
    """The kernels of the layer, each with what it does. Not ``fused``: L1 writes bf16, which a kernel of its own
    activates and quantises."""
    size, (count, top_k) = layer.size, tokens["topk_ids"].shape
    rows = count * top_k
    scale_rows = (rows + 127 * min(size.experts, rows)) // 128 * 128

    def empty(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="cuda")

    route = {"expert_offsets": empty(size.experts + 1, dtype=torch.int32),
             "scale_offsets": empty(size.experts, dtype=torch.int32)}  # fmt: skip
    row_of_slot, slot_of_row = empty(count, top_k, dtype=torch.int32), empty(rows, dtype=torch.int32)
    row_weight = empty(rows, dtype=torch.float32)
    a, a_scale = empty(rows, size.hidden // 2), empty(scale_rows, size.hidden // GROUP)
    h, h_scale = empty(rows, size.between // 2), empty(scale_rows, size.between // GROUP)
    results = empty(rows, size.hidden, dtype=torch.bfloat16)
    plans: list[tuple[str, loader.Plan]] = []

    def step(what: str, kernel: str, **arguments: Any) -> None:
        plans.append((what, loader.plan(kernel, **arguments)))

    step("route", "moe_route", topk_ids=tokens["topk_ids"], **route, row_of_slot=row_of_slot, slot_of_row=slot_of_row)
    step("gather", "moe_gather_quantize", x=tokens["x"], slot_of_row=slot_of_row, topk_weights=tokens["topk_weights"],
         **route, global_scale=layer.x_encode, a=a, a_scale=a_scale, row_weight=row_weight,
         global_scale_kind="encode")  # fmt: skip
    activation = {"row_weight": row_weight, "global_scale": layer.h_encode, "out": h, "out_scale": h_scale,
                  "global_scale_kind": "encode"}  # fmt: skip
    first = {"a": a, "a_scale": a_scale, "alpha": layer.w13_alpha, **route}
    if fused:
        step("L1", "grouped_fp4_swiglu", b=layer.w13.packed, b_scale=layer.w13.scale, **first, **activation,
             intermediate="bf16")  # fmt: skip
    else:
        products = empty(rows, 2 * size.between, dtype=torch.bfloat16)
        step("L1", "grouped_fp4", b=layer.gate_up.packed, b_scale=layer.gate_up.scale, **first, out=products)
        step("activation", "silu_mul_nvfp4_quantize", x=products, **route, **activation)
    step("L2", "grouped_fp4", a=h, a_scale=h_scale, b=layer.w2.packed, b_scale=layer.w2.scale, alpha=layer.w2_alpha,
         **route, out=results)  # fmt: skip
    step("combine", "moe_combine", rows=results, row_of_slot=row_of_slot, topk_weights=tokens["topk_weights"], out=out)
    return plans


def in_torch(
    gate_up: torch.Tensor, down: torch.Tensor, tokens: dict[str, torch.Tensor], out: torch.Tensor
) -> Callable[[], None]:
    """The layer from torch's parts, on bf16 weights [E, 2 I, H] and [E, H, I]: sort, gather, two grouped_mm with
    offsets on the device, weighted index_add. Capturable: nothing is read back."""
    grouped_mm = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
    ids, top_k = tokens["topk_ids"].flatten(), tokens["topk_ids"].shape[1]
    experts = torch.arange(gate_up.shape[0], device=ids.device, dtype=ids.dtype)
    weights = tokens["topk_weights"].flatten()

    def launch() -> None:
        by_expert, slots = ids.sort(stable=True)
        ends = torch.searchsorted(by_expert, experts, right=True, out_int32=True)
        token = slots // top_k
        gate, up = grouped_mm(tokens["x"].index_select(0, token), gate_up.transpose(1, 2), offs=ends).chunk(2, dim=1)
        rows = grouped_mm(torch.nn.functional.silu(gate) * up, down.transpose(1, 2), offs=ends)
        out.zero_().index_add_(0, token, rows * weights[slots, None].to(rows.dtype))

    return launch
