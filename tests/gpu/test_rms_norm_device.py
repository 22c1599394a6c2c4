"""The norm that quantises on a GPU, as tests/rms_norm.py says, and equal in every byte over 24 launches."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import rms_norm
from rms_norm import Outputs, Problem, Settings

torch = pytest.importorskip("torch")

import loader  # noqa: E402

REPEATS = 24
every_format = pytest.mark.parametrize("name", rms_norm.FORMATS)
every_dtype = pytest.mark.parametrize("dtype", ["bf16", "f16"])


def to_device(array: np.ndarray) -> torch.Tensor:
    """A copy; uint16 stands for bf16."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16)
    return torch.from_numpy(array).cuda()


def launch(problem: Problem) -> Outputs:
    """Into copies of poisoned outputs, which become the same each time."""
    outputs = Outputs(problem)
    inputs = {name: to_device(array) for name, array in problem.inputs().items()}
    copies = [{name: to_device(array) for name, array in outputs.arrays.items()} for _ in range(REPEATS)]
    for buffers in copies:
        loader.launch(problem.family, **inputs, **buffers, **problem.scalars())
    torch.cuda.synchronize()
    for name, array in outputs.arrays.items():
        stored = [buffers[name].view(torch.uint8) for buffers in copies]
        assert all(torch.equal(copy, stored[0]) for copy in stored), f"{name} differs from launch to launch"
        array[:] = stored[0].cpu().numpy().view(array.dtype)
    return outputs


@every_dtype
@every_format
@pytest.mark.parametrize(("m", "k"), [(1, 2880), (5, 7168), (137, 4128), (2, 16384)])
def test_every_byte_where_fp32_is_exact(name: str, dtype: str, m: int, k: int, rng: np.random.Generator) -> None:
    """As on the emulated device; NVFP4 by exact quotients, which are the same everywhere."""
    for settings in Settings.every(name, eps=1.0):
        problem = Problem.exact(rng, name, dtype, m, k, dataclasses.replace(settings, division="ieee"))
        problem.verify_exactly(launch(problem), str(settings))


@every_dtype
@every_format
@pytest.mark.parametrize(("m", "k"), [(1, 32), (129, 2880), (4096, 7168)])
def test_within_the_bound_of_float64(name: str, dtype: str, m: int, k: int, rng: np.random.Generator) -> None:
    """Rows of models, and more of them than a device has room for at once; with a residual, and without."""
    for adds in (True, False):
        settings = Settings.every(name)[int(rng.integers(3))]
        problem = Problem.random(rng, name, dtype, m, k, settings, adds)
        problem.verify(launch(problem), str(settings))


@every_format
def test_near_torch(name: str) -> None:
    """A whole norm in torch's fp32, then rounded to bf16 as engines do: elements are within half a step of it."""
    m, k, settings = 64, 4096, Settings.every(name)[0]
    x, residual = (torch.randn(m, k, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    weight = torch.randn(k, dtype=torch.bfloat16, device="cuda")
    total = (x.float() + residual.float()).bfloat16().float()
    normalised = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + settings.eps)
    expected = (normalised * weight.float()).bfloat16().double().cpu().numpy()
    arrays: dict[str, Any] = {key: tensor.view(torch.int16).cpu().numpy().view(np.uint16)
                              for key, tensor in (("x", x), ("residual", residual), ("weight", weight))}  # fmt: skip
    problem = Problem(name, "bf16", global_scale=np.full(1, 64, np.float32), settings=settings, **arrays)
    value, bound = problem.expected()
    assert (abs(value - expected) <= bound + abs(expected) * 2.0**-7).all()
    problem.verify(launch(problem))
