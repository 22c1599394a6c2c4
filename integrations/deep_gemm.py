"""DeepGEMM's functions by their names and with their arguments, as far as kernels here cover them: on Hopper FP8 with
fp32 scales (tokens per 1 x 128, weights per 128 x 128 or 1 x 128), K-major, and bf16 of either major; dense, with
groups of rows, masked, and with groups along K. On Blackwell (emulated, not run) the same with UE8M0 scales of each row
for FP8, which there may have either major; on Hopper, too, where scales come as exponents, but K-major and not with
groups along K. On both, dense and with groups of rows, FP8 tokens by FP4 weights and FP4 tokens by FP8 weights: FP4
is packed in int8, K-major, with scales per 1 x 32 that are powers of two, which ``recipe_a`` or ``recipe_b`` says:
(1, 32). MXFP8 as well, FP8 with such scales of both operands, K-major, and MXFP8 tokens by FP4 weights. Einsums are
those of ``deep_gemm_einsum``, the product in tf32 of hyper-connections is that of ``deep_gemm_hyper``, and MQA logits,
dense and paged, are those of ``deep_gemm_attention``.

``import integrations.deep_gemm as deep_gemm`` in the place of ``import deep_gemm``. What is not covered raises
``NotImplementedError`` with the list of what is. A recipe that no kernel implements is refused, never read as another.
Differences that a caller can see: rows of padding become zeros in every layout, masked rows need no multiple of a tile,
nothing is written past a group's end, and results are the same bytes every time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from . import deep_gemm_scales as _scales
from . import loader
from .deep_gemm_attention import fp8_fp4_mqa_logits as fp8_fp4_mqa_logits
from .deep_gemm_attention import fp8_fp4_paged_mqa_logits as fp8_fp4_paged_mqa_logits
from .deep_gemm_attention import fp8_fp4_paged_sparse_mqa_logits as fp8_fp4_paged_sparse_mqa_logits
from .deep_gemm_attention import fp8_fp4_sparse_mqa_logits as fp8_fp4_sparse_mqa_logits
from .deep_gemm_attention import fp8_mqa_logits as fp8_mqa_logits
from .deep_gemm_attention import fp8_paged_mqa_logits as fp8_paged_mqa_logits
from .deep_gemm_attention import get_paged_mqa_logits_metadata as get_paged_mqa_logits_metadata
from .deep_gemm_attention import get_paged_sparse_mqa_logits_metadata as get_paged_sparse_mqa_logits_metadata
from .deep_gemm_attention import get_sparse_mqa_logits_metadata as get_sparse_mqa_logits_metadata
from .deep_gemm_einsum import einsum as einsum
from .deep_gemm_einsum import fp8_einsum as fp8_einsum
from .deep_gemm_hyper import tf32_hc_prenorm_gemm as tf32_hc_prenorm_gemm
from .deep_gemm_scales import MX_BLOCK, SCALE_BLOCK, Scaled, is_fp4
from .deep_gemm_scales import (
    get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor as get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor,
)
from .deep_gemm_scales import (
    get_mn_major_tma_aligned_packed_ue8m0_tensor as get_mn_major_tma_aligned_packed_ue8m0_tensor,
)
from .deep_gemm_scales import get_mn_major_tma_aligned_tensor as get_mn_major_tma_aligned_tensor
from .deep_gemm_scales import get_tma_aligned_size as get_tma_aligned_size
from .deep_gemm_scales import transform_sf_into_required_layout as transform_sf_into_required_layout

ALIGNMENT = 128  # of the first row of a group in the contiguous layouts

Recipe = tuple[int, ...] | None

_settings: dict[str, Any] = {"pdl": True, "tc_util": 100}


def __getattr__(name: str) -> NoReturn:
    if name.startswith("__"):
        raise AttributeError(name)
    covered = ", ".join(sorted(key for key, value in globals().items() if callable(value) and key[0].islower()))
    raise NotImplementedError(f"deep_gemm.{name} is not covered; covered are {covered}")


# Dense


def fp8_fp4_gemm_nt(
    a: Scaled, b: Scaled, d: torch.Tensor, c: torch.Tensor | None = None, recipe: Recipe = None,
    recipe_a: Recipe = None, recipe_b: Recipe = None, compiled_dims: str = "nk", disable_ue8m0_cast: bool = False,
) -> None:  # fmt: skip
    """d [M, N] = a [M, K] . b [N, K]^T (+ c); scales of a [M, K / 128], of b [N / 128, K / 128], or [N, K / 128] with
    the recipe (1, 1, 128), fp32.

    On Blackwell scales are exponents of each row of a and b: int32, packed and MN-major, or made of fp32 scales, which
    must be powers of two; a and b may be views of what is not K-major.
    b may be FP4, int8 [N, K / 2], with scales [N, K / 32] and recipe_b (1, 32): powers of two in fp32, or their
    exponents in int32, packed and MN-major. On Blackwell so may a, with recipe_a (1, 32) and b in FP8. There FP8 may
    have such scales, too: a, and b in FP8 or FP4, with recipe_a and recipe_b (1, 32), or the recipe (1, 1, 32).
    ``compiled_dims`` changes nothing: no dimension is compiled in.
    """
    blocks = _blocks(a, b, recipe, recipe_a, recipe_b)
    if not _is_done(a[0], b[0], d, c):
        _launch_fp8("gemm", a, b, blocks, not disable_ue8m0_cast, out=d, accumulate=_accumulate(c, d))


def fp8_gemm_nt_skip_head_mid(
    a: Scaled, b: Scaled, d: torch.Tensor, head_splits: tuple[int, int, int], recipe: Recipe = None,
    compiled_dims: str = "nk", disable_ue8m0_cast: bool = False,
) -> None:  # fmt: skip
    """The product whose columns are those of heads, ``left + right`` each, in d [M, N / (left + right) * (left + mid +
    right)]; the ``mid`` columns of d in each head stay as they are. head_splits: left, mid, right."""
    blocks = _blocks(a, b, recipe, None, None)
    if blocks != _DEFAULT:
        _refuse_recipe(blocks, "gaps in heads", [_DEFAULT])
    left, mid, right = head_splits
    if 0 not in d.shape:
        _launch_fp8("gemm", a, b, blocks, not disable_ue8m0_cast, form="_heads", out=d, head_width=left + right,
                    head_left=left, head_gap=mid)  # fmt: skip


def bf16_gemm_nt(
    a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, c: torch.Tensor | None = None, compiled_dims: str = "nk"
) -> None:
    """d [M, N] = a [M, K] . b [N, K]^T (+ c); a and b K-major, or views of what is not."""
    if _is_done(a, b, d, c):
        return
    (a, a_turned), (b, b_turned) = _either_major(a, "a"), _either_major(b, "b")
    loader.launch("gemm_bf16" + _MAJORS[a_turned, b_turned], a=a, b=b, out=d, accumulate=_accumulate(c, d))


def cublaslt_gemm_nt(a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, c: torch.Tensor | None = None) -> None:
    """d [M, N] = a [M, K] . b [N, K]^T (+ c), by cuBLASLt as torch calls it; bf16."""
    if a.dtype != torch.bfloat16 or b.dtype != torch.bfloat16:
        raise NotImplementedError(f"cublaslt_gemm_nt: expected bfloat16 operands, got {a.dtype} and {b.dtype}")
    of_type = {} if d.dtype == a.dtype else {"out_dtype": d.dtype}
    if c is None:
        torch.mm(a, b.mT, out=d, **of_type)
    else:
        torch.addmm(c, a, b.mT, out=d, **of_type)


# Groups of rows


def m_grouped_fp8_fp4_gemm_nt_contiguous(
    a: Scaled, b: Scaled, d: torch.Tensor, grouped_layout: torch.Tensor, recipe: Recipe = None,
    recipe_a: Recipe = None, recipe_b: Recipe = None, compiled_dims: str = "nk", disable_ue8m0_cast: bool = False,
    use_psum_layout: bool = False, ensure_zero_padding: bool = True, expected_m_for_psum_layout: int | None = None,
) -> None:  # fmt: skip
    """d [M, N] = a [M, K] . b[g] [N, K]^T for the rows of each group g.

    grouped_layout: the group of each row, -1 in padding; with ``use_psum_layout`` the end of each group. A group starts
    at a multiple of 128 rows. Padding becomes zeros whatever ``ensure_zero_padding`` says. On Blackwell b may be a view
    of what is not K-major. a or b may be FP4, as of ``fp8_fp4_gemm_nt``.
    """
    blocks = _check_recipe(a, b, recipe, recipe_a, recipe_b)
    if len(a[0]):
        _launch_fp8("grouped", a, b, blocks, not disable_ue8m0_cast, out=d,
                    **_groups(grouped_layout, use_psum_layout))  # fmt: skip


def m_grouped_bf16_gemm_nt_contiguous(
    a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, grouped_layout: torch.Tensor, compiled_dims: str = "nk",
    use_psum_layout: bool = False, ensure_zero_padding: bool = True, expected_m_for_psum_layout: int | None = None,
) -> None:  # fmt: skip
    """As ``m_grouped_fp8_fp4_gemm_nt_contiguous``, in bf16; b K-major, or a view of what is not."""
    if a.shape[0]:
        b, b_turned = _either_major(b, "b")
        loader.launch("grouped_bf16_nn" if b_turned else "grouped_bf16", a=_k_major(a, "a"), b=b, out=d,
                      **_groups(grouped_layout, use_psum_layout))  # fmt: skip


def m_grouped_fp8_fp4_gemm_nt_masked(
    a: Scaled, b: Scaled, d: torch.Tensor, masked_m: torch.Tensor, expected_m: int, recipe: Recipe = None,
    recipe_a: Recipe = None, recipe_b: Recipe = None, compiled_dims: str = "nk", disable_ue8m0_cast: bool = False,
) -> None:  # fmt: skip
    """d [G, Mmax, N] = a [G, Mmax, K] . b[g] [N, K]^T for the first masked_m[g] rows of each group; the others stay.

    ``expected_m`` chooses the tile, ``masked_m`` alone decides what is computed. a or b may be FP4, as of
    ``fp8_fp4_gemm_nt``.
    """
    blocks = _check_recipe(a, b, recipe, recipe_a, recipe_b)
    _launch_fp8("grouped", a, b, blocks, not disable_ue8m0_cast, out=d, mask=masked_m,
                expected_rows=expected_m)  # fmt: skip


def m_grouped_bf16_gemm_nt_masked(
    a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, masked_m: torch.Tensor, expected_m: int,
    compiled_dims: str = "nk",
) -> None:  # fmt: skip
    """As ``m_grouped_fp8_fp4_gemm_nt_masked``, in bf16; b K-major, or a view of what is not."""
    b, b_turned = _either_major(b, "b")
    loader.launch("grouped_bf16_nn" if b_turned else "grouped_bf16", a=_k_major(a, "a"), b=b, out=d, mask=masked_m,
                  expected_rows=expected_m)  # fmt: skip


# Groups along K


def k_grouped_fp8_gemm_nt_contiguous(
    a: Scaled, b: Scaled, d: torch.Tensor, ks_cpu: list[int], grouped_layout: torch.Tensor,
    c: torch.Tensor | None = None, recipe: tuple[int, int, int] = (1, 1, 128), compiled_dims: str = "mn",
    use_psum_layout: bool = False,
) -> None:  # fmt: skip
    """d [G, M, N] (+)= a_g [M, K_g] . b_g [N, K_g]^T for the groups in a and b, one behind the other, of K_g in
    ``grouped_layout``; scales [M, sum of K_g / 128] and [N, the same]. Without c a group without K becomes zeros. On
    Hopper; see ``k_grouped_fp8_gemm_tn_contiguous``."""
    _check_recipe_of_rows(recipe)
    (a, a_scale), (b, b_scale), (_, m, n) = a, b, d.shape
    total = _total_k(ks_cpu, len(d), use_psum_layout)
    if not total:
        _without_k(d, c)
        return
    ctas = get_num_sms() if d.is_cuda else 1
    maps = torch.empty(ctas, 256, dtype=torch.uint8, device=d.device)  # a CTA's own tensor maps
    loader.launch("k_grouped_fp8_nt", a=a, b=b, a_scale=_scales.mn_major(a_scale, (m, total), "a"),
                  b_scale=_scales.mn_major(b_scale, (n, total), "b"), k_offsets=_offsets(grouped_layout), maps=maps,
                  out=d, accumulate=_accumulate(c, d))  # fmt: skip


def k_grouped_fp8_gemm_tn_contiguous(
    a: Scaled, b: Scaled, d: torch.Tensor, ks_cpu: list[int], grouped_layout: torch.Tensor,
    c: torch.Tensor | None = None, recipe: tuple[int, int, int] = (1, 1, 128), compiled_dims: str = "mn",
    use_psum_layout: bool = False,
) -> None:  # fmt: skip
    """d [G, M, N] (+)= a[ks]^T . b[ks] for the rows ks of each group in a [sum of K_g, M] and b [sum of K_g, N]; scales
    [sum of K_g / 128, M] and [.., N], fp32 powers of two. On Blackwell."""
    _check_recipe_of_rows(recipe)
    (a, a_scale), (b, b_scale), total = a, b, _total_k(ks_cpu, len(d), use_psum_layout)
    if total:
        loader.launch("k_grouped_fp8_ue8m0_tn", a=_k_major(a, "a"), b=_k_major(b, "b"),
                      a_scale=_scales.exponents_along_k(a_scale, (total, a.shape[-1]), "a"),
                      b_scale=_scales.exponents_along_k(b_scale, (total, b.shape[-1]), "b"),
                      k_offsets=_offsets(grouped_layout), out=d, accumulate=_accumulate(c, d))  # fmt: skip
    else:
        _without_k(d, c)


def k_grouped_bf16_gemm_tn_contiguous(
    a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, ks_cpu: list[int], grouped_layout: torch.Tensor,
    c: torch.Tensor | None = None, compiled_dims: str = "mn", use_psum_layout: bool = False,
) -> None:  # fmt: skip
    """d [G, M, N] (+)= a[ks]^T . b[ks] for the rows ks of each group in a [sum of K_g, M] and b [sum of K_g, N]."""
    if _total_k(ks_cpu, len(d), use_psum_layout):
        loader.launch("k_grouped_bf16_tn", a=_k_major(a, "a"), b=_k_major(b, "b"), k_offsets=_offsets(grouped_layout),
                      out=d, accumulate=_accumulate(c, d))  # fmt: skip
    else:
        _without_k(d, c)


def _of_views(nt: Callable[..., None], letters: str) -> Callable[..., None]:
    """The function of ``nt`` on operands by other letters: n means a [M, K] or b [K, N], t means a [K, M] or b [N, K].

    Views are transposed, data and scales, nothing is copied; Hopper's ``nt`` refuses FP8 that is then not K-major.
    """
    def given(operand: Any, as_nt: bool) -> Any:
        if as_nt:
            return operand
        return tuple(each.mT for each in operand) if isinstance(operand, tuple) else operand.mT

    @functools.wraps(nt)
    def function(a: Any, b: Any, *args: Any, **kwargs: Any) -> None:
        nt(given(a, letters[0] == "n"), given(b, letters[1] == "t"), *args, **kwargs)

    function.__name__ = nt.__name__.replace("_nt", f"_{letters}")
    return function


fp8_gemm_nt = fp8_fp4_gemm_nt
fp8_gemm_nn = fp8_fp4_gemm_nn = _of_views(fp8_fp4_gemm_nt, "nn")
fp8_gemm_tn = fp8_fp4_gemm_tn = _of_views(fp8_fp4_gemm_nt, "tn")
fp8_gemm_tt = fp8_fp4_gemm_tt = _of_views(fp8_fp4_gemm_nt, "tt")
bf16_gemm_nn, bf16_gemm_tn, bf16_gemm_tt = (_of_views(bf16_gemm_nt, letters) for letters in ("nn", "tn", "tt"))
m_grouped_fp8_gemm_nn_contiguous = m_grouped_fp8_fp4_gemm_nn_contiguous = _of_views(
    m_grouped_fp8_fp4_gemm_nt_contiguous, "nn")
m_grouped_bf16_gemm_nn_contiguous = _of_views(m_grouped_bf16_gemm_nt_contiguous, "nn")
m_grouped_fp8_gemm_nt_contiguous = m_grouped_fp8_fp4_gemm_nt_contiguous
m_grouped_fp8_gemm_nt_masked = fp8_m_grouped_gemm_nt_masked = m_grouped_fp8_fp4_gemm_nt_masked
bf16_m_grouped_gemm_nt_masked = m_grouped_bf16_gemm_nt_masked


# Settings


def get_num_sms() -> int:
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


def set_num_sms(num_sms: int) -> None:
    """All of them: a launch's grid follows from the problem and the device."""
    if num_sms not in (0, get_num_sms()):
        raise NotImplementedError(f"num_sms: expected all {get_num_sms()} multiprocessors of the device, got {num_sms}")


