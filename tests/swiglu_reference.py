"""SwiGLU of a grouped GEMM and its quantisation to NVFP4, bit for bit, on the emulated device."""

from __future__ import annotations

import dataclasses

import numpy as np
import schedules
from quantization import EMULATED, NO_LIMIT, Swiglu, encode_scale, load, quantize, store
from reference import GROUP, GroupedProblem, GuardedOutput, round_up, scale_offset

UNWRITTEN = GuardedOutput.POISON


@dataclasses.dataclass(frozen=True)
class Settings:
    """The scalars of ``grouped_fp4_swiglu``."""

    global_scale_kind: str = "encode"
    division: str = "approximate"
    intermediate: str = "bf16"
    rounding: str = "activation_type"
    swiglu_alpha: float = 1.0
    swiglu_beta: float = 0.0
    swiglu_limit: float = NO_LIMIT
    activation: str = "silu"

    @property
    def swiglu(self) -> Swiglu:
        return Swiglu(self.rounding, self.swiglu_alpha, self.swiglu_beta, self.swiglu_limit, self.activation)


@dataclasses.dataclass(frozen=True)
class Quantized:
    """Bytes of the owned rows, [rows, I/2] and [rows, I/16], and which groups are known: bool [rows, I/16]."""

    out: np.ndarray
    groups: np.ndarray
    known: np.ndarray

    def verify(
        self, problem: GroupedProblem, out: GuardedOutput, out_scale: GuardedOutput, context: str,
        max_rows: int | None = None,
    ) -> None:  # fmt: skip
        """Every known byte, zeros in the padding of owned rows of scales, and nothing else written. max_rows: of each
        matrix of a launch by mask."""
        owned, columns = self.groups.shape
        at, scales_at = schedules.places(problem, max_rows)
        rows = scales_at[:, None]
        padded = round_up(columns, 4)
        scales = out_scale.array.reshape(-1)
        got = scales[scale_offset(rows, np.arange(padded), columns)]
        wrong = np.argwhere(self.known & (got[:, :columns] != self.groups))
        assert not len(wrong), f"{context}: {len(wrong)} scales differ, first of (row, group) {wrong[0]}"
        written = out.array[at].reshape(owned, columns, GROUP // 2)
        wrong = np.argwhere(self.known & (written != self.out.reshape(written.shape)).any(axis=-1))
        assert not len(wrong), f"{context}: {len(wrong)} groups differ, first (row, group) {wrong[0]}"
        assert (got[:, columns:] == 0).all(), f"{context}: padding of scales is not zero"
        others = np.ones(scales.shape, bool)
        others[scale_offset(rows, np.arange(padded), columns)] = False
        assert (scales[others] == UNWRITTEN).all(), f"{context}: scales of rows without an expert were written"
        intact = out.intact(len(out.array)) and out_scale.intact(len(out_scale.array))
        rest = np.delete(out.array, at, axis=0)
        assert intact and (rest == UNWRITTEN).all(), f"{context}: wrote outside the rows"


def swiglu_reference(
    problem: GroupedProblem,
    products: np.ndarray,
    row_weight: np.ndarray,
    global_scale: np.ndarray,
    settings: Settings,
    known: np.ndarray | None = None,
) -> Quantized:
    """What ``grouped_fp4_swiglu`` makes of ``products``, the fp32 result of ``grouped_fp4`` [rows, 2 I], gate and up in
    turn. known: bool [rows, 2 I], where ``products`` are exact to the bit; everywhere if not given."""
    owned, columns = products.shape
    experts = np.repeat(np.arange(len(global_scale)), np.diff(problem.expert_offsets))
    dtype = settings.intermediate
    gate, up = (load(store(products[:, part::2], dtype), dtype) for part in (0, 1))
    values = settings.swiglu.apply(gate, up, row_weight[:owned], dtype, EMULATED)
    encode = encode_scale(global_scale, settings.global_scale_kind)
    out, groups = quantize(values, encode[experts], settings.division, EMULATED)
    if known is None:
        known = np.ones(products.shape, bool)
    return Quantized(out, groups, known.reshape(owned, columns // (2 * GROUP), 2 * GROUP).all(axis=-1))
