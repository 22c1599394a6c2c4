"""The kernels that quantise to NVFP4 on a GPU: each byte as tests/quantization.py says.

The reference takes the approximate reciprocal and power of two from the device itself, one instruction each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import quantization
from quantization import FAMILIES, Approximations, Case

torch = pytest.importorskip("torch")
cupy = pytest.importorskip("cupy")

import loader  # noqa: E402

GUARD = 4096  # bytes before and after each output
every_dtype = pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
every_family = pytest.mark.parametrize("family", FAMILIES)


def _instruction(name: str) -> cupy.RawKernel:
    """A kernel that applies one fp32 instruction to an array."""
    code = f"""
    extern "C" __global__ void apply(const float* in, float* out, long long count) {{
        const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
        if (i < count) asm("{name} %0, %1;" : "=f"(out[i]) : "f"(in[i]));
    }}"""
    return cupy.RawKernel(code, "apply")


@pytest.fixture(scope="module")
def approximations() -> Approximations:
    """What this device computes."""

    def on_device(name: str) -> Callable[[np.ndarray], np.ndarray]:
        kernel = _instruction(name)

        def apply(values: np.ndarray) -> np.ndarray:
            given = cupy.asarray(np.ascontiguousarray(values, np.float32))
            result = cupy.empty_like(given)
            if given.size:
                kernel((-(-given.size // 256),), (256,), (given, result, np.int64(given.size)))
            return cupy.asnumpy(result)

        return apply

    return Approximations(on_device("rcp.approx.ftz.f32"), on_device("ex2.approx.ftz.f32"))


def _to_device(array: np.ndarray) -> torch.Tensor:
    """A copy; uint16 stands for bf16."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16)
    return torch.from_numpy(array).cuda()


def launch(case: Case) -> dict[str, np.ndarray]:
    """The outputs of a case; nothing around them is written."""
    raw, outputs = {}, {}
    for name, array in case.outputs.items():
        padded = np.full(array.nbytes + 2 * GUARD, 0xA5, np.uint8)
        padded[GUARD : GUARD + array.nbytes] = array.reshape(-1).view(np.uint8)
        raw[name] = torch.from_numpy(padded).cuda()
        inside = raw[name][GUARD : GUARD + array.nbytes]
        outputs[name] = inside.view(getattr(torch, array.dtype.name)).view(array.shape)
    inputs = {name: _to_device(array) for name, array in case.inputs.items()}
    loader.launch(case.family, **inputs, **outputs, **case.scalars)
    torch.cuda.synchronize()
    for name, buffer in raw.items():
        size = case.outputs[name].nbytes
        assert bool((buffer[:GUARD] == 0xA5).all() and (buffer[GUARD + size :] == 0xA5).all()), f"wrote beside {name}"
    return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}


@every_dtype
@every_family
def test_many_awkward_things_at_once(
    dtype: str, family: str, approximations: Approximations, rng: np.random.Generator
) -> None:
    """As on the emulated device, with every choice of scalars."""
    for scalars in quantization.scalar_choices(family):
        case = quantization.case(rng, family, dtype, [0, 1, 200, 0, 0, 9], 848, scalars)
        case.verify(launch(case), approximations)


@every_dtype
@every_family
@pytest.mark.parametrize("k", [16, 2880, 7168])
def test_many_rows(dtype: str, family: str, k: int, approximations: Approximations, rng: np.random.Generator) -> None:
    """More words than the device has threads, over experts of uneven size."""
    counts = rng.integers(0, 40, 40) if k > 16 else rng.integers(0, 8, 1024)
    case = quantization.case(rng, family, dtype, counts.tolist(), k, {"global_scale_kind": "encode"})
    case.verify(launch(case), approximations)


@every_dtype
@every_family
def test_a_nan_stays_in_its_block(
    dtype: str, family: str, approximations: Approximations, rng: np.random.Generator
) -> None:
    """Or in its expert, where it is the global scale; no other byte changes."""
    for scalars in quantization.scalar_choices(family):
        for case in (quantization.with_nan_and_infinity, quantization.with_nan_scale):
            changed = case(rng, family, dtype, scalars)
            changed.verify(launch(changed), approximations)


@every_dtype
def test_the_largest_share_is_the_amax(dtype: str, rng: np.random.Generator) -> None:
    """Over a large matrix and over less than a share each."""
    for m, k in ((3000, 2880), (1, 16)):
        x, amax = quantization.spread(rng, m, k, dtype)
        outputs = {"partial": np.full(528, np.nan, np.float32)}
        partial = launch(Case("amax", dtype, {"x": x}, {}, outputs, lambda _: {}))["partial"]
        assert partial.max() == amax and (partial >= 0).all()


def test_global_scales(approximations: Approximations, rng: np.random.Generator) -> None:
    """Exact quotients of the largest partial maximum, which is at least the floor."""
    for partials, experts, scalars in ((1, 1, {}), (700, 1024, {}), (3, 300, {"amax_floor": 4096.0})):
        case = quantization.global_scales(rng, partials, experts, **scalars)
        case.verify(launch(case), approximations)
