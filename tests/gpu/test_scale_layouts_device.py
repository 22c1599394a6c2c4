"""The kernels that bring scales into the layouts of GEMMs, and DeepGEMM's functions of them, on a GPU: each byte."""

from __future__ import annotations

import numpy as np
import pytest
import scale_layouts
from scale_layouts import AWKWARD, Case

torch = pytest.importorskip("torch")

import loader  # noqa: E402
from integrations import deep_gemm  # noqa: E402

GUARD = 1024  # words before and after the output


def check(case: Case) -> None:
    """The words of a case, and nothing around them."""
    size = case.expected.size
    memory = torch.full((size + 2 * GUARD,), -1515870811, dtype=torch.int32, device="cuda")
    given = torch.from_numpy(case.output())
    out = memory[GUARD : GUARD + size].view(given.dtype).view(given.shape)
    loader.launch(case.family, **{name: torch.from_numpy(array).cuda() for name, array in case.inputs.items()}, out=out,
                  **case.scalars)  # fmt: skip
    case.verify(out.cpu().numpy())
    assert bool((memory[:GUARD] == -1515870811).all() and (memory[GUARD + size :] == -1515870811).all())


@pytest.mark.parametrize("family", AWKWARD)
def test_awkward_shapes(family: str, rng: np.random.Generator) -> None:
    """As on the emulated device."""
    for _ in range(5):
        check(AWKWARD[family](rng))


def test_many_scales(rng: np.random.Generator) -> None:
    """Those of a layer."""
    check(scale_layouts.mn_major(rng, 4, 4097, 56))
    check(scale_layouts.packed(rng, 2, 1000, 57))
    check(scale_layouts.packed(rng, 3, 7168, 56, row_block=128))
    check(scale_layouts.packed_along_k(rng, 768, (rng.integers(0, 9, 72) * 128).tolist()))


@pytest.mark.parametrize("shape", [(4097, 57), (2, 130, 9)])
def test_functions_of_deep_gemm(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """What torch makes of the same on the host."""
    sf = torch.from_numpy(np.exp2(rng.integers(-126, 127, shape)).astype(np.float32))
    for transform in (
        deep_gemm.get_mn_major_tma_aligned_tensor, deep_gemm.get_mn_major_tma_aligned_packed_ue8m0_tensor
    ):  # fmt: skip
        expected = transform(sf)
        for given in (sf.cuda(), sf.mT.contiguous().cuda().mT):
            found = transform(given)
            assert found.stride() == expected.stride()
            assert torch.equal(found.cpu(), expected)


def test_a_scale_that_is_no_power_of_two_shows() -> None:
    """No call waits for values: it becomes NaN."""
    packed = deep_gemm.get_mn_major_tma_aligned_packed_ue8m0_tensor(torch.full((1, 4), 1.5, device="cuda"))
    assert packed.item() == -1
