"""What checkpoints have and what kernels take, as tables: formats, the names that tools give, and layouts.

docs/weights.md says the same for readers.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from .fp4_layouts import LAYOUTS, Layout
from .scale_layouts import ROWS, SQUARES, UE4M3_BLOCKS, UE8M0_BLOCKS, UE8M0_WORDS, ScaleLayout, powers, round_up
from .weight_fragments import STAGE_K, from_fragments, to_fragments


class CheckpointError(ValueError):
    """A checkpoint that is not what its format says, or that the kernels cannot compute."""


class OtherFormatError(CheckpointError):
    """A layer in a format that is not read, such as BF16, or not for the kernels that were named."""


@dataclasses.dataclass(frozen=True)
class Target:
    """The layout that a composite or a kernel of the same name takes.

    H as K of the first GEMM, H as N of the second, and I are padded to multiples of ``inputs``, ``outputs`` and
    ``intermediate``. ``turn``: so many rows of gate and as many of up alternate; 0: all of gate come before all of up.
    ``fragments``: values are in fragment order. ``joined``: gates and ups are rows of one matrix. ``powers``: of UE8M0
    the bytes with which kernels multiply exactly.
    """

    name: str
    inputs: int
    outputs: int
    intermediate: int
    turn: int
    scales: ScaleLayout
    fragments: bool = False
    powers: range = range(0xFF)
    joined: bool = False

    def stacked(self, matrices: int, *shape: int) -> tuple[int, ...]:
        """The shape of so many matrices of an expert: one behind the other, or the rows of all in one."""
        if matrices == 1:
            return shape
        return (matrices * shape[0], *shape[1:]) if self.joined else (matrices, *shape)

    def width(self, columns: int) -> int:
        """Bytes of a row of values, where a checkpoint's padded row would have ``columns``."""
        return round_up(columns, STAGE_K // 2) if self.fragments else columns

    def store(self, values: np.ndarray) -> np.ndarray:
        """Rows of a checkpoint in the order of the kernels."""
        return to_fragments(values) if self.fragments else values

    def load(self, stored: np.ndarray, columns: int) -> np.ndarray:
        """The first ``columns`` of each of the rows that ``store`` made."""
        return (from_fragments(stored, 2 * stored.shape[-1]) if self.fragments else stored)[..., :columns]


FP4_SCALES = {"NVFP4": UE4M3_BLOCKS, "MXFP4": UE8M0_BLOCKS}


def _fp4(name: str, layout: Layout) -> Target:
    fields = layout._asdict()
    return Target(name, scales=FP4_SCALES[fields.pop("weights")], **fields)


TARGETS = {
    target.name: target
    for target in (
        *(_fp4(name, layout) for name, layout in LAYOUTS.items()),
        Target("moe_mxfp8", 32, 32, 32, 1, UE8M0_BLOCKS),
        Target("moe_mxfp4", 32, 32, 32, 1, UE8M0_BLOCKS),
        Target("moe_fp8", 16, 16, 16, 0, SQUARES),
        Target("moe_fp8_channel", 16, 16, 16, 0, ROWS, joined=True),
        Target("moe_fp8_ue8m0", 16, 16, 16, 0, UE8M0_WORDS),
    )
}


ALL = 1 << 30  # of K, however long it is


@dataclasses.dataclass(frozen=True)
class Format:
    """Values of ``values``, ``pack`` in a byte, of which ``block`` (rows, columns) share a scale of ``scales``: dtypes
    of a file, the first one the usual. An exporter may fill K up to a multiple of ``fill``. ``targets`` take it."""

    name: str
    values: tuple[str, ...]
    pack: int
    block: tuple[int, int]
    scales: tuple[str, ...]
    fill: int
    targets: tuple[str, ...]  # the first one unless another is asked for

    @property
    def step(self) -> int:
        """Where ranks of tensor parallelism may cut: at multiples of this, of rows or columns."""
        return max(size for size in self.block if size != ALL)

    @property
    def has_numbers(self) -> bool:
        """Scales are numbers, fp32 once they are read."""
        return "F32" in self.scales


FORMATS = {
    form.name: form
    for form in (
        Format("NVFP4", ("U8",), 2, (1, 16), ("F8_E4M3",), 16, ("moe_fp4", "moe_bf16_nvfp4")),
        Format("MXFP4", ("U8", "I8"), 2, (1, 32), ("U8", "F8_E8M0"), 32,
               ("moe_mxfp8_mxfp4", "moe_mxfp4", "moe_bf16_mxfp4")),
        Format("MXFP8", ("F8_E4M3",), 1, (1, 32), ("U8", "F8_E8M0"), 1, ("moe_mxfp8",)),
        Format("FP8", ("F8_E4M3",), 1, (128, 128), ("F32", "BF16", "F8_E8M0"), 1, ("moe_fp8", "moe_fp8_ue8m0")),
        Format("FP8 channel", ("F8_E4M3",), 1, (1, ALL), ("F32", "BF16"), 1, ("moe_fp8_channel",)),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Source:
    """How a tool names the tensors of a quantised matrix, behind the projection.

    ``marks`` are suffixes that say it is this one. ``encode``: global scales multiply what is quantised, 2688 / amax;
    otherwise they multiply what is dequantised, amax / 2688. ``in_turn``: rows of gate and up alternate. ``chunk``:
    bytes of the last dimension of the values, where that is one more.
    """

    name: str
    values: str
    scale: str
    formats: tuple[str, ...]
    marks: tuple[str, ...]
    weight_global: str | None = None  # as of all that a tool has not; "" is a suffix
    input_global: str | None = None
    encode: bool = False
    bias: str | None = None
    in_turn: bool = False
    chunk: int = 0

    def decode(self, scale: np.float32) -> np.float32:
        """The factor of dequantised values."""
        return np.float32(1) / scale if self.encode else scale


def _nvfp4(name: str, values: str, scale: str, weight_global: str, input_global: str, encode: bool) -> Source:
    return Source(name, values, scale, ("NVFP4",), (weight_global,), weight_global, input_global, encode)


def _plain(name: str, values: str, scale: str, *marks: str) -> Source:
    """Values and scales alone: their types and shapes say in which format."""
    return Source(name, values, scale, ("MXFP4", "MXFP8", "FP8", "FP8 channel"), marks)


SOURCES = {
    source.name: source
    for source in (
        _nvfp4("modelopt", ".weight", ".weight_scale", ".weight_scale_2", ".input_scale", False),
        _nvfp4("modelopt parameters", "", "_weight_scale", "_weight_scale_2", "_input_scale", False),
        _nvfp4("modelopt short", "", "_scale", "_scale_2", "_input_scale", False),
        _nvfp4("compressed-tensors", ".weight_packed", ".weight_scale", ".weight_global_scale", ".input_global_scale",
               True),
        _nvfp4("compressed-tensors parameters", "_packed", "_scale", "_global_scale", "_input_global_scale", True),
        Source("gpt-oss", "_blocks", "_scales", ("MXFP4",), ("_blocks",), bias="_bias", in_turn=True, chunk=16),
        _plain("weight_packed", ".weight_packed", ".weight_scale", ".weight_packed"),
        _plain("packed", "_packed", "_scale", "_packed"),
        _plain("weight_scale", ".weight", ".weight_scale", ".weight", ".weight_scale"),
        _plain("parameters", "", "_weight_scale", "", "_weight_scale"),
        _plain("short parameters", "", "_scale", "", "_scale"),
        _plain("weight_scale_inv", ".weight", ".weight_scale_inv", ".weight_scale_inv"),
        _plain("scale_inv parameters", "", "_scale_inv", "_scale_inv"),
        _plain("scale", ".weight", ".scale", ".scale"),
    )
}  # fmt: skip
# What is not read, by the end of a name that only it has.
FOREIGN = {"pre_quant_scale": "AWQ, which multiplies the activations by pre_quant_scale; that is not supported"}

FUSED = "gate_up_proj"
WEIGHT_SHAPE = ".weight_shape"
ALONE = ("",)  # the projection of a matrix that no other belongs to, whose prefix is its whole name
PROJECTIONS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), (FUSED, "down_proj"), ALONE)  # gate, up, down
WHOLE_NAME = "{prefix}{suffix}"
UNNUMBERED = "{prefix}.{projection}{suffix}"  # tensors of all experts, or of a dense MLP
EXPERT_FIRST, PROJECTION_FIRST = "{prefix}.{expert}.{projection}{suffix}", "{prefix}.{projection}.{expert}{suffix}"
_PROJECTION = "gate_up_proj|gate_proj|up_proj|down_proj|w[123]"
# Of attention: Qwen, GLM and others, DeepSeek, and DeepSeek by its own names.
_ATTENTION = "[qkvo]_proj|qkv_proj|q_[ab]_proj|kv_a_proj_with_mqa|kv_b_proj|wq|wq_[ab]|wkv_[ab]|wo"
# All that lies below experts, the projections right below a dense MLP or experts that every token has, and of attention
# what belongs to a quantised matrix: neither biases nor scales of a cache.
BELOW = re.compile(
    r"(?s)(?P<prefix>.+\.experts|.+\.(?:mlp|ffn|feed_forward|shared_experts?)"
    rf"(?=\.(?:{_PROJECTION})(?![^._])(?![._]\d))"
    rf"|.+\.(?:self_attn|attention|attn|mixer)\.(?:{_ATTENTION})(?=\.(?:weight|input|scale)))\.(?P<rest>.+)"
)
OF_ATTENTION = re.compile(rf".*\.(?:{_ATTENTION})", re.DOTALL)
SUFFIX = re.compile(r"(?P<before>)(?P<projection>)(?P<after>)(?P<suffix>\.[a-z_]\w*)")  # of a matrix that is alone
NAME = re.compile(
    rf"(?:(?P<before>0|[1-9]\d{{0,8}})\.)?(?P<projection>{_PROJECTION})"
    r"(?:\.(?P<after>0|[1-9]\d{0,8}))?(?P<suffix>(?:[._][a-z_]\w*)?)"
)


def widened(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers of a file as fp32, exactly; a byte of UE8M0 is its power of two, 255 infinity."""
    if dtype == "F32":
        return numbers
    if dtype == "BF16":
        return (numbers.astype("<u4") << 16).view("<f4")
    return powers(numbers)


def narrowed(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """What ``widened`` made fp32 of."""
    if dtype == "F32":
        return numbers
    bits = np.ascontiguousarray(numbers).view("<u4")
    return (bits >> 16).astype("<u2") if dtype == "BF16" else (bits >> 23).astype(np.uint8)
