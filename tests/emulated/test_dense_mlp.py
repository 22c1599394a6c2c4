"""A dense MLP from its norm to its result, on the emulated device: gate and up are a grouped GEMM of one expert."""

from __future__ import annotations

from collections.abc import Callable

import dense_mlp_reference
import numpy as np
import pytest

M, HIDDEN, BETWEEN = 5, 384, 256  # blocks of 128: three and two

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


@pytest.mark.parametrize(("arch", "fmt"), [("90a", "fp8"), ("100a", "fp8_ue8m0"), ("120a", "fp8_ue8m0")])
def test_fp8(
    arch: str, fmt: str, packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator
) -> None:  # fmt: skip
    """DeepSeek's dense layers and shared experts."""
    reschedule()
    dense_mlp_reference.in_rows(rng, fmt, M, HIDDEN, BETWEEN, device=f"emulated:{arch}", packs=packs)


@pytest.mark.parametrize("arch", ["90a", "100a", "120a"])
@pytest.mark.parametrize("operands", dense_mlp_reference.IN_BLOCKS)
def test_blocks(
    operands: str, arch: str, packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator
) -> None:  # fmt: skip
    """NVFP4, and MXFP8 tokens by MXFP4 weights."""
    reschedule()
    dense_mlp_reference.in_blocks(rng, operands, M, HIDDEN, BETWEEN, device=f"emulated:{arch}", packs=packs)