def set_pdl(enabled: bool) -> None:
    """Accepted for callers' sake: every kernel may start while the one before it on the stream still runs."""
    _settings["pdl"] = bool(enabled)


def get_pdl() -> bool:
    return _settings["pdl"]


def set_tc_util(percent: int) -> None:
    """Accepted for callers' sake; nothing is throttled."""
    _settings["tc_util"] = percent


def get_tc_util() -> int:
    return _settings["tc_util"]


def set_ignore_compile_dims(ignored: bool) -> None:
    """Accepted for callers' sake: no dimension is compiled in."""


def set_block_size_multiple_of(multiple: int | tuple[int, int]) -> None:
    """Accepted for callers' sake: tiles are those of the pack."""


def get_mk_alignment_for_contiguous_layout() -> int:
    return ALIGNMENT


def set_mk_alignment_for_contiguous_layout(alignment: int) -> None:
    if alignment != ALIGNMENT:
        raise NotImplementedError(f"alignment of groups: expected {ALIGNMENT}, got {alignment}")


def get_theoretical_mk_alignment_for_contiguous_layout(expected_m: int | None = None) -> int:
    return ALIGNMENT


get_m_alignment_for_contiguous_layout = get_k_alignment_for_contiguous_layout = get_mk_alignment_for_contiguous_layout


