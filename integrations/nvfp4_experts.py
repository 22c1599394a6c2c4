"""The experts of an NVFP4 layer as engines load them, made into the arguments of a composite: with torch.

An engine has gate and up of an expert as rows of one matrix, all of gate before all of up, scales in plain order, and
global scales that multiply what is dequantised (amax / 2688), as ModelOpt writes them. It has already cut the matrices
into parts of its ranks, so there is nothing to read here; docs/weights.md has the layouts that come of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from .expert_formats import TARGETS
from .scale_layouts import round_up

GROUP = 16
BLOCK = 128, 4  # rows and columns of scales
Change = Callable[[torch.Tensor], torch.Tensor]


class Matrices(NamedTuple):
    """One weight of E experts: ``values`` u8 [E, N, K / 2], ``scale`` E4M3 [E, N, K / 16] and, where activations are
    quantised, ``input_scale`` fp32. ``weight_scale`` and ``input_scale`` are [E, 2], of gate and of up, or [E]."""

    values: torch.Tensor
    scale: torch.Tensor
    weight_scale: torch.Tensor
    input_scale: torch.Tensor | None = None


def refusal(composite: str, hidden: int, intermediate: int) -> str | None:
    """Why a layer of H ``hidden`` and I ``intermediate``, a rank's part, cannot be prepared, None where it can."""
    target = TARGETS[composite]
    if hidden % target.inputs or hidden % target.outputs:
        return f"hidden size {hidden} is no multiple of {max(target.inputs, target.outputs)}"
    if intermediate % GROUP:
        return f"intermediate size {intermediate} of a rank is no multiple of {GROUP}, the values that share a scale"
    return None


def prepare(composite: str, w13: Matrices, w2: Matrices) -> dict[str, torch.Tensor]:
    """Arguments of ``moe_bf16_nvfp4`` or ``moe_fp4`` by name, each [E, ...] and contiguous.

    I is filled up with zeros to what the composite takes. An expert at a time is changed, so that little memory is
    needed beside the result. Reads global scales on the host. Raises ValueError for sizes that ``refusal`` names, and
    where ``moe_fp4`` finds no scales of activations.
    """
    target, intermediate = TARGETS[composite], w13.values.shape[1] // 2
    if reason := refusal(composite, w2.values.shape[1], intermediate):
        raise ValueError(f"{composite}: {reason}")
    padded = round_up(intermediate, target.intermediate)
    changes: dict[str, Change] = {
        "w13": lambda rows: in_turn(rows, target.turn or padded, padded),
        "w2": lambda rows: filled(rows, padded * rows.shape[-1] // intermediate),
    }
    arguments = {}
    for name, matrices in (("w13", w13), ("w2", w2)):
        change, scale = changes[name], matrices.scale.view(torch.uint8)
        arguments[name] = _each(matrices.values, lambda rows, change=change: target.store(change(rows)))
        blocks = _each(scale, lambda rows, change=change: to_blocks(change(rows)))
        arguments[f"{name}_scale"] = blocks.view(torch.float8_e4m3fn)
    return arguments | _numbers(composite, w13, w2)


def _each(experts: torch.Tensor, change: Change) -> torch.Tensor:
    """``change`` of each expert."""
    first = change(experts[0])
    changed = first.new_empty((len(experts), *first.shape))
    changed[0] = first
    for expert in range(1, len(experts)):
        changed[expert] = change(experts[expert])
    return changed


def _numbers(composite: str, w13: Matrices, w2: Matrices) -> dict[str, torch.Tensor]:
    """Alphas, and the global scales of activations where these are quantised."""
    factors, scales = {}, {}
    if composite == "moe_fp4":
        if w13.input_scale is None or w2.input_scale is None:
            raise ValueError("moe_fp4: the checkpoint has no scales of activations, so it has none to quantise them by")
        # Gate and up see the same activation, quantised once: with the scale that saturates for neither.
        factors = {"w13": w13.input_scale.amax(dim=1), "w2": w2.input_scale}
        scales = {"x_global_scale": factors["w13"], "h_global_scale": factors["w2"]}
    gate, up = (part * factors.get("w13", 1) for part in w13.weight_scale.unbind(dim=1))
    alphas = {"w13_alpha": gate, "w2_alpha": w2.weight_scale * factors.get("w2", 1)}
    if not torch.equal(gate, up):
        alphas["w13_up_alpha"] = up
    return {name: numbers.float().contiguous() for name, numbers in (alphas | scales).items()}


def in_turn(rows: torch.Tensor, turn: int, padded: int) -> torch.Tensor:
    """[2 I, K], all of gate before all of up, as ``turn`` rows of each in turn: [2 ``padded``, K], zeros at the end."""
    halves = rows.new_zeros((2, padded, rows.shape[1]))
    halves[:, : len(rows) // 2] = rows.unflatten(0, (2, -1))
    return halves.unflatten(1, (padded // turn, turn)).transpose(0, 1).flatten(0, 2)


def filled(rows: torch.Tensor, columns: int) -> torch.Tensor:
    """[N, K] with zeros up to ``columns``."""
    return torch.nn.functional.pad(rows, (0, columns - rows.shape[1]))


def to_blocks(scales: torch.Tensor) -> torch.Tensor:
    """u8 [rows, columns] in the 128x4 block layout, filled up with zeros to whole blocks."""
    rows, columns = (round_up(count, unit) for count, unit in zip(scales.shape, BLOCK, strict=True))
    padded = scales.new_zeros((rows, columns))
    padded[: scales.shape[0], : scales.shape[1]] = scales
    return padded.view(rows // 128, 4, 32, columns // 4, 4).permute(0, 3, 2, 1, 4).reshape(rows, columns)
