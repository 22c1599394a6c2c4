"""Buffers made from ``loader.outputs`` alone, and launches into them on the emulated device, held to the references."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import block_cases
import fp8_swiglu
import gemm_problem
import numpy as np
import pytest
import quantization
import reference
import scale_layouts
import schedules
from block_quantization import FP8, Quantized
from quantization import EMULATED
from raw_buffer import RawBuffer

import loader

ARCH = "90a"
POISON = 0xFF
STORAGE = reference.STORAGE | dict.fromkeys(("e2m1x2", "e4m3", "ue4m3", "ue8m0"), np.uint8)

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]
Run = Callable[..., dict[str, np.ndarray]]


def allocate(spec: loader.BufferSpec) -> np.ndarray:
    """Poisoned memory of just that size, at no larger power of two than the spec's alignment."""
    raw = np.full(spec.nbytes + 2 * spec.alignment, POISON, np.uint8)
    start = -raw.ctypes.data % (2 * spec.alignment) + spec.alignment
    start -= 2 * spec.alignment * (start >= 2 * spec.alignment)
    return raw[start : start + spec.nbytes].view(STORAGE[spec.dtype]).reshape(spec.shape)


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Run:
    """Launches into buffers of which the loader alone says what they are. ``known``: dimensions that only outputs have,
    and words for those that may have several dtypes."""

    def launch(name: str, inputs: Mapping[str, np.ndarray], known: Mapping[str, Any], **scalars: Any) -> Any:
        reschedule()
        buffers = gemm_problem.buffers(dict(inputs))
        specs = loader.outputs(name, **buffers, **known, **scalars, packs=packs)
        outputs = {name: allocate(spec) for name, spec in specs.items()}
        assert {name: array.strides for name, array in outputs.items()} == {
            name: tuple(stride * outputs[name].itemsize for stride in spec.strides) for name, spec in specs.items()
        }
        loader.launch(name, **buffers, **gemm_problem.buffers(outputs), **scalars, device=f"emulated:{ARCH}",
                      packs=packs)  # fmt: skip
        return outputs

    return launch


def test_grouped_fp4(run: Run, rng: np.random.Generator) -> None:
    """One result, as the call's word has it."""
    problem = reference.grouped_problem(rng, [0, 5, 3], 24, 96, gaps=True, unowned_rows=2)
    out = run("grouped_fp4", problem.inputs(), {"out": "bf16"})["out"]
    assert out.shape == (10, 24) and (out[8:].view(np.uint8) == POISON).all()
    reference.check(reference.as_float64(out[:8], "bf16"), reference.grouped_reference(problem), 96, "bf16")


def test_grouped_fp4_masked(run: Run, rng: np.random.Generator) -> None:
    """The family that overloads the name, told by an argument."""
    problem = reference.grouped_problem(rng, [4, 0], 24, 96)
    out = run("grouped_fp4", schedules.masked_inputs(problem, rng, 5), {"out": "f32"})["out"]
    assert out.shape == (2, 5, 24) and (out[1].view(np.uint8) == POISON).all()
    reference.check(out[0, :4], reference.grouped_reference(problem), 96, "f32")


@pytest.mark.parametrize("layout", ["blocks_128x4", "linear"])
def test_nvfp4_quantize(layout: str, run: Run, rng: np.random.Generator) -> None:
    """Elements and scales; how many rows of scales there are the call says."""
    case = quantization.dense(rng, "bf16", 37, 80, global_scale_kind="encode", scale_layout=layout)
    rows = len(case.outputs["out_scale"])
    outputs = run("nvfp4_quantize", case.inputs, {"S": rows}, **case.scalars)
    for name, array in outputs.items():  # what it must leave as it was
        case.outputs[name][:] = POISON
        assert array.shape == case.outputs[name].shape
    case.verify(outputs, EMULATED)


BLOCKS = [("mxfp4_quantize", {"S": 256, "Kp": 192}, {}), ("fp8_quantize", {}, {}),
          ("fp8_quantize", {}, {"scale_layout": "row_major"}), ("fp8_ue8m0_quantize", {}, {})]  # fmt: skip


@pytest.mark.parametrize("family, sizes, scalars", BLOCKS)
def test_block_quantize(
    family: str, sizes: dict[str, int], scalars: dict[str, str], run: Run, rng: np.random.Generator
) -> None:
    """Rows that the call makes longer, and scales whose shape follows from their layout."""
    case = block_cases.dense(rng, family, "bf16", 37, 96, 96, **scalars)
    outputs = run(family, case.inputs, sizes, **scalars)
    for name, array in outputs.items():
        case.outputs[name].view(np.uint8)[:] = POISON
        assert array.shape == case.outputs[name].shape
    case.verify(outputs, EMULATED)