# What the functions share


# Rows and elements along K that share a scale of a, and of b.
_Blocks = tuple[tuple[int, ...], tuple[int, ...]]
_DEFAULT: _Blocks = ((1, SCALE_BLOCK), (SCALE_BLOCK, SCALE_BLOCK))
_OF_ROWS: _Blocks = ((1, SCALE_BLOCK), (1, SCALE_BLOCK))
_OF_32: _Blocks = ((1, MX_BLOCK), (1, MX_BLOCK))
# Where a is FP4 and where b is: in words, and what is covered.
_RECIPES: dict[tuple[bool, bool], tuple[str, list[_Blocks]]] = {
    (False, False): ("FP8", [_DEFAULT, _OF_ROWS, _OF_32]),
    (False, True): ("b in FP4", [((1, SCALE_BLOCK), (1, MX_BLOCK)), _OF_32]),
    (True, False): ("a in FP4", [((1, MX_BLOCK), _DEFAULT[1]), ((1, MX_BLOCK), (1, SCALE_BLOCK))]),
}


def _check_recipe(a: Scaled, b: Scaled, recipe: Recipe, recipe_a: Recipe, recipe_b: Recipe) -> _Blocks:
    """Of groups of rows, whose FP8 has no fp32 scales of each row of b."""
    blocks = _blocks(a, b, recipe, recipe_a, recipe_b)
    return _refuse_recipe(blocks, "groups of FP8", [_DEFAULT]) if blocks == _OF_ROWS else blocks


