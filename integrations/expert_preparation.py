"""The experts of a layer as engines hold them in torch, made into the arguments of a composite.

An engine has gate and up of an expert as rows of one matrix, all of gate before all of up, scales in plain order, and
decode scales, amax / 2688, which multiply what is dequantised. It has already cut the matrices into parts of its ranks,
so there is nothing to read here; docs/weights.md has the layouts that come of it. All is done where the tensors lie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch.nn.functional import pad

from . import nvfp4
from .nvfp4_layouts import GLOBAL_SCALES, LAYOUTS
from .weight_fragments import to_fragments

Change = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Nvfp4:
    """Matrices of E experts in NVFP4, scales in plain order: gate above up, [E, 2 I, H], or down, [E, H, I].

    packed: uint8 [E, N, K / 2], even k in the low nibble. scales: [E, N, K / 16], float8_e4m3fn or its bytes. decode:
    float32, by which results are multiplied: [E], or of gate and up [E, 2].
    """

    packed: torch.Tensor
    scales: torch.Tensor
    decode: torch.Tensor

    def __post_init__(self) -> None:
        experts, n, width = self.packed.shape
        for name, tensor, dtypes, shapes in (
            ("packed", self.packed, (torch.uint8,), [(experts, n, width)]),
            ("scales", self.scales, (torch.uint8, nvfp4.SCALE), [(experts, n, width * 2 // nvfp4.GROUP)]),
            ("decode", self.decode, (torch.float32,), [(experts,), (experts, 2)]),
        ):
            if tensor.dtype not in dtypes or tuple(tensor.shape) not in shapes:
                raise ValueError(f"{name} of NVFP4 weights expects {dtypes[-1]} {' or '.join(map(str, shapes))}, got "
                                 f"{tensor.dtype} {tuple(tensor.shape)}")  # fmt: skip


def refusal(composite: str, hidden: int, intermediate: int) -> str | None:
    """Why a layer of H ``hidden`` and I ``intermediate``, a rank's part, cannot be prepared, None where it can."""
    layout = LAYOUTS[composite]
    if hidden % layout.inputs or hidden % layout.outputs:
        return f"hidden size {hidden} is no multiple of {max(layout.inputs, layout.outputs)}"
    if intermediate % nvfp4.GROUP:
        return (f"intermediate size {intermediate} of a rank is no multiple of {nvfp4.GROUP}, the values that share a "
                "scale")  # fmt: skip
    return None


def padded(intermediate: int, composite: str) -> int:
    """I with the zeros that the composite asks for behind it."""
    unit = LAYOUTS[composite].intermediate
    return -(-intermediate // unit) * unit


def prepare(
    composite: str,
    gate_up: Nvfp4,
    down: Nvfp4,
    input_decode: torch.Tensor | None = None,
    between_decode: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Arguments of ``moe_bf16_nvfp4`` or ``moe_fp4`` by name, each [E, ...] and contiguous.

    input_decode, between_decode: float32 [E], of gate and up also [E, 2], amax / 2688 of the tokens and of what
    ``down`` multiplies, as calibrated; where tokens stay in 16 bits they are not used. Without the first there is no
    ``x_global_scale``, and no alpha has it; without the other it is 1, a range of 2688.

    An expert at a time is changed, so that little memory is needed beside the result. ``w13_up_alpha`` is there where
    it differs from ``w13_alpha``, for which decode scales of both are read on the host. Raises ValueError where sizes
    do not fit one another or the kernels.
    """
    layout, (experts, hidden, width) = LAYOUTS[composite], down.packed.shape
    intermediate = 2 * width
    if gate_up.packed.shape != (experts, 2 * intermediate, hidden // 2):
        raise ValueError(f"{composite} takes gate and up [E, 2 I, H / 2] and down [E, H, I / 2], got "
                         f"{list(gate_up.packed.shape)} and {list(down.packed.shape)}")  # fmt: skip
    if reason := refusal(composite, hidden, intermediate):
        raise ValueError(f"{composite}: {reason}")
    size = padded(intermediate, composite)
    store = to_fragments if layout.fragments else torch.Tensor.contiguous
    changes: dict[str, tuple[Nvfp4, Change]] = {
        "w13": (gate_up, lambda rows: _in_turn(rows, layout.turn, size)),
        "w2": (down, lambda rows: pad(rows, (0, rows.shape[1] * (size - intermediate) // intermediate))),
    }
    arguments = {}
    for name, (weights, change) in changes.items():
        arguments[name] = _each(weights.packed, lambda rows, change=change: store(change(rows)))
        scales = weights.scales.view(torch.uint8)
        blocks = _each(scales, lambda rows, change=change: nvfp4.to_blocks(change(rows)[None])[0])
        arguments[f"{name}_scale"] = blocks.view(nvfp4.SCALE)
    numbers = _numbers(composite, gate_up.decode.reshape(experts, -1), down.decode, input_decode, between_decode)
    return arguments | {name: number.float().contiguous() for name, number in numbers.items()}


def _numbers(
    composite: str,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    input_decode: torch.Tensor | None,
    between_decode: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """Alphas of decode scales [E, 1 or 2] and [E], and global scales where activations are quantised by them."""
    scales = {}
    if composite in GLOBAL_SCALES:
        scales["h_global_scale"] = torch.ones_like(down) if between_decode is None else between_decode
        down = down * scales["h_global_scale"]
        if input_decode is not None:
            # Gate and up see the same activation, quantised once: with the scale that saturates for neither.
            scales["x_global_scale"] = input_decode.reshape(len(down), -1).amax(dim=1)
            gate_up = gate_up * scales["x_global_scale"][:, None]
    alphas = {"w13_alpha": gate_up[:, 0], "w2_alpha": down}
    if gate_up.shape[1] > 1 and not torch.equal(gate_up[:, 0], gate_up[:, 1]):
        alphas["w13_up_alpha"] = gate_up[:, 1]
    return alphas | scales


def _each(experts: torch.Tensor, change: Change) -> torch.Tensor:
    """``change`` of each expert."""
    first = change(experts[0])
    changed = first.new_empty((len(experts), *first.shape))
    changed[0] = first
    for expert in range(1, len(experts)):
        changed[expert] = change(experts[expert])
    return changed


def _in_turn(rows: torch.Tensor, turn: int, size: int) -> torch.Tensor:
    """[2 I, C], gate above up, as ``turn`` rows of each in turn: [2 ``size``, C], zeros at the end."""
    halves = rows.new_zeros((2, size, rows.shape[1]))
    halves[:, : len(rows) // 2] = rows.unflatten(0, (2, -1))
    return halves.unflatten(1, (size // turn, turn)).transpose(0, 1).flatten(0, 2)
