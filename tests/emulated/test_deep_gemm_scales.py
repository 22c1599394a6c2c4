"""DeepGEMM's functions that transform scales, by torch on the host and by kernels on the emulated device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_deep_gemm import launch_on

from integrations import deep_gemm

pytestmark = pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning")

pack = deep_gemm.get_mn_major_tma_aligned_packed_ue8m0_tensor
transform = deep_gemm.transform_sf_into_required_layout


@pytest.fixture(params=["host", "90a", "100a", "120a"])
def where(request, monkeypatch, packs):
    """On the host tensors are taken for those of Hopper."""
    if request.param != "host":
        launch_on(request.param, monkeypatch, packs)
    return request.param


def powers(rng: np.random.Generator, *shape: int) -> tuple[torch.Tensor, np.ndarray]:
    """Scales, and their exponents."""
    exponents = rng.integers(1, 255, shape)
    return torch.from_numpy(np.ldexp(1.0, exponents - 127).astype(np.float32)), exponents


def bytes_of(packed: torch.Tensor) -> np.ndarray:
    return packed.clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy()


def padding_of(sf: torch.Tensor) -> torch.Tensor:
    """What lies behind MN in the columns of MN-major scales."""
    (*lead, mn, k), pitch = sf.shape, sf.stride(-1)
    return sf.as_strided((*lead, k, pitch), (*[k * pitch] * len(lead), pitch, 1))[..., mn:]


@pytest.mark.parametrize("shape", [(5, 3), (8, 2), (2, 7, 3), (1, 4)])
@pytest.mark.parametrize("turned", [False, True])
def test_scale_layout(shape: tuple[int, ...], turned: bool, where: str) -> None:
    """The same values with MN innermost and columns of 16 bytes, also of a view; what lies so already is not copied."""
    sf = torch.rand(shape).mT.contiguous().mT if turned else torch.rand(shape)
    moved = deep_gemm.get_mn_major_tma_aligned_tensor(sf)
    pitch = -(-shape[-2] // 4) * 4
    assert torch.equal(moved, sf)
    assert moved.stride()[-2:] == (1, pitch)
    assert moved.data_ptr() == sf.data_ptr() or not padding_of(moved).any()
    assert deep_gemm.get_mn_major_tma_aligned_tensor(moved).data_ptr() == moved.data_ptr()
    groups = shape[0] if len(shape) == 3 else None
    transformed = transform(sf, shape[-2], shape[-1] * 128, (1, 128), num_groups=groups, disable_ue8m0_cast=True)
    assert torch.equal(transformed, sf)


@pytest.mark.parametrize("shape", [(5, 3), (8, 8), (2, 7, 9)])
@pytest.mark.parametrize("turned", [False, True])
def test_packed_exponents(shape: tuple[int, ...], turned: bool, where: str, rng: np.random.Generator) -> None:
    """Byte i of an int32 is the exponent of scale 4 j + i; what is no power of two is refused."""
    sf, exponents = powers(rng, *shape)
    packed = pack(sf.mT.contiguous().mT if turned else sf)
    assert packed.stride()[-2:] == (1, -(-shape[-2] // 4) * 4)
    found = bytes_of(packed)
    assert (found[..., : shape[-1]] == exponents).all()
    assert not found[..., shape[-1] :].any()
    assert not padding_of(packed).any()
    with pytest.raises(ValueError, match="expected positive powers of two"):
        pack(sf * 1.5)


def test_packed_exponents_of_blocks(where: str, rng: np.random.Generator) -> None:
    """A scale for 128 x 128 becomes that of each of its rows; Hopper takes it as it is."""
    sf, exponents = powers(rng, 2, 2, 5)
    packed = transform(sf, 130, 640, (128, 128), num_groups=2)
    if where in ("host", "90a"):
        assert packed is sf
    else:
        assert (bytes_of(packed)[..., :5] == np.repeat(exponents, 128, 1)[:, :130]).all()


@pytest.mark.parametrize("mn", [6, 8])
@pytest.mark.parametrize(("ks", "gran_k"), [([640, 0, 128], 128), ([96, 0, 256, 32], 32)])
def test_packed_exponents_of_groups(
    mn: int, ks: list[int], gran_k: int, where: str, rng: np.random.Generator
) -> None:  # fmt: skip
    """Each group along K as if it were alone; none of no K."""
    sizes = [-(-k // gran_k) for k in ks]
    sf, layout = powers(rng, sum(sizes), mn)[0], torch.tensor(ks, dtype=torch.int32)
    packed = deep_gemm.get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor(sf, layout, ks, gran_k, 128)
    assert torch.equal(packed, torch.cat([pack(group.T).T for group in sf.split(sizes) if len(group)]))
    assert packed.stride() == (8, 1)
    with pytest.raises(ValueError, match=f"expected {len(sf)} rows for ks_cpu, got {len(sf) - 1}"):
        deep_gemm.get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor(sf[:-1], layout, ks, gran_k, 128)


def test_scales_of_32_are_transformed_to_exponents(where: str, rng: np.random.Generator) -> None:
    """Per 1 x 32 on every GPU, by a recipe of two and of three."""
    sf, _ = powers(rng, 2, 24, 10)
    packed = pack(sf)
    assert torch.equal(transform(sf, 24, 320, (1, 32), num_groups=2), packed)
    assert torch.equal(transform(sf[0], 24, 320, (1, 1, 32), is_sfa=False), packed[0])


@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("lead", [(), (2,)])
def test_exponents_stay(block: int, lead: tuple[int, ...], where: str, rng: np.random.Generator) -> None:
    """int32 scales that lie as kernels read them are handed back, by either recipe; others are refused by name."""
    packed, groups = pack(powers(rng, *lead, 7, 5)[0]), lead[0] if lead else None
    assert transform(packed, 7, 5 * block, (1, block), num_groups=groups).data_ptr() == packed.data_ptr()
    assert transform(packed, 7, 5 * block, (1, 1, block), num_groups=groups, is_sfa=True) is packed
    with pytest.raises(ValueError, match=r"expected shape \(.*7, 3\), got \(.*7, 2\)"):
        transform(packed, 7, 9 * block, (1, block), num_groups=groups)
    with pytest.raises(ValueError, match=r"expected strides \(.*1, 8\) of \(.*7, 2\), MN-major, got \(.*2, 1\)"):
        transform(packed.contiguous(), 7, 5 * block, (1, block), num_groups=groups)
    with pytest.raises(ValueError, match=r"expected strides \(.*1, 8\) .*, got \(.*1, 7\)"):
        transform(packed.mT.contiguous().mT, 7, 5 * block, (1, block), num_groups=groups)
    with pytest.raises(NotImplementedError, match=r"got torch.int32 per \(128, 32\)"):
        transform(packed, 7, 5 * block, (128, 32), num_groups=groups)
    with pytest.raises(NotImplementedError, match=r"got torch.float64 per"):
        transform(packed.double(), 7, 5 * block, (1, block), num_groups=groups)


def test_exponents_of_one_row(where: str) -> None:
    """Strides of what has one element mean nothing."""
    for sf in (torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, 8, dtype=torch.int32)[:, ::4]):
        assert transform(sf, 1, 128 * sf.shape[1], (1, 32)) is sf