def _blocks(a: Scaled, b: Scaled, recipe: Recipe, recipe_a: Recipe, recipe_b: Recipe) -> _Blocks:
    """What recipes say; one of three has the same block of K for both operands."""
    if recipe is not None and (recipe_a is not None or recipe_b is not None):
        raise ValueError("expected recipe, or recipe_a and recipe_b, got both")
    if (is_fp4(a[0]), is_fp4(b[0])) not in _RECIPES:
        raise NotImplementedError("operands: FP4, int8, is covered beside FP8, got a and b in FP4")
    if recipe is not None:
        recipe_a, recipe_b = (recipe[0], recipe[2]), (recipe[1], recipe[2])
    given = tuple(recipe_a or _DEFAULT[0]), tuple(recipe_b or _DEFAULT[1])
    operands, covered = _RECIPES[is_fp4(a[0]), is_fp4(b[0])]
    return given if given in covered else _refuse_recipe(given, operands, covered)


def _refuse_recipe(given: _Blocks, operands: str, covered: list[_Blocks]) -> NoReturn:
    raise NotImplementedError(f"recipe: with {operands} expected recipe_a and recipe_b of "
                              f"{' or '.join(map(str, covered))}, got {given}")  # fmt: skip


def _check_recipe_of_rows(recipe: tuple[int, int, int]) -> None:
    if tuple(recipe) != (1, 1, SCALE_BLOCK):
        raise NotImplementedError(f"recipe: expected (1, 1, {SCALE_BLOCK}), scales of each row, got {recipe}")


