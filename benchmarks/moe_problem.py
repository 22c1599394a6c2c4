"""Random MoE layers and tokens on the device, and their ways to be computed: one call, its kernels, NVFP4 in pieces.

For timing and a rough check. Tests judge correctness.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from problem import DEVICE, E2M1, GROUP, to_scale_layout

import loader
from integrations.weight_fragments import to_fragments

# Powers of two near 6 * 448 / amax, so that torch's weights, which hold decode scales, are exact in bf16.
X_ENCODE, H_ENCODE, WEIGHT_DECODE = 512.0, 32.0, 2.0**-7
Tokens = dict[str, torch.Tensor]
Way = Callable[[Tokens], tuple[Callable[[], None], torch.Tensor]]  # a launch, and what it writes
TILE = 128  # rows of the layout of block scales, and what K of MXFP4 weights is a multiple of


def random_bytes(generator: torch.Generator, low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high, shape, dtype=torch.uint8, device=DEVICE, generator=generator)


def random_fp8(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """E4M3 of size 64."""
    values = torch.randn(shape, dtype=torch.bfloat16, device=DEVICE, generator=generator) * 64
    return values.clamp(-448, 448).to(torch.float8_e4m3fn)


@dataclasses.dataclass(frozen=True)
class Format:
    """Of the weights that a composite takes: E2M1, two in a byte, or E4M3; so many rows by columns share a scale, which
    is drawn from ``lowest`` on: bytes, or of fp32 exponents of two. ``max_error``: root mean square, relative, to torch
    on unquantised activations; the two quantisations make about two thirds of it. ``turn``: so many rows of gate and as
    many of up alternate, where they are packed; ``fragments``: these are in fragment order."""

    packed: bool
    block: tuple[int, int]
    scale: torch.dtype
    lowest: int
    highest: int
    decode: float
    max_error: float
    turn: int = 1
    fragments: bool = False

    def between(self, size: int) -> int:
        """I as the composite takes it."""
        return round_up(size, self.turn if self.fragments else TILE)

    def draw(self, generator: torch.Generator, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Elements [rows, bytes] and scales [rows of blocks, columns of blocks]."""
        elements = (random_bytes(generator, 0, 256, rows, columns // 2) if self.packed
                    else random_fp8(generator, rows, columns))  # fmt: skip
        shape = -(-rows // self.block[0]), -(-columns // self.block[1])
        if self.scale != torch.float32:
            return elements, random_bytes(generator, self.lowest, self.highest, *shape).view(self.scale)
        powers = torch.randint(self.lowest, self.highest, shape, device=DEVICE, generator=generator)
        return elements, torch.exp2(powers.float())


FORMATS = {
    "moe_fp4": Format(True, (1, GROUP), torch.float8_e4m3fn, 0x30, 0x40, WEIGHT_DECODE, 0.25),
    "moe_bf16_nvfp4": Format(True, (1, GROUP), torch.float8_e4m3fn, 0x30, 0x40, WEIGHT_DECODE, 0.02, 64, True),
    "moe_fp8": Format(False, (128, 128), torch.float32, -13, -10, 1.0, 0.1),
    "moe_mxfp8_mxfp4": Format(True, (1, 32), torch.float8_e8m0fnu, 119, 122, 1.0, 0.1),
    "moe_bf16_mxfp4": Format(True, (1, 32), torch.float8_e8m0fnu, 119, 122, 1.0, 0.02, 64, True),
}


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a model's MoE layer, from its published configuration. ``swiglu``: scalars of the activation that are not the
    composite's; a layer that has them has biases."""

    experts: int
    top_k: int
    hidden: int
    between: int
    swiglu: dict[str, float] = dataclasses.field(default_factory=dict)


GPT_OSS = {"swiglu_alpha": 1.702, "swiglu_beta": 1.0, "swiglu_limit": 7.0}
SIZES = {
    "DeepSeek-V3": Size(256, 8, 7168, 2048),
    "Qwen3-235B": Size(128, 8, 4096, 1536),
    "gpt-oss-20b": Size(32, 4, 2880, 2880, GPT_OSS),
    "gpt-oss-120b": Size(128, 4, 2880, 2880, GPT_OSS),
}
# Which are measured in which format: as their checkpoints are, and the first two in NVFP4; tokens of FP4 also in bf16.
LAYERS = [("DeepSeek-V3", "moe_fp4"), ("Qwen3-235B", "moe_fp4"), ("DeepSeek-V3", "moe_bf16_nvfp4"),
          ("Qwen3-235B", "moe_bf16_nvfp4"), ("DeepSeek-V3", "moe_fp8"), ("Qwen3-235B", "moe_fp8"),
          ("gpt-oss-20b", "moe_mxfp8_mxfp4"), ("gpt-oss-120b", "moe_mxfp8_mxfp4"),
          ("gpt-oss-20b", "moe_bf16_mxfp4"), ("gpt-oss-120b", "moe_bf16_mxfp4")]  # fmt: skip


def round_up(value: int, multiple: int = TILE) -> int:
    return -(-value // multiple) * multiple


def padded(tensor: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """[.., rows, columns], zeros behind what is there."""
    return torch.nn.functional.pad(tensor, (0, columns - tensor.shape[-1], 0, rows - tensor.shape[-2]))


def in_turn(gate_up: torch.Tensor, rows: int, columns: int, turn: int = 1) -> torch.Tensor:
    """Gates, then ups [E, 2 I, ..] as ``turn`` gates and their ups in turn [E, 2 rows, columns], zeros behind."""
    halves = padded(gate_up.unflatten(1, (2, gate_up.shape[1] // 2)), rows, columns)
    return halves.unflatten(2, (rows // turn, turn)).transpose(1, 2).flatten(1, 3).contiguous()


class Weights:
    """One weight [E, N, K] of every expert: elements and scales in plain order. Of w13 all gates come first."""

    def __init__(self, fmt: Format, generator: torch.Generator, experts: int, n: int, k: int) -> None:
        self.format, self.shape = fmt, (experts, n, k)
        drawn = [fmt.draw(generator, n, k) for _ in range(experts)]
        # As bytes, since torch has few operations for types of one byte.
        self.elements, self.scales = (torch.stack([part.view(torch.uint8) for part in parts]).view(parts[0].dtype)
                                      for parts in zip(*drawn, strict=True))  # fmt: skip

    def bf16(self) -> torch.Tensor:
        """[E, N, K], exactly; by expert, because the float32 of all would be large."""
        values = torch.empty(self.shape, dtype=torch.bfloat16, device=DEVICE)
        (_, n, k), (rows, columns) = self.shape, self.format.block
        table = torch.tensor(E2M1, device=DEVICE)
        for expert, (elements, scales) in enumerate(zip(self.elements, self.scales, strict=True)):
            if self.format.packed:
                elements = table[torch.stack([elements & 0xF, elements >> 4], dim=-1).flatten(-2).int()]
            of_element = scales.float().repeat_interleave(rows, 0)[:n].repeat_interleave(columns, 1)[:, :k]
            values[expert] = elements.float() * of_element * self.format.decode
        return values

    def bytes_of_expert(self) -> int:
        return self.elements[0].nbytes + self.scales[0].nbytes

    def in_blocks(self, turn: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Elements and scales of packed weights with zeros up to so many rows and columns; where gates and ups are in
        turn, so many, rows are of each; 0 where there is one matrix. Scales in bytes and in plain order."""
        order = functools.partial(in_turn, turn=turn) if turn else padded
        scales = order(self.scales.view(torch.uint8), rows, columns // self.format.block[1])
        return order(self.elements, rows, columns // 2), scales

    def arguments(self, name: str, of_both: bool) -> dict[str, torch.Tensor]:
        """As the kernels take them, by name."""
        experts, n, k = self.shape
        if not self.format.packed:
            parts = (experts, 2, -1) if of_both else (experts, -1)
            return {name: self.elements.view(*parts, k), f"{name}_scale": self.scales.view(*parts, k // TILE)}
        turn, rows = (self.format.turn, self.format.between(n // 2)) if of_both else (0, n)
        elements, _ = self.in_blocks(turn, rows, round_up(k))
        _, scales = self.in_blocks(turn, rows if of_both else round_up(n), round_up(k))
        if self.format.fragments:
            elements = torch.stack([to_fragments(expert) for expert in elements])
        return {name: elements, f"{name}_scale": to_scale_layout(scales)}


class Layer:
    """Weights, and what a composite takes beside tokens and an output."""

    def __init__(self, composite: str, size: Size, seed: int = 0) -> None:
        generator = torch.Generator(DEVICE).manual_seed(seed)
        self.composite, self.size, self.format = composite, size, FORMATS[composite]
        experts, hidden, between = size.experts, size.hidden, size.between
        self.gate_up = Weights(self.format, generator, experts, 2 * between, hidden)
        self.w2 = Weights(self.format, generator, experts, hidden, between)

        def each(value: float) -> torch.Tensor:
            return torch.full((experts,), value, device=DEVICE)

        self.arguments = {**self.gate_up.arguments("w13", True), **self.w2.arguments("w2", False), **size.swiglu}
        if composite == "moe_fp4":
            self.arguments |= {
                "w13_alpha": each(WEIGHT_DECODE / X_ENCODE), "w2_alpha": each(WEIGHT_DECODE / H_ENCODE),
                "x_global_scale": each(X_ENCODE), "h_global_scale": each(H_ENCODE), "global_scale_kind": "encode",
            }  # fmt: skip
        elif self.format.packed:
            self.arguments |= {"w13_alpha": each(self.format.decode), "w2_alpha": each(self.format.decode)}
        self.biases: tuple[torch.Tensor, torch.Tensor] | None = None
        if size.swiglu:
            self.biases = tuple(torch.randn(experts, rows, device=DEVICE, generator=generator).bfloat16().float() / 8
                                for rows in (2 * between, hidden))  # fmt: skip
            w13_bias, w2_bias = self.biases
            rows = in_turn(w13_bias[..., None], self.format.between(between), 1, self.format.turn)
            self.arguments |= {"w13_bias": rows[..., 0], "w2_bias": w2_bias}

    def tokens(self, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
        """Every token picks distinct experts, all equally popular; arguments of the composites."""
        generator = torch.Generator(DEVICE).manual_seed(seed)
        keys = torch.rand(count, self.size.experts, device=DEVICE, generator=generator)
        weights = torch.rand(count, self.size.top_k, device=DEVICE, generator=generator)
        return {
            "x": torch.randn(count, self.size.hidden, device=DEVICE, generator=generator).bfloat16(),
            "topk_ids": keys.argsort(dim=1)[:, : self.size.top_k].int().contiguous(),
            "topk_weights": weights / weights.sum(dim=1, keepdim=True),
        }

    def least_bytes(self, tokens: dict[str, torch.Tensor]) -> int:
        """What must move: weights of the experts that have tokens, without padding, the tokens, and as many results."""
        experts = len(tokens["topk_ids"].unique())
        weights = self.gate_up.bytes_of_expert() + self.w2.bytes_of_expert()
        weights += sum(bias[0].nbytes for bias in self.biases or ())
        return experts * weights + 2 * tokens["x"].nbytes


def whole_arguments(layer: Layer, tokens: dict[str, torch.Tensor], out: torch.Tensor) -> dict[str, Any]:
    """Of the layer's composite, with a workspace of the caller."""
    arguments = {**layer.arguments, **tokens, "out": out}
    memory = torch.empty(loader.workspace_bytes(layer.composite, **arguments), dtype=torch.uint8, device=DEVICE)
    return {**arguments, "workspace": memory}


def whole(layer: Layer, tokens: dict[str, torch.Tensor], out: torch.Tensor) -> loader.Plan:
    """The composite as a plan."""
    return loader.plan(layer.composite, **whole_arguments(layer, tokens, out))


STEPS = ("route", "gather", "L1", "L2", "combine")


def steps(plan: loader.Plan) -> dict[str, Callable[[], None]]:
    """What each of the kernels of a plan does, and a launch of it alone on torch's current stream. The plan has been
    launched: so each finds what the ones before it write."""
    _, launches = plan._prepared._bound

    def alone(prepared: Any, pointers: tuple[int, ...]) -> Callable[[], None]:
        return lambda: prepared.launch(pointers, torch.cuda.current_stream().cuda_stream)

    return {what: alone(*launch) for what, launch in zip(STEPS, launches, strict=True)}


def unfused(layer: Layer, tokens: dict[str, torch.Tensor], out: torch.Tensor) -> list[tuple[str, loader.Plan]]:
    """The kernels of ``moe_fp4``, each with what it does; but L1 writes bf16, which a kernel of its own activates and
    quantises."""
    size, given, (count, top_k) = layer.size, layer.arguments, tokens["topk_ids"].shape
    rows = count * top_k
    scale_rows = (rows + 127 * min(size.experts, rows)) // 128 * 128

    def empty(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=DEVICE)

    route = {"expert_offsets": empty(size.experts + 1, dtype=torch.int32),
             "scale_offsets": empty(size.experts, dtype=torch.int32)}  # fmt: skip
    row_of_slot, slot_of_row = empty(count, top_k, dtype=torch.int32), empty(rows, dtype=torch.int32)
    row_weight = empty(rows, dtype=torch.float32)
    a, a_scale = empty(rows, size.hidden // 2), empty(scale_rows, size.hidden // GROUP)
    h, h_scale = empty(rows, size.between // 2), empty(scale_rows, size.between // GROUP)
    products = empty(rows, 2 * size.between, dtype=torch.bfloat16)
    results = empty(rows, size.hidden, dtype=torch.bfloat16)
    gate_up_scale = to_scale_layout(layer.gate_up.scales.view(torch.uint8))
    plans: list[tuple[str, loader.Plan]] = []

    def step(what: str, kernel: str, **arguments: Any) -> None:
        plans.append((what, loader.plan(kernel, **arguments)))

    step("route", "moe_route", topk_ids=tokens["topk_ids"], **route, row_of_slot=row_of_slot, slot_of_row=slot_of_row)
    step("gather", "moe_gather_quantize", x=tokens["x"], slot_of_row=slot_of_row, topk_weights=tokens["topk_weights"],
         **route, global_scale=given["x_global_scale"], a=a, a_scale=a_scale, row_weight=row_weight,
         global_scale_kind="encode")  # fmt: skip
    step("L1", "grouped_fp4", a=a, a_scale=a_scale, alpha=given["w13_alpha"], **route, b=layer.gate_up.elements,
         b_scale=gate_up_scale, out=products)  # fmt: skip
    step("activation", "silu_mul_nvfp4_quantize", x=products, **route, row_weight=row_weight,
         global_scale=given["h_global_scale"], out=h, out_scale=h_scale, global_scale_kind="encode")  # fmt: skip
    step("L2", "grouped_fp4", a=h, a_scale=h_scale, b=given["w2"], b_scale=given["w2_scale"], alpha=given["w2_alpha"],
         **route, out=results)  # fmt: skip
    step("combine", "moe_combine", rows=results, row_of_slot=row_of_slot, topk_weights=tokens["topk_weights"], out=out)
    return plans
