"""FP8 operations on torch tensors, outputs allocated: what the functions of vLLM and SGLang have in common.

Elements are torch.float8_e4m3fn. Scales are fp32 and multiply what is dequantised: of tokens one for 128 of K, or one
for all of it, of weights one for 128 x 128, or one for each row (output channel). No device memory is read on the host,
and what a call allocates follows from shapes alone.
"""

from __future__ import annotations

import torch

from . import nvfp4, ops

GROUP = 128
LEAST_AMAX = 1e-10
ELEMENT = torch.float8_e4m3fn


def check_group(group_size: int, dtype: torch.dtype | None = None) -> None:
    """NotImplementedError where the kernels have no such groups or elements."""
    if group_size != GROUP:
        raise NotImplementedError(f"scales are for {GROUP} values, not for {group_size}")
    if dtype not in (None, ELEMENT):
        raise NotImplementedError(f"elements are {ELEMENT}, not {dtype}")


def check_least_amax(eps: float) -> None:
    """NotImplementedError where it is not that of the kernels."""
    if eps != LEAST_AMAX:
        raise NotImplementedError(f"the least amax is {LEAST_AMAX}, not {eps}")


class Scales:
    """Room for the scales of rows, as kernels write them: ``stored``, in the layout that ``layout`` names.

    ``column_major``: those of neighbouring rows are neighbours, and columns are a multiple of 4 rows apart if
    ``aligned``.
    """

    def __init__(self, rows: torch.Tensor, k: int, column_major: bool, aligned: bool) -> None:
        self._rows, blocks = rows.shape[0], -(-k // GROUP)
        self._aligned = aligned
        self.layout = "mn_major" if column_major else "row_major"
        shape = (blocks, -(-self._rows // 4) * 4) if column_major else (self._rows, blocks)
        self.stored = rows.new_empty(shape, dtype=torch.float32)

    def result(self) -> torch.Tensor:
        """[rows, K / 128], a view but where columns are not to be aligned, and are not by themselves."""
        if self.layout == "row_major":
            return self.stored
        columns = self.stored[:, : self._rows]
        return (columns if self._aligned else columns.contiguous()).T


def quantize(
    x: torch.Tensor, column_major: bool = False, aligned: bool = False, power_of_two: bool | None = False,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """x [.., K] in bf16 or f16 -> elements of its shape, in ``out`` if there is one, and scales [.., K / 128]; a matrix
    where they are column-major."""
    if column_major and x.dim() != 2:
        raise NotImplementedError(f"column-major scales are those of a matrix, not of {x.dim()} dimensions")
    rows = x.reshape(-1, x.shape[-1])
    scales = Scales(rows, x.shape[-1], column_major, aligned)
    out = x.new_empty(x.shape, dtype=ELEMENT) if out is None else out
    ops.fp8_quantize(rows, out.view(rows.shape), scales.stored, scale_layout=scales.layout,
                     scale_rounding="power_of_two" if power_of_two else "none")  # fmt: skip
    return out, scales.result() if column_major else scales.result().view(*x.shape[:-1], -1)


def quantize_packed(x: torch.Tensor, out: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """x [.., K] -> elements [M, K], M all rows, and i32 [M, K / 512] of four UE8M0 each, rows a word apart and columns
    a multiple of 4 words. Rows of ``out`` from M on become zeros."""
    rows = x.reshape(-1, x.shape[-1])
    (m, k), pitch = rows.shape, -(-rows.shape[0] // 4) * 4
    words = rows.new_empty((-(-k // (4 * GROUP)), pitch), dtype=torch.int32)
    out = rows.new_empty(rows.shape, dtype=ELEMENT) if out is None else out.view(-1, k)
    out[m:].view(torch.uint8).zero_()
    ops.fp8_ue8m0_quantize(rows, out[:m], words)
    return out, words[:, :m].T


def silu_mul_quantize(
    x: torch.Tensor, column_major: bool = False, aligned: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``quantize`` of SiLU(gate) * up, x [M, 2 K]: gate, then up. The product is rounded to the type of x, its
    factors are not."""
    rows, k = x.contiguous(), x.shape[-1] // 2
    scales, out = Scales(rows, k, column_major, aligned), rows.new_empty((len(rows), k), dtype=ELEMENT)
    ops.silu_mul_fp8_quantize(rows, out, scales.stored, scale_layout=scales.layout)
    return out, scales.result()


def add_rms_norm_quantize(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None, column_major: bool, aligned: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``quantize`` of RMSNorm(x + residual) * weight, x [M, K] rounded in each step; residual becomes the sum."""
    rows = x.contiguous()
    scales, out = Scales(rows, x.shape[-1], column_major, aligned), rows.new_empty(rows.shape, dtype=ELEMENT)
    residual = rows.new_empty((0, rows.shape[1])) if residual is None else residual
    ops.add_rms_norm_fp8_quantize(rows, residual, weight, out, scales.stored, eps=eps, rounding="each_step",
                                  scale_layout=scales.layout)  # fmt: skip
    return out, scales.result()


def mn_major(scales: torch.Tensor) -> torch.Tensor:
    """[M, blocks] -> [blocks, M], M rounded up to 4: what GEMMs read of tokens; without a copy where it lies so."""
    return torch.nn.functional.pad(scales.T, (0, -scales.shape[0] % 4)).contiguous()


def scaled_mm(
    a: torch.Tensor, b: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor, out_dtype: torch.dtype,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """a [M, K] times b [K, N], whose columns lie in memory one behind the other -> [M, N].

    Scales in blocks are [M, K / 128] and [K / 128, N / 128], rounded up; else one for each row of a, and for each
    column of b, or one number. Sums of 128 of K are added up in fp32 in either case.
    """
    (m, k), n = a.shape, b.shape[1]
    out = a.new_empty((m, n), dtype=out_dtype)
    bias = None if bias is None else bias.float()
    blocks = -(-k // GROUP), -(-n // GROUP)
    if scale_a.shape == (m, blocks[0]) and scale_b.shape == blocks:
        ops.gemm_fp8(a, b.T, mn_major(scale_a), scale_b.T.contiguous(), out, None, bias)
        return out
    of_columns, of_rows = _each(scale_b, n)[None], _each(scale_a, m)
    bias = None if bias is None else bias[None]
    ops.grouped_fp8_channel_tokens(a, b.T[None], nvfp4.one_expert(a)[0], out, of_columns, of_rows, None, bias)
    return out


def group_mm_into(
    out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor,
    expert_offsets: torch.Tensor,
) -> None:  # fmt: skip
    """a [M, K], rows sorted by expert, times b [E, K, N], columns one behind the other, into out [M, N].

    expert_offsets [E]: the last expert has all rows to the end. Scales in blocks are [M, K / 128] and
    [E, K / 128, N / 128], else those of ``scaled_mm`` for each expert, [E, N] or [E, 1].
    """
    (m, k), (experts, _, n) = a.shape, b.shape
    offsets, weights = nvfp4.with_end(expert_offsets, experts, m).int(), b.transpose(1, 2)
    if scale_b.dim() == 3 and scale_b.shape[1:] == (-(-k // GROUP), -(-n // GROUP)):
        ops.grouped_fp8(a, weights, mn_major(scale_a), scale_b.transpose(1, 2).contiguous(), offsets, out)
        return
    of_columns = scale_b.reshape(experts, -1).expand(experts, n).contiguous()
    ops.grouped_fp8_channel_tokens(a, weights, offsets, out, of_columns, _each(scale_a, m))


def _each(scale: torch.Tensor, count: int) -> torch.Tensor:
    """One for each, where it is one for all."""
    return scale.reshape(-1).expand(count).contiguous()
