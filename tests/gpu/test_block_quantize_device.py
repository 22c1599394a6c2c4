"""The kernels that quantise rows to MXFP8, MXFP4 and FP8, or gather them, on a GPU: each byte as tests/block_cases.py
says."""

from __future__ import annotations

import block_cases
import numpy as np
import pytest
from block_cases import DENSE, GATED, GATHERS, MASKED, PLAIN_GATHER
from quantization import EMULATED, Approximations
from routing import random_ids
from test_nvfp4_quantize_device import approximations, launch  # noqa: F401 (a fixture)

every_dtype = pytest.mark.parametrize("dtype", ["bf16", "f16"])
every_family = pytest.mark.parametrize("family", [*DENSE, *MASKED, *GATHERS, PLAIN_GATHER])


@every_dtype
@every_family
def test_many_awkward_things_at_once(dtype: str, family: str, rng: np.random.Generator) -> None:
    """As on the emulated device, with every choice of scalars; nothing here is approximated."""
    k = 864 if block_cases.Target.of(family).format.is_mx else 848
    for scalars in block_cases.scalar_choices(family):
        case = block_cases.case(rng, family, dtype, [0, 1, 201, 0, 7], k, scalars)
        case.verify(launch(case), EMULATED)


@every_dtype
@pytest.mark.parametrize("family", GATED)
def test_gated(
    dtype: str, family: str, approximations: Approximations, rng: np.random.Generator  # noqa: F811
) -> None:
    """With every choice of scalars, of few rows and many; its sigmoid is approximated as the device does it."""
    for scalars in block_cases.scalar_choices(family):
        for counts, k in (([13], 848), ([2000], 1536)):
            case = block_cases.case(rng, family, dtype, counts, k, scalars)
            case.verify(launch(case), approximations)


@every_dtype
@every_family
@pytest.mark.parametrize("k", [32, 2880, 7168])
def test_many_rows(dtype: str, family: str, k: int, rng: np.random.Generator) -> None:
    """More words than the device has threads, over experts of uneven size."""
    counts = rng.integers(0, 40, 40) if k > 32 else rng.integers(0, 8, 1024)
    case = block_cases.case(rng, family, dtype, counts.tolist(), k, {})
    case.verify(launch(case), EMULATED)


@pytest.mark.parametrize("family", GATHERS)
def test_tokens_of_several_experts(family: str, rng: np.random.Generator) -> None:
    """Decode and prefill; some slots have no row."""
    for tokens in (1, 64, 1000):
        ids = random_ids(rng, tokens, 8, 256)
        ids[rng.random(ids.shape) < 1 / 16] = -1
        case = block_cases.gather(rng, family, "bf16", ids, 256, 2880, 64, weighting="input")
        case.verify(launch(case), EMULATED)
