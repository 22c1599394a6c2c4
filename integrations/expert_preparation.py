"""The experts of a layer as engines hold them in torch, made into the arguments of a composite.

An engine has gate and up of an expert as rows of one matrix, scales in plain order, and of NVFP4 decode scales,
amax / 2688, which multiply what is dequantised. It has already cut the matrices into parts of its ranks, so there is
nothing to read here; docs/weights.md has the layouts that come of it. All is done where the tensors lie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch.nn.functional import pad

from . import loader, nvfp4
from .fp4_layouts import GLOBAL_SCALES, LAYOUTS, WEIGHTS
from .weight_fragments import to_fragments

Change = Callable[[torch.Tensor], torch.Tensor]
round_up = loader.expression.round_up
WORDS = {torch.bfloat16: "bf16", torch.float16: "f16"}  # of tokens, as the loader names them
MAGNITUDES = 0x77  # of two E2M1, without their signs


@dataclasses.dataclass(frozen=True)
class Nvfp4:
    """Matrices of E experts in NVFP4, scales in plain order: gate and up, [E, 2 I, H], or down, [E, H, I].

    packed: uint8 [E, N, K / 2], even k in the low nibble. scales: [E, N, K / 16], float8_e4m3fn or its bytes. decode:
    float32, by which results are multiplied: [E], or of gate and up [E, 2].
    """

    packed: torch.Tensor
    scales: torch.Tensor
    decode: torch.Tensor
    bias = None

    def __post_init__(self) -> None:
        experts = len(self.packed)
        _check(self, "NVFP4", (nvfp4.SCALE, torch.uint8))
        _check_tensor("decode of NVFP4", self.decode, (torch.float32,), (experts,), (experts, 2))


@dataclasses.dataclass(frozen=True)
class Mxfp4:
    """Matrices of E experts in MXFP4, as ``Nvfp4`` has them.

    packed: uint8 [E, N, K / 2], even k in the low nibble. scales: [E, N, K / 32], float8_e8m0fnu or its bytes. bias:
    added to results, bf16 or float32 [E, N], or None.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None = None

    def __post_init__(self) -> None:
        _check(self, "MXFP4", (torch.uint8, torch.float8_e8m0fnu))
        if self.bias is not None:
            _check_tensor("bias of MXFP4", self.bias, (torch.float32, torch.bfloat16), tuple(self.packed.shape[:2]))

    @property
    def decode(self) -> torch.Tensor:
        """Of which there are none."""
        return torch.ones(len(self.packed), device=self.packed.device)


