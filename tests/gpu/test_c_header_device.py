"""include/block_scaled.h on a GPU: results of kernels, the loader's bytes, and the example."""

from __future__ import annotations

import subprocess
from pathlib import Path

import c_header
import pytest

torch = pytest.importorskip("torch")

from device_problem import device_problem  # noqa: E402

import loader  # noqa: E402
from loader import registry  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {torch.uint8: "u8", torch.int32: "i32", torch.float32: "f32", torch.bfloat16: "bf16",
          torch.float8_e4m3fn: "e4m3"}  # fmt: skip


@pytest.fixture
def header(tmp_path):
    made = c_header.Header(tmp_path, registry.registry().packs[0].directory)
    yield made
    torch.cuda.synchronize()
    made.close()


def launch(header, kernel, **arguments):
    """Tensors, and words."""
    words = {name: value for name, value in arguments.items() if isinstance(value, str)}
    buffers = {name: (DTYPES[value.dtype], value.data_ptr(), tuple(value.shape))
               for name, value in arguments.items() if name not in words}  # fmt: skip
    header.launch(kernel, buffers, torch.cuda.current_stream().cuda_stream, **words)


def test_a_product(header, seed):
    """grouped_fp4 on experts of uneven sizes: within the bound of the reference, and the bytes of the loader."""
    problem = device_problem(seed, [0, 1, 37, 130], 512, 1024)
    ours, theirs = problem.output("bf16"), problem.output("bf16")
    launch(header, "grouped_fp4", **problem.inputs, out=ours.array)
    loader.launch("grouped_fp4", **problem.inputs, out=theirs.array)
    problem.verify(ours, "by the header")
    assert torch.equal(ours.array.view(torch.uint8), theirs.array.view(torch.uint8))


def test_a_quantisation(header, seed):
    """nvfp4_quantize gives the bytes of the loader, also of what it leaves alone."""
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(37, 256, device="cuda", generator=generator).bfloat16()
    scale = torch.rand(1, device="cuda", generator=generator) * 100 + 1
    results = []
    for run in (lambda **call: launch(header, "nvfp4_quantize", **call),
                lambda **call: loader.launch("nvfp4_quantize", **call)):
        out = torch.full((37, 128), 0xA5, dtype=torch.uint8, device="cuda")
        out_scale = torch.full((128, 16), 0xA5, dtype=torch.uint8, device="cuda")
        run(x=x, global_scale=scale, global_scale_kind="encode", out=out, out_scale=out_scale)
        results.append((out, out_scale))
    assert all(map(torch.equal, *results))


def test_the_example(tmp_path):
    """It computes what the host computes."""
    command = ["g++", "-std=c++17", f"-I{ROOT / 'include'}", str(ROOT / "examples" / "amax.cpp"), "-o",
               str(tmp_path / "amax"), "-ldl", "-lm"]  # fmt: skip
    subprocess.run(command, check=True)
    done = subprocess.run([tmp_path / "amax", registry.registry().packs[0].directory], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("amax/t256_f32 for sm_"), done.stdout + done.stderr