def test_grouped_fp8_swiglu(run: Run, rng: np.random.Generator) -> None:
    """L1 of an FP8 layer: a result, and its scales MN-major."""
    problem, settings = fp8_swiglu.Problem.random(rng, [3, 0, 6], 144, 272), fp8_swiglu.Settings()
    inputs, places = problem.inputs("")
    outputs = run("grouped_fp8_swiglu", inputs, {}, **settings.scalars("fp8"))
    assert (outputs["out"].shape, outputs["out_scale"].shape) == ((12, 144), (2, 12))
    quantized = Quantized(outputs["out"][places], np.ascontiguousarray(outputs["out_scale"].T[places]), FP8)
    quantized.verify(*problem.expected(settings), settings.scales("fp8"), "")


def test_gemm_fp8(run: Run, rng: np.random.Generator) -> None:
    """A result that may be added to."""
    problem = gemm_problem.gemm_problem(rng, "fp8", [9], 136, 272)
    inputs, _ = gemm_problem.dense(problem)
    out = run("gemm_fp8", inputs, {"out": "f16"})["out"]
    value, bound = gemm_problem.expected(problem)
    bound = gemm_problem.rounded_bound(value, bound, "f16")
    reference.check_within(reference.as_float64(out, "f16"), value, bound)


def test_groups_along_k(run: Run, rng: np.random.Generator) -> None:
    """A result for each group, and room for the tensor maps of as many CTAs as the call says."""
    problems = [gemm_problem.gemm_problem(rng, "fp8", [16], 24, k, weight_rows=1) for k in (128, 256)]
    inputs = gemm_problem.groups_of_k(problems)
    del inputs["maps"]
    outputs = run("k_grouped_fp8_nt", inputs, {"P": 2, "out": "f32"})
    assert outputs["maps"].shape == (2, 256)
    value, bound = gemm_problem.expected_of_groups(problems)
    bound = gemm_problem.rounded_bound(value, bound, "f32")
    reference.check_within(reference.as_float64(outputs["out"].reshape(32, 24), "f32"), value, bound)


@pytest.mark.parametrize("family", scale_layouts.AWKWARD)
def test_layouts_of_scales(family: str, run: Run, rng: np.random.Generator) -> None:
    """Those whose shape follows from what is given, also where a scalar is one of its dimensions."""
    case = scale_layouts.AWKWARD[family](rng)
    known = {"W": len(case.expected)} if family == "scales_pack_ue8m0_along_k" else {}
    out = run(family, case.inputs, known, **case.scalars)["out"]
    assert out.shape == case.expected.shape
    case.verify(out)


def test_a_whole_layer(packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator) -> None:
    """A composite, with its workspace."""
    torch = pytest.importorskip("torch")
    import moe_reference as moe

    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    layer = moe.random_layer(generator, 4, 96, 64, moe.Settings())
    tokens = moe.random_tokens(generator, 7, 2, 4, 96)
    call = {**tokens._asdict(), **layer.arguments}
    specs = loader.outputs("moe_fp4", **call, out="bf16", packs=packs)
    assert specs.keys() == {"out", "workspace"}
    out, workspace = allocate(specs["out"]), allocate(specs["workspace"])
    context = reschedule()
    loader.launch("moe_fp4", **call, out=RawBuffer.of(out), workspace=workspace, device=f"emulated:{ARCH}", packs=packs)
    moe.moe(layer, tokens, "bf16").check(torch.from_numpy(out.view(np.int16)).view(torch.bfloat16), context)
    assert (workspace.view(np.uint8) != POISON).any()  # it was used


def test_a_chain_that_does_not_exist(packs: list[str] | None) -> None:
    """What one call writes is what the next one reads: a layer's shapes without a buffer."""
    rows = {"M": 100, "S": 256, "E": 4, "global_scale_kind": "encode"}
    x = loader.outputs("nvfp4_quantize_grouped", **rows, K=256, packs=packs)
    given = loader.buffers("grouped_fp4_swiglu", **rows, I=64, K=256, intermediate="bf16", packs=packs)
    given |= {"a": x["out"], "a_scale": x["out_scale"]}
    inputs = {name: spec for name, spec in given.items() if name not in ("out", "out_scale")}
    h = loader.outputs("grouped_fp4_swiglu", **inputs, global_scale_kind="encode", intermediate="f16", packs=packs)
    assert (h["out"].shape, h["out_scale"].shape) == ((100, 32), (256, 4))
    y = loader.outputs("grouped_fp4", a=h["out"], a_scale=h["out_scale"], b="e2m1x2", b_scale="ue4m3", alpha="f32",
                       expert_offsets="i32", scale_offsets="i32", N=512, E=4, out="f32", packs=packs)  # fmt: skip
    assert y == {"out": loader.BufferSpec((100, 512), ("f32",), 16)}
    assert y["out"].strides == (512, 1) and y["out"].nbytes == 100 * 512 * 4
