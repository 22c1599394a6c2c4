"""How the layers in NVFP4 take their weights: no arrays, for what prepares these with numpy and with torch."""

from __future__ import annotations

from typing import NamedTuple


class Layout(NamedTuple):
    """H as K of the first GEMM, H as N of the second, and I are multiples of ``inputs``, ``outputs`` and
    ``intermediate``. ``turn``: so many rows of gate and as many of up alternate. ``fragments``: values are in fragment
    order (docs/weights.md)."""

    inputs: int
    outputs: int
    intermediate: int
    turn: int
    fragments: bool = False


LAYOUTS = {
    "moe_fp4": Layout(32, 32, 32, 1),
    "moe_bf16_nvfp4": Layout(16, 16, 64, 64, fragments=True),
}
COMPOSITES = {9: "moe_bf16_nvfp4", 10: "moe_fp4", 12: "moe_fp4"}  # by the major version of a device
# Those that quantise tokens by global scales, with scalars for the kind that engines have.
GLOBAL_SCALES = {"moe_fp4": {"global_scale_kind": "decode"}}
