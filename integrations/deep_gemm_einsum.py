"""DeepGEMM's einsums: products of batches of matrices, and a sum of products over a batch.

The inner stride of every operand is 1, the others are the caller's: a slice is read where it lies. Results lie without
gaps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from . import deep_gemm_scales as _scales
from . import loader
from .deep_gemm_scales import SCALE_BLOCK, Scaled

# What the name of a family ends in. The letters of a and out begin with the rows, or K, and the matrix; those of b have
# the matrix where its name is written first.
_OF_MATRICES = {"bhr,hdr->bhd": "", "bhd,hdr->bhr": "_nn", "bhd,bhr->hdr": "_tn"}
_CHAINED = "bmk,bnk->mn"
_TILE = 128  # rows and columns of a share of K
# Of K that a share has at least, 12 stages: sums of shorter ones take longer to write and to read than their operands.
_SHARE = 12 * 64


def einsum(
    expr: str, a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, c: torch.Tensor | None = None,
    use_cublaslt: bool = False,
) -> None:  # fmt: skip
    """d = the sum of products that ``expr`` says, of bf16: ``bhr,hdr->bhd`` and ``bhd,hdr->bhr`` into bf16,
    ``bhd,bhr->hdr`` into fp32, and ``bmk,bnk->mn`` into either. An fp32 d is added to where c is d.

    ``use_cublaslt``: by cuBLASLt as torch calls it, of the first two. Results of kernels here are the same bytes every
    time.
    """
    sizes = _sizes(expr, [*_OF_MATRICES, _CHAINED], a, b, d)
    _check_types(expr, {"a": (a, [torch.bfloat16]), "b": (b, [torch.bfloat16]), "d": (d, _results(expr))})
    accumulate = _accumulate(c, d)
    if use_cublaslt:
        _by_cublaslt(expr, a, b, d)
    elif not _is_done(expr, sizes, d, accumulate):
        if expr == _CHAINED:
            _sum_of_products(a, b, d, accumulate)
        else:
            loader.launch("einsum_bf16" + _OF_MATRICES[expr], **_operands(expr, a, b), out=_packed(d),
                          accumulate=accumulate)  # fmt: skip


def fp8_einsum(
    expr: str, a: Scaled, b: Scaled, d: torch.Tensor, c: torch.Tensor | None = None,
    recipe: tuple[int, int, int] = (1, SCALE_BLOCK, SCALE_BLOCK),
) -> None:  # fmt: skip
    """The same of FP8: ``bhr,hdr->bhd`` into bf16, scales of a [b, h, r / 128], of b [h, d / 128, r / 128]; and on
    Blackwell, by scales that are powers of two or their exponents, ``bhd,hdr->bhr`` (of a [b, h, d / 128], of b
    [h, d / 128, r / 128]) into bf16, and with the recipe (1, 1, 128) ``bhd,bhr->hdr`` (of a [b / 128, h, d], of b
    [b / 128, h, r]) into fp32, which is added to where c is d."""
    sizes = _sizes(expr, list(_OF_MATRICES), a[0], b[0], d)
    letters = _OF_MATRICES[expr]
    expected = (1, 1 if letters == "_tn" else SCALE_BLOCK, SCALE_BLOCK)
    if tuple(recipe) != expected:
        raise NotImplementedError(f"recipe: of {expr} expected {expected}, got {tuple(recipe)}")
    e4m3 = [torch.float8_e4m3fn]
    _check_types(expr, {"a": (a[0], e4m3), "b": (b[0], e4m3), "d": (d, _results(expr))})
    accumulate = _accumulate(c, d)
    if _is_done(expr, sizes, d, accumulate):
        return
    formats, scales = _scales_of(letters, a, b, recipe[1])
    if letters and formats != "fp8_ue8m0":
        raise NotImplementedError(f"{expr}: on Hopper FP8 is covered as bhr,hdr->bhd alone, K-major")
    loader.launch(f"einsum_{formats}{letters}", **_operands(expr, a[0], b[0]), **scales, out=_packed(d),
                  accumulate=accumulate)  # fmt: skip


# What both share


def _sizes(expr: str, covered: Sequence[str], a: torch.Tensor, b: torch.Tensor, d: torch.Tensor) -> dict[str, int]:
    """Of each letter."""
    if expr not in covered:
        raise NotImplementedError(f"expr: expected {' or '.join(covered)}, got {expr!r}")
    sizes: dict[str, int] = {}
    for name, letters, x in zip("abd", expr.replace("->", ",").split(","), (a, b, d), strict=True):
        expected = tuple(sizes.get(letter, -1) for letter in letters)
        if len(expected) != x.dim() or any(e not in (-1, size) for e, size in zip(expected, x.shape, strict=True)):
            known = [f"{letter} = {sizes[letter]}" if letter in sizes else letter for letter in letters]
            raise ValueError(f"{name}: of {expr} expected [{', '.join(known)}], got {tuple(x.shape)}")
        sizes |= dict(zip(letters, x.shape, strict=True))
    return sizes


def _results(expr: str) -> list[torch.dtype]:
    return {"bhd,bhr->hdr": [torch.float32], _CHAINED: [torch.float32, torch.bfloat16]}.get(expr, [torch.bfloat16])


def _check_types(expr: str, given: dict[str, tuple[torch.Tensor, list[torch.dtype]]]) -> None:
    for name, (x, types) in given.items():
        if x.dtype not in types:
            raise NotImplementedError(f"{name}: of {expr} expected {' or '.join(map(str, types))}, got {x.dtype}")


def _accumulate(c: torch.Tensor | None, d: torch.Tensor) -> str:
    if c is None:
        return "overwrite"
    if d.dtype != torch.float32:
        raise NotImplementedError(f"c: expected None with d in {d.dtype}; what is added to is fp32")
    if (c.data_ptr(), c.shape, c.stride()) != (d.data_ptr(), d.shape, d.stride()):
        raise NotImplementedError("c: expected d itself, got another tensor")
    return "add"


def _is_done(expr: str, sizes: dict[str, int], d: torch.Tensor, accumulate: str) -> bool:
    """Whether there is nothing to multiply; then d is zeros, or as it was."""
    if 0 not in sizes.values():
        return False
    if accumulate == "overwrite":
        d.zero_()
    return True


def _packed(d: torch.Tensor) -> torch.Tensor:
    if not d.is_contiguous():
        raise NotImplementedError(f"d: expected no gaps, got strides {d.stride()} of {tuple(d.shape)}")
    return d


def _operands(expr: str, a: torch.Tensor, b: torch.Tensor) -> dict[str, Any]:
    """Both as what lies from the first element to the last, with their pitches, and the length of a sum."""
    of_a, of_b = expr.split("->")[0].split(",")
    k = next(size for letter, size in zip(of_a, a.shape, strict=True) if letter not in expr.split("->")[1])
    given: dict[str, Any] = {"K": k}
    for name, letters, x in (("a", of_a, a), ("b", of_b, b)):
        matrix = letters.index("h")
        row_pitch, matrix_pitch = _pitch(x, name, 1 - matrix), _pitch(x, name, matrix)
        last = (x.shape[1 - matrix] - 1) * row_pitch + (x.shape[matrix] - 1) * matrix_pitch + x.shape[2] - 1
        given |= {name: x.as_strided((last + 1,), (1,)), f"{name}_row": row_pitch, f"{name}_matrix": matrix_pitch}
    return given


def _pitch(x: torch.Tensor, name: str, axis: int) -> int:
    """Elements from one of an axis to the next, which are 16 bytes of TMA; of one alone it does not matter."""
    granule = 16 // x.element_size()
    if x.stride(2) != 1 and x.shape[2] > 1:
        raise NotImplementedError(f"{name}: expected an inner stride of 1, got strides {x.stride()}")
    if x.shape[axis] == 1:
        return -(-x.shape[2] // granule) * granule
    if x.stride(axis) < granule or x.stride(axis) % granule:
        raise NotImplementedError(f"{name}: expected outer strides that are multiples of {granule}, 16 bytes, got "
                                  f"{x.stride()} of {tuple(x.shape)}")  # fmt: skip
    return x.stride(axis)


def _by_cublaslt(expr: str, a: torch.Tensor, b: torch.Tensor, d: torch.Tensor) -> None:
    if _OF_MATRICES.get(expr) not in ("", "_nn"):
        raise NotImplementedError(f"use_cublaslt: expected bhr,hdr->bhd or bhd,hdr->bhr, got {expr}")
    torch.bmm(a.transpose(0, 1), b if _OF_MATRICES[expr] else b.mT, out=d.transpose(0, 1))


def _sum_of_products(a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, accumulate: str) -> None:
    """Few tiles: so many shares of K that every multiprocessor has a tile of one, added in order."""
    (m, n), tiles = d.shape, math.prod(-(-size // _TILE) for size in d.shape)
    shares = max(1, min(_multiprocessors(d) // tiles, -(-a.shape[0] * a.shape[2] // _SHARE)))
    parts = torch.empty(shares, m, n, dtype=torch.float32, device=d.device)
    loader.launch("einsum_bf16_shares", a=a, b=b, out=parts)
    loader.launch("sum_of_shares", shares=parts, out=_packed(d), accumulate=accumulate)


def _multiprocessors(d: torch.Tensor) -> int:
    return torch.cuda.get_device_properties(d.device).multi_processor_count if d.is_cuda else 4


def _scales_of(letters: str, a: Scaled, b: Scaled, weight_rows: int) -> tuple[str, dict[str, torch.Tensor]]:
    """Of matrices [h, rows, K], views of the caller's."""
    (x, x_scale), (y, y_scale) = a, b
    if letters == "_tn":
        views = x_scale.permute(1, 2, 0), y_scale.permute(1, 2, 0), x.permute(1, 2, 0), y.permute(1, 2, 0)
    else:
        turned = letters == "_nn"
        views = (_of_heads(x_scale), y_scale.mT if turned else y_scale, x.transpose(0, 1), y.mT if turned else y)
    of_a, of_b, *operands = views
    return _scales.scales_of(of_a, of_b, *(each.shape for each in operands), weight_rows, True)


def _of_heads(scale: torch.Tensor) -> torch.Tensor:
    """[h, b, blocks] of [b, h, blocks]; of fp32 that stays so, with rows as neighbours by one transposition for all."""
    if scale.dtype != torch.float32 or scale.dim() != 3 or _scales.is_blackwell(scale):
        return scale.transpose(0, 1)
    rows, heads, blocks = scale.shape
    laid = _scales.mn_major(scale.reshape(rows, -1), (rows, heads * blocks * SCALE_BLOCK), "a")
    return laid.view(heads, blocks, -1)[..., :rows].mT