# What a name says where a, b are transposed views.
_MAJORS = {(False, False): "", (False, True): "_nn", (True, False): "_tt", (True, True): "_tn"}


def _launch_fp8(
    schedule: str, a: Scaled, b: Scaled, blocks: _Blocks, cast: bool, form: str = "", **arguments: Any
) -> None:
    """Of the kernels those by exponents of 128 take b of either major, and a where it has no groups."""
    if blocks in (_DEFAULT, _OF_ROWS):
        formats, scales = _scales.scales_of(a[1], b[1], a[0].shape, b[0].shape, blocks[1][0], cast)
    else:
        formats, scales = _scales.scales_of_32(a, b, blocks, cast)
    (a, _), (b, _) = a, b
    either = formats == "fp8_ue8m0" and not form
    b, b_turned = _either_major(b, "b") if either else (_k_major(b, "b"), False)
    a, a_turned = _either_major(a, "a") if either and schedule == "gemm" else (_k_major(a, "a"), False)
    loader.launch(f"{schedule}_{formats}{_MAJORS[a_turned, b_turned]}{form}", a=a, b=b, **scales, **arguments)


def _k_major(x: torch.Tensor, name: str) -> torch.Tensor:
    if not x.is_contiguous():
        raise NotImplementedError(
            f"{name}: expected K-major and contiguous, got strides {x.stride()} of {tuple(x.shape)}")
    return x


