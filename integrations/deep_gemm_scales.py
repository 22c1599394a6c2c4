"""Layouts of scales of the GEMMs that ``integrations.deep_gemm`` calls, and DeepGEMM's functions that make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from . import loader

SCALE_BLOCK = 128  # of K, and of rows that share a scale
MX_BLOCK = 32  # of K; a row has its own

Scaled = tuple[torch.Tensor, torch.Tensor]


def is_fp4(x: torch.Tensor) -> bool:
    """Two E2M1 a byte."""
    return x.dtype == torch.int8


def shape_of(x: torch.Tensor) -> list[int]:
    """[.., rows, K] of an operand whose elements along K are neighbours."""
    return [*x.shape[:-1], x.shape[-1] * (2 if is_fp4(x) else 1)]


def get_tma_aligned_size(x: int, element_size: int) -> int:
    """x, rounded up until that many elements are a multiple of 16 bytes."""
    per = 16 // element_size
    return -(-x // per) * per


def get_mn_major_tma_aligned_tensor(sf: torch.Tensor) -> torch.Tensor:
    """fp32 scales [.., MN, K] with MN innermost, a column padded to 16 bytes; as they are where they lie so already."""
    return _padded(sf)[..., : sf.shape[-2]].mT


def get_mn_major_tma_aligned_packed_ue8m0_tensor(sf: torch.Tensor) -> torch.Tensor:
    """Exponents of fp32 scales [.., MN, K], four of K in an int32 (the first in the lowest byte), with MN innermost.

    Scales must be powers of two: exponents are taken, nothing is rounded. On the host others raise; on a GPU, where
    no call waits for values, they become 0xFF, NaN.
    """
    return _exponents(sf, 1, _matrices(sf)[-2])


def get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor(
    sf: torch.Tensor, grouped_layout: torch.Tensor, ks_cpu: list[int], gran_k: int, k_alignment: int,
    use_psum_layout: bool = False,
) -> torch.Tensor:  # fmt: skip
    """The same of scales [sum of K_g / gran_k, MN] of groups along K: every group starts with an int32 of its own."""
    refuse_ends_of_k(use_psum_layout)
    sizes = [-(-k // gran_k) for k in ks_cpu]
    if sum(sizes) != len(sf):
        raise ValueError(f"scales: expected {sum(sizes)} rows for ks_cpu, got {len(sf)}")
    if is_on_device(sf):
        packed = _packed_along_k(sf, sum(-(-size // 4) for size in sizes), group_k=grouped_layout, scale_k=gran_k)
    else:
        packed = torch.cat([_packed(group.T, 1, sf.shape[1]) for group in sf.split(sizes) if len(group)])
    return packed[:, : sf.shape[1]]


def transform_sf_into_required_layout(
    sf: torch.Tensor, mn: int, k: int, recipe: tuple[int, ...], num_groups: int | None = None,
    is_sfa: bool | None = None, disable_ue8m0_cast: bool = False,
) -> torch.Tensor:  # fmt: skip
    """fp32 scales as kernels read them: per 1 x 128 with MN innermost, per 128 x 128 as they are; on Blackwell
    exponents of each row, unless ``disable_ue8m0_cast``. Those per 1 x 32, of MX, become exponents on Hopper, too.
    int32 scales are exponents that lie as kernels read them, and stay."""
    if (len(recipe) == 3) != (is_sfa is not None):
        raise ValueError(f"is_sfa goes with a recipe of three, and with no other; got {recipe} and is_sfa={is_sfa}")
    rows, block = (recipe[0] if is_sfa else recipe[1], recipe[2]) if len(recipe) == 3 else recipe
    as_exponents = is_blackwell(sf) or block == MX_BLOCK
    covered = {torch.float32: [(1, MX_BLOCK), (1, SCALE_BLOCK), (SCALE_BLOCK, SCALE_BLOCK)],
               torch.int32: [(1, MX_BLOCK), (1, SCALE_BLOCK)]}  # fmt: skip
    if (rows, block) not in covered.get(sf.dtype, []):
        raise NotImplementedError("scales: expected float32 per 1 x 32, 1 x 128 or 128 x 128, or exponents in int32 "
                                  f"per 1 x 32 or 1 x 128; got {sf.dtype} per {(rows, block)}")
    expected = (*[num_groups] * (num_groups is not None), -(-mn // rows), -(-k // (block * _per_element(sf))))
    if tuple(sf.shape) != expected:
        raise ValueError(f"scales: expected shape {expected}, got {tuple(sf.shape)}")
    if sf.dtype == torch.int32:
        return _as_required(sf)
    if as_exponents and not disable_ue8m0_cast:
        return _exponents(sf, rows, mn)
    return get_mn_major_tma_aligned_tensor(sf) if rows == 1 else sf


def _as_required(sf: torch.Tensor) -> torch.Tensor:
    """Scales [.., MN, K] that have the strides of MN-major ones."""
    *_, mn, k = sf.shape
    pitch = get_tma_aligned_size(mn, sf.element_size())
    strides = (k * pitch, 1, pitch)[-sf.dim() :]
    if any(size > 1 and found != stride for size, found, stride in zip(sf.shape, sf.stride(), strides, strict=True)):
        raise ValueError(f"scales: expected strides {strides} of {tuple(sf.shape)}, MN-major, got {sf.stride()}")
    return sf


def _per_element(sf: torch.Tensor) -> int:
    """Scales along K: one, or four exponents in an int32."""
    return 4 if sf.dtype == torch.int32 else 1


def _matrices(sf: torch.Tensor) -> torch.Size:
    """The shape of scales [.., MN, K]."""
    if sf.dim() not in (2, 3):
        raise ValueError(f"scales: expected [.., MN, K], got shape {tuple(sf.shape)}")
    return sf.shape


def scales_of(
    a_scale: torch.Tensor, b_scale: torch.Tensor, a_shape: Sequence[int], b_shape: Sequence[int], weight_rows: int,
    cast: bool,
) -> tuple[str, dict[str, torch.Tensor]]:  # fmt: skip
    """The formats that the name of a family with such scales has, and the scales by the names of its arguments.

    weight_rows: rows of b that share an fp32 scale, 1 or 128. cast: on Blackwell fp32 scales become exponents.
    """
    if cast and is_blackwell(a_scale) and a_scale.dtype == b_scale.dtype == torch.float32:
        a_scale, b_scale = _exponents(a_scale, 1, a_shape[-2]), _exponents(b_scale, weight_rows, b_shape[-2])
    if a_scale.dtype != b_scale.dtype:
        raise ValueError(f"scales: expected those of a and b of one type, got {a_scale.dtype} and {b_scale.dtype}")
    found = {"a_scale": mn_major(a_scale, a_shape, "a")}
    if a_scale.dtype == torch.int32:
        return "fp8_ue8m0", found | {"b_scale": mn_major(b_scale, b_shape, "b")}
    if weight_rows == 1:
        return "fp8", found | {"b_row_scale": mn_major(b_scale, b_shape, "b")}
    return "fp8", found | {"b_scale": _of_blocks(b_scale, b_shape)}


def scales_of_32(
    a: Scaled, b: Scaled, blocks: Sequence[Sequence[int]], cast: bool
) -> tuple[str, dict[str, torch.Tensor]]:  # fmt: skip
    """The same where one operand or both have scales for 32 of K, which are exponents on every GPU, and those of FP8
    beside FP4 tokens as well. blocks: rows and elements along K that share a scale, of a and of b."""
    formats, scales = [], {}
    cast = cast and (is_fp4(a[0]) or is_blackwell(a[1]))
    for name, (x, scale), (rows, block) in zip("ab", (a, b), blocks, strict=True):
        shape = shape_of(x)
        if scale.dtype == torch.float32 and (block == MX_BLOCK or cast):
            _check_shape(scale, [*shape[:-2], -(-shape[-2] // rows), shape[-1]], name, block)
            scale = _exponents(scale, rows, shape[-2])
        scales[f"{name}_scale"] = mn_major(scale, shape, name, block)
        of_128 = "fp8_ue8m0" if scale.dtype == torch.int32 else "fp8"
        formats.append("mxfp4" if is_fp4(x) else "mxfp8_rows" if block == MX_BLOCK else of_128)
    if formats == ["mxfp4", "fp8"]:
        raise NotImplementedError("operands: FP4 tokens are covered beside FP8 with exponents, got scales of b in fp32")
    return "_".join(dict.fromkeys(formats)), scales


def refuse_ends_of_k(use_psum_layout: bool) -> None:
    if use_psum_layout:
        raise NotImplementedError("groups along K by their ends are not covered; give ks_cpu")


def is_blackwell(x: torch.Tensor) -> bool:
    return x.is_cuda and torch.cuda.get_device_capability(x.device)[0] >= 10


def is_on_device(x: torch.Tensor) -> bool:
    """Whether kernels bring x into another layout; on the host torch does."""
    return x.is_cuda


def _exponents(sf: torch.Tensor, rows: int, mn: int) -> torch.Tensor:
    """Of scales that ``rows`` rows share, for each of ``mn`` rows."""
    return _packed(sf, rows, mn)[..., :mn].mT


def _packed(sf: torch.Tensor, rows: int, mn: int) -> torch.Tensor:
    """The same as [.., words, MN up to a multiple of 4]."""
    *lead, _, k = _matrices(sf)
    _refuse_other_than_powers(sf)
    if not is_on_device(sf):
        of_rows = sf if rows == 1 else sf.repeat_interleave(rows, -2)[..., :mn, :]
        exponents = (of_rows.contiguous().view(torch.int32) >> 23).to(torch.uint8)
        return _padded(torch.nn.functional.pad(exponents, (0, -k % 4)).view(torch.int32))
    packed = sf.new_empty([*lead, -(-k // 4), get_tma_aligned_size(mn, 4)], dtype=torch.int32)
    loader.launch("scales_pack_ue8m0", sf=_batch(sf.contiguous()), out=_batch(packed), M=mn, row_block=rows)
    return packed


def _packed_along_k(sf: torch.Tensor, words: int, **groups: Any) -> torch.Tensor:
    """[words, MN up to a multiple of 4] of scales [blocks of K, MN], on the device."""
    _refuse_other_than_powers(sf)
    packed = sf.new_empty([words, get_tma_aligned_size(sf.shape[1], 4)], dtype=torch.int32)
    loader.launch("scales_pack_ue8m0_along_k", sf=sf.contiguous(), out=packed, **groups)
    return packed


def _refuse_other_than_powers(sf: torch.Tensor) -> None:
    """Where the host knows; kernels make NaN of them."""
    if sf.device.type == "cpu" and bool((sf.contiguous().view(torch.int32) & 0x807FFFFF).any()):
        raise ValueError("scales: expected positive powers of two, got others; quantise with them, do not round them")


def _batch(x: torch.Tensor) -> torch.Tensor:
    return x if x.dim() == 3 else x[None]


def exponents_along_k(sf: torch.Tensor, shape: tuple[int, int], name: str) -> torch.Tensor:
    """Of scales [K / 128, MN] of each column of ``name`` [K, MN], four of K in a word wherever groups along K begin."""
    expected = (shape[0] // SCALE_BLOCK, shape[1])
    if sf.dtype != torch.float32 or tuple(sf.shape) != expected:
        raise ValueError(f"scales of {name}: expected float32 {expected}, got {sf.dtype} {tuple(sf.shape)}")
    return _packed_along_k(sf, -(-len(sf) // 4)) if is_on_device(sf) else _packed(sf.T, 1, shape[1])


def mn_major(sf: torch.Tensor, shape: Sequence[int], name: str, block: int = SCALE_BLOCK) -> torch.Tensor:
    """Scales [.., MN, blocks] of each row of ``name`` [.., MN, K] as kernels take them, [.., blocks, MN up to a
    multiple of 4]: a view where that is how they lie, else a copy. In int32 four blocks are one."""
    _check_shape(sf, shape, name, block)
    return _padded(sf)


def _check_shape(sf: torch.Tensor, shape: Sequence[int], name: str, block: int) -> None:
    if sf.dtype not in (torch.float32, torch.int32):
        raise ValueError(f"scales of {name}: expected float32, or exponents in int32, got {sf.dtype}")
    *lead, mn, k = shape
    blocks = -(-k // (block * _per_element(sf)))
    if tuple(sf.shape[-2:]) != (mn, blocks) or list(sf.shape[:-2]) not in (lead, [] if lead == [1] else lead):
        raise ValueError(f"scales of {name}: expected [.., {mn}, {blocks}], got {tuple(sf.shape)}")


def _of_blocks(sf: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    *lead, n, k = shape
    expected = (*lead, -(-n // SCALE_BLOCK), -(-k // SCALE_BLOCK))
    if sf.dtype != torch.float32 or tuple(sf.shape) != expected:
        raise ValueError(
            f"scales of b: expected float32 {expected}, one for 128 x 128, got {sf.dtype} {tuple(sf.shape)}")
    return sf.contiguous()


def _padded(sf: torch.Tensor) -> torch.Tensor:
    """[.., K, MN up to a multiple of 4] of scales [.., MN, K], each 32 bits."""
    *lead, mn, k = _matrices(sf)
    pitch = get_tma_aligned_size(mn, sf.element_size())
    strides = [k * pitch] * len(lead) + [pitch, 1]
    size = (lead[0] if lead else 1) * k * pitch
    in_place = [*sf.stride()[:-2], sf.stride(-1), sf.stride(-2)] == strides or (mn == 1 and sf.stride(-1) == pitch)
    in_place = in_place and sf.data_ptr() % 16 == 0  # where TMA may begin
    if in_place and sf.untyped_storage().nbytes() // sf.element_size() - sf.storage_offset() >= size:
        return sf.as_strided([*lead, k, pitch], strides)
    if is_on_device(sf):
        padded = sf.new_empty([*lead, k, pitch])
        bits = sf.contiguous().view(torch.float32)
        loader.launch("scales_mn_major", sf=_batch(bits), out=_batch(padded.view(torch.float32)))
        return padded
    # Padding is read by nothing, but compared by tests and copied by users.
    padded = sf.new_zeros([*lead, k, pitch])
    padded[..., :mn] = sf.mT
    return padded
