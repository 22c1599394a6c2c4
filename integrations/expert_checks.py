"""What values and scales of each format have to be, so that the kernels give numbers."""

from __future__ import annotations

import numpy as np

from .expert_formats import CheckpointError
from .expert_layer import Layer
from .scale_layouts import SMALLEST_POWER


def check_matrix(layer: Layer, name: str, values: np.ndarray, scale: np.ndarray) -> None:
    """Refuse values and scales of a matrix, [N, K / pack] and one for each block; ``name`` is that of the scales."""
    if layer.weights == "NVFP4":
        _check_nvfp4(name, values, scale, layer.form.block[1])
    elif layer.form.has_numbers:
        _check_fp8(name, scale, powers=layer.target == "moe_fp8_ue8m0")
    else:
        _check_powers(layer, name, values, scale)
    if layer.form.pack == 1 and (values & 0x7F).max() == 0x7F:
        raise CheckpointError(f"{name} scales values of which some are NaN")


def _check_nvfp4(name: str, packed: np.ndarray, scale: np.ndarray, group: int) -> None:
    """Scales are positive numbers, or NaN where all that they scale is 0: exporters divide 0 by 0 there."""
    if scale.max() < 0x7F:
        return
    nan = scale & 0x7F == 0x7F
    if (scale[~nan] > 0x7F).any():
        raise CheckpointError(f"{name} has a negative scale")
    if _magnitudes(packed, scale, group)[nan].any():
        raise CheckpointError(f"{name} has a NaN scale of values that are not 0")


def _magnitudes(packed: np.ndarray, scale: np.ndarray, group: int) -> np.ndarray:
    """Of each block the bits of its E2M1 without their signs: [rows, blocks, bytes]."""
    magnitudes = np.zeros((*scale.shape, group // 2), np.uint8)
    magnitudes.reshape(len(scale), -1)[:, : packed.shape[1]] = packed & 0x77
    return magnitudes


def _check_powers(layer: Layer, name: str, values: np.ndarray, scale: np.ndarray) -> None:
    """Scales are numbers, and those that the kernels take exactly; what zeros have may be smaller."""
    least, most = layer.kernels.powers[0], layer.kernels.powers[-1]
    if (largest := scale.max()) == 0xFF:
        raise CheckpointError(f"{name} has a NaN scale")
    wrong = scale > most
    if (small := scale < least).any():
        wrong[small] = _magnitudes(values, scale, layer.form.block[1])[small].any(axis=-1)
    if wrong.any():
        found = largest if largest > most else scale[wrong].min()
        raise CheckpointError(
            f"{name} has a scale of 2^{int(found) - 127}, and {layer.target} takes 2^{least - 127} to 2^{most - 127}; "
            f"{layer.form.targets[0]} takes this checkpoint"
        )


def _check_fp8(name: str, scale: np.ndarray, powers: bool) -> None:
    """Scales are finite and not negative; for kernels that take exponents alone, powers of two from 2^-127 on."""
    bits = np.ascontiguousarray(scale).view("<u4")
    if (bits >= 0x7F800000).any():
        wrong = scale[bits >= 0x7F800000][0]
        raise CheckpointError(f"{name} has {wrong}, no finite scale that is at least 0")
    odd = (bits & 0x7FFFFF != 0) & (bits != SMALLEST_POWER) | (bits == 0)
    if powers and odd.any():
        raise CheckpointError(
            f"{name} has {scale[odd][0]}, no power of two, which UE8M0 cannot hold; moe_fp8 takes this checkpoint"
        )


def is_normal(number: np.float32) -> bool:
    """Whether the number is positive, and neither it nor its reciprocal a subnormal number."""
    smallest = np.finfo(np.float32).tiny
    return bool(smallest <= number.item() <= 1 / smallest)


def not_normal(name: str, number: np.float32) -> CheckpointError:
    return CheckpointError(f"{name} is {number.item()}, not a positive normal number")
