"""How the layers with weights in FP4 take these: no arrays, for what prepares them with numpy and with torch."""

from __future__ import annotations

from typing import NamedTuple


class Weights(NamedTuple):
    """``group``: so many values of K share a scale. ``tokens``: their types, as words of the loader. ``composites``: by
    the major version of a device."""

    group: int
    tokens: tuple[str, ...]
    composites: dict[int, str]


WEIGHTS = {
    "NVFP4": Weights(16, ("bf16", "f16"), {9: "moe_bf16_nvfp4", 10: "moe_fp4", 12: "moe_fp4"}),
    "MXFP4": Weights(32, ("bf16",), {9: "moe_bf16_mxfp4", 10: "moe_mxfp8_mxfp4", 12: "moe_mxfp8_mxfp4"}),
}


class Layout(NamedTuple):
    """H as K of the first GEMM, H as N of the second, and I are multiples of ``inputs``, ``outputs`` and
    ``intermediate``. ``turn``: so many rows of gate and as many of up alternate. ``fragments``: values are in fragment
    order (docs/weights.md). ``powers``: of UE8M0 the bytes with which kernels multiply exactly."""

    weights: str
    inputs: int
    outputs: int
    intermediate: int
    turn: int
    fragments: bool = False
    powers: range = range(0xFF)


LAYOUTS = {
    "moe_fp4": Layout("NVFP4", 32, 32, 32, 1),
    "moe_bf16_nvfp4": Layout("NVFP4", 16, 16, 64, 64, fragments=True),
    "moe_mxfp8_mxfp4": Layout("MXFP4", 128, 32, 128, 1),
    # Scales from 2^-100 to 2^33: pairs of E2M1 are lifted by a factor that is a bf16.
    "moe_bf16_mxfp4": Layout("MXFP4", 32, 32, 64, 64, fragments=True, powers=range(27, 161)),
}
# Those that quantise tokens by global scales, with scalars for the kind that engines have.
GLOBAL_SCALES = {"moe_fp4": {"global_scale_kind": "decode"}}