def _either_major(x: torch.Tensor, name: str) -> tuple[torch.Tensor, bool]:
    """The contiguous matrices that x is or is a transposed view of, and whether it is one."""
    if x.is_contiguous():
        return x, False
    if x.mT.is_contiguous():
        return x.mT, True
    raise NotImplementedError(
        f"{name}: expected contiguous matrices or their transposed views, got strides {x.stride()} of {tuple(x.shape)}")


def _total_k(ks_cpu: list[int], groups: int, use_psum_layout: bool) -> int:
    _scales.refuse_ends_of_k(use_psum_layout)
    if len(ks_cpu) != groups or any(k % ALIGNMENT for k in ks_cpu):
        raise ValueError(f"ks_cpu: expected {groups} multiples of {ALIGNMENT}, got {ks_cpu}")
    return sum(ks_cpu)


def _offsets(ks: torch.Tensor) -> torch.Tensor:
    """Where K of each group begins, and the end."""
    return torch.nn.functional.pad(ks.cumsum(0, dtype=torch.int32), (1, 0))


def _without_k(d: torch.Tensor, c: torch.Tensor | None) -> None:
    if c is None:
        d.zero_()
    elif c.data_ptr() != d.data_ptr():
        d.copy_(c)


def _is_done(a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, c: torch.Tensor | None) -> bool:
    """Whether nothing is left to multiply; d is c, or zeros, where K is 0."""
    if 0 in d.shape:
        return True
    if a.shape[-1] == 0:
        _without_k(d, c)
        return True
    return False


def _accumulate(c: torch.Tensor | None, d: torch.Tensor) -> str:
    """c is in d when the kernel adds to it."""
    if c is None:
        return "overwrite"
    if c.shape != d.shape or c.dtype != d.dtype:
        raise ValueError(f"c: expected {d.dtype} {tuple(d.shape)} like d, got {c.dtype} {tuple(c.shape)}")
    if c.data_ptr() != d.data_ptr():
        d.copy_(c)
    return "add"


def _groups(grouped_layout: torch.Tensor, use_psum_layout: bool) -> dict[str, torch.Tensor]:
    return {"group_ends" if use_psum_layout else "row_groups": grouped_layout}