def _check(matrices: Nvfp4 | Mxfp4, weights: str, scales: tuple[torch.dtype, ...]) -> None:
    experts, n, width = matrices.packed.shape
    _check_tensor(f"packed of {weights}", matrices.packed, (torch.uint8,), (experts, n, width))
    _check_tensor(f"scales of {weights}", matrices.scales, scales, (experts, n, 2 * width // WEIGHTS[weights].group))


def _check_tensor(name: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...], *shapes: tuple[int, ...]) -> None:
    if tensor.dtype not in dtypes or tuple(tensor.shape) not in shapes:
        raise ValueError(f"{name} weights expects {dtypes[0]} {' or '.join(map(str, shapes))}, got "
                         f"{tensor.dtype} {tuple(tensor.shape)}")  # fmt: skip


def refusal(composite: str, hidden: int, intermediate: int) -> str | None:
    """Why a layer of H ``hidden`` and I ``intermediate``, a rank's part, cannot be prepared, None where it can."""
    layout = LAYOUTS[composite]
    group = WEIGHTS[layout.weights].group
    if hidden % layout.outputs:
        return f"hidden size {hidden} is no multiple of {layout.outputs}"
    if intermediate % group:
        return f"intermediate size {intermediate} of a rank is no multiple of {group}, the values that share a scale"
    return None


def padded(intermediate: int, composite: str) -> int:
    """I with the zeros that the composite asks for behind it."""
    return round_up(intermediate, LAYOUTS[composite].intermediate)


def prepare(
    composite: str,
    gate_up: Nvfp4 | Mxfp4,
    down: Nvfp4 | Mxfp4,
    input_decode: torch.Tensor | None = None,
    between_decode: torch.Tensor | None = None,
    alternate: bool = False,
) -> dict[str, torch.Tensor]:
    """Arguments of a composite of ``LAYOUTS`` by name, each [E, ...] and contiguous.

    input_decode, between_decode: float32 [E], of gate and up also [E, 2], amax / 2688 of the tokens and of what
    ``down`` multiplies, as calibrated; ``moe_fp4`` alone uses them. Without the first there is no ``x_global_scale``,
    and no alpha has it; without the other it is 1, a range of 2688. alternate: rows of gate and up do, as gpt-oss has
    them; else all of gate come before all of up.

    An expert at a time is changed, so that little memory is needed beside the result. ``w13_up_alpha`` is there where
    it differs from ``w13_alpha``, for which decode scales of both are read on the host, as are scales of MXFP4. Raises
    ValueError where sizes do not fit one another or the kernels, and for scales of MXFP4 that these do not multiply by
    exactly.
    """
    layout, (experts, hidden, width) = LAYOUTS[composite], down.packed.shape
    intermediate = 2 * width
    if gate_up.packed.shape != (experts, 2 * intermediate, hidden // 2):
        raise ValueError(f"{composite} takes gate and up [E, 2 I, H / 2] and down [E, H, I / 2], got "
                         f"{list(gate_up.packed.shape)} and {list(down.packed.shape)}")  # fmt: skip
    if reason := refusal(composite, hidden, intermediate):
        raise ValueError(f"{composite}: {reason}")
    size, group = padded(intermediate, composite), WEIGHTS[layout.weights].group
    store = to_fragments if layout.fragments else torch.Tensor.contiguous
    arguments = {}
    for name, weights, k, order in (
        ("w13", gate_up, round_up(hidden, layout.inputs), lambda rows: _in_turn(rows, layout.turn, size, alternate)),
        ("w2", down, size, lambda rows: rows),
    ):
        scales = weights.scales.view(torch.uint8)
        if isinstance(weights, Mxfp4):
            _check_powers(composite, name, weights.packed, scales)
        arguments[name] = _each(weights.packed, lambda rows, k=k, order=order: store(_filled(order(rows), k // 2)))
        blocks = _each(scales, lambda rows, k=k, order=order: _blocks(_filled(order(rows), k // group)))
        arguments[f"{name}_scale"] = blocks if isinstance(weights, Mxfp4) else blocks.view(nvfp4.SCALE)
        if weights.bias is not None:
            arguments[f"{name}_bias"] = _each(weights.bias[..., None].float(), order).squeeze(2)
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


def _check_powers(composite: str, name: str, packed: torch.Tensor, scales: torch.Tensor) -> None:
    """Scales are numbers that the composite takes exactly; what zeros have may be smaller."""
    powers, group = LAYOUTS[composite].powers, WEIGHTS["MXFP4"].group
    for expert, (values, its) in enumerate(zip(packed, scales, strict=True)):
        wrong = its < powers[0]
        wrong &= (values & MAGNITUDES).bool().unflatten(1, (-1, group // 2)).any(dim=2)
        wrong |= its > powers[-1]
        if wrong.any():
            byte = int(its[wrong].max())
            found = "NaN for a scale" if byte == 0xFF else f"a scale of 2^{byte - 127}"
            raise ValueError(f"{composite}: {name} of expert {expert} has {found}, and what is taken is "
                             f"2^{powers[0] - 127} to 2^{powers[-1] - 127}")  # fmt: skip


def _each(experts: torch.Tensor, change: Change) -> torch.Tensor:
    """``change`` of each expert."""
    first = change(experts[0])
    changed = first.new_empty((len(experts), *first.shape))
    changed[0] = first
    for expert in range(1, len(experts)):
        changed[expert] = change(experts[expert])
    return changed


def _in_turn(rows: torch.Tensor, turn: int, size: int, alternate: bool) -> torch.Tensor:
    """[2 I, C] as ``turn`` rows of gate and as many of up in turn: [2 ``size``, C], zeros at the end."""
    halves = rows.new_zeros((2, size, rows.shape[1]))
    found = rows.unflatten(0, (-1, 2)).transpose(0, 1) if alternate else rows.unflatten(0, (2, -1))
    halves[:, : len(rows) // 2] = found
    return halves.unflatten(1, (size // turn, turn)).transpose(0, 1).flatten(0, 2)


def _filled(rows: torch.Tensor, columns: int) -> torch.Tensor:
    """[N, C] with zeros up to ``columns``."""
    return pad(rows, (0, columns - rows.shape[1]))


def _blocks(scales: torch.Tensor) -> torch.Tensor:
    return nvfp4.to_blocks(scales[None])[0]
