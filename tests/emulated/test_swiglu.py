"""templates/number/swiglu.cuh: SwiGLU and rounding of several values a thread, bit for bit."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from quantization import EMULATED
from swiglu_reference import Settings

import emulator
from generator.toolchain import find_toolchain

TEMPLATES = Path(__file__).resolve().parents[2] / "templates"
THREADS, COUNT = 256, 8
TYPES = ("f32", "bf16", "f16")
SOURCE = """
#include "number/swiglu.cuh"

extern "C" __global__ void activate(const float* gates, const float* ups, float* out, int type, float alpha, float beta,
                                    float limit, int kind) {
    float gate[8], up[8];
    for (int i = 0; i < 8; ++i) gate[i] = gates[8 * threadIdx.x + i], up[i] = ups[8 * threadIdx.x + i];
    swiglu::apply(gate, up, {alpha, beta, limit, static_cast<swiglu::Kind>(kind)});
    swiglu::round_to(gate, static_cast<swiglu::Type>(type));
    for (int i = 0; i < 8; ++i) out[8 * threadIdx.x + i] = gate[i];
}
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> emulator.Module:
    folder = tmp_path_factory.mktemp("swiglu")
    source, target = folder / "activate.cu", folder / "activate.ptx"
    source.write_text(SOURCE)
    command = [find_toolchain().nvcc, "-ptx", "-arch=sm_100a", f"-I{TEMPLATES}", source, "-o", target]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, env=find_toolchain().environment)
    return emulator.load(target.read_text())


def run(module: emulator.Module, gates: np.ndarray, ups: np.ndarray, dtype: str, settings: Settings) -> np.ndarray:
    out = np.zeros_like(gates)
    device = emulator.Device("100a")
    for buffer in (gates, ups, out):
        device.map_buffer(buffer.ctypes.data, buffer.nbytes, buffer is out, "buffer")
    pointers = (buffer.ctypes.data for buffer in (gates, ups, out))
    kind = ("silu", "gelu_tanh").index(settings.activation)
    scalars = settings.swiglu_alpha, settings.swiglu_beta, settings.swiglu_limit, kind
    parameters = struct.pack("<QQQifffi", *pointers, TYPES.index(dtype), *scalars)
    device.launch(module, "activate", (1,), (THREADS,), (1,), 0, parameters)
    return out


EXTREMES = [0.0, 2.0**-149, 2.0**-130, 2.0**-65, 2.0**65, 3e38, 60.0, 87.5, 88.5, 104.0, 1e4]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("extremes", [0, 1 / 16], ids=["ordinary", "extreme"])
def test_every_value_has_the_bits_of_separate_operations(
    dtype: str, extremes: float, module: emulator.Module, rng: np.random.Generator
) -> None:
    """Also zeros of either sign, subnormal results, and sums of the sigmoid that overflow, beside ordinary values."""
    shape = THREADS * COUNT
    gates, ups = ((rng.standard_normal(shape) * 2.0 ** rng.uniform(-8, 4, shape)).astype(np.float32) for _ in range(2))
    drawn = rng.random(shape) < extremes
    gates[drawn] = rng.choice(EXTREMES, drawn.sum()) * rng.choice([-1, 1], drawn.sum())
    for settings in (Settings(), Settings(swiglu_alpha=1.702, swiglu_beta=1.0, swiglu_limit=7.0),
                     Settings(activation="gelu_tanh"), Settings(activation="gelu_tanh", swiglu_limit=7.0)):
        expected = settings.swiglu.apply(gates[:, None], ups[:, None], np.ones(shape, np.float32), dtype, EMULATED)
        expected = expected[:, 0]
        got = run(module, gates, ups, dtype, settings)
        wrong = np.flatnonzero(got.view(np.uint32) != expected.view(np.uint32))
        assert not len(wrong), f"{gates[wrong[0]]!r}, {ups[wrong[0]]!r}: {got[wrong[0]]!r}, not {expected[wrong[0]]!r}"


def test_gelu_tanh_is_gelu_by_tanh(module: emulator.Module) -> None:
    """Within 2^-20 of the formula in float64, over all that is not rounded to 0 or to gate."""
    gates = np.linspace(-6, 6, THREADS * COUNT, dtype=np.float32)
    exact = gates.astype(np.float64)
    exact = exact / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3)))
    got = run(module, gates, np.ones_like(gates), "f32", Settings(activation="gelu_tanh"))
    assert (np.abs(got - exact) <= 2.0**-20 * np.maximum(np.abs(exact), 2.0**-6)).all()
