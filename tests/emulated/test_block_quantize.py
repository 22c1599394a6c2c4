"""The kernels that quantise rows to MXFP8, MXFP4 and FP8, every variant on the emulated device, byte for byte."""

from __future__ import annotations

from collections.abc import Callable

import block_cases
import numpy as np
import pytest
from block_cases import DENSE, GATED, GATHERS, MASKED
from quantization import EMULATED, Case, store
from raw_buffer import RawBuffer
from reference import check_within, round_up
from routing import random_ids

import loader

ARCHS = ("90a", "100a", "120a")
FAMILIES = (*DENSE, *MASKED, *GATHERS, *GATED)
Run = Callable[[str, Case], dict[str, np.ndarray]]

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]
every_arch = pytest.mark.parametrize("arch", ARCHS)
every_dtype = pytest.mark.parametrize("dtype", ["bf16", "f16"])
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Run:
    """Launches a case under a fresh schedule, compares every byte and returns the outputs."""

    def launch(arch: str, case: Case) -> dict[str, np.ndarray]:
        context = f"{arch} {reschedule()}"
        outputs = {name: array.copy() for name, array in case.outputs.items()}
        buffers = {name: RawBuffer.of(array) for name, array in (case.inputs | outputs).items()}
        loader.launch(case.family, **buffers, **case.scalars, device=f"emulated:{arch}", packs=packs)
        case.verify(outputs, EMULATED, context)
        return outputs

    return launch


@every_arch
@every_dtype
@every_family
def test_many_awkward_things_at_once(arch: str, dtype: str, family: str, run: Run, rng: np.random.Generator) -> None:
    """Every choice: empty experts, one row, a number of rows that four does not divide, K that ends inside a word of
    scales and, of FP8, inside a block; NaN, infinities and blocks whose largest element is where scales change."""
    k = 864 if block_cases.Target.of(family).format.is_mx else 848
    for scalars in block_cases.scalar_choices(family):
        run(arch, block_cases.case(rng, family, dtype, [0, 1, 13, 0, 7], k, scalars))


SHAPES = {"smallest": ([1], 32), "whole_words": ([2, 3], 512), "two_scale_blocks": ([131], 32)}


@every_arch
@every_family
@pytest.mark.parametrize("counts, k", SHAPES.values(), ids=SHAPES)
def test_small_shapes(arch: str, family: str, counts: list[int], k: int, run: Run, rng: np.random.Generator) -> None:
    """Fewer words than threads, whole words of scales, rows beyond the first block of them."""
    run(arch, block_cases.case(rng, family, str(rng.choice(["bf16", "f16"])), counts, k, {}))


@every_arch
@every_family
def test_no_rows_write_nothing_but_padding(arch: str, family: str, run: Run, rng: np.random.Generator) -> None:
    """Experts without any row are no error, nor is a matrix without one."""
    run(arch, block_cases.case(rng, family, "bf16", [0, 0], 32, {}))


@every_arch
@pytest.mark.parametrize("family", GATHERS)
def test_tokens_of_several_experts(arch: str, family: str, run: Run, rng: np.random.Generator) -> None:
    """A token has a row in each of its experts; some slots have none."""
    ids = random_ids(rng, 9, 3, 6)
    ids[4], ids[ids == 2] = -1, -1
    run(arch, block_cases.gather(rng, family, "bf16", ids, 6, 160, weighting="input"))


@every_arch
@pytest.mark.parametrize("family", [*DENSE, *MASKED, *GATHERS])
def test_scales_of_zeros_infinity_and_nan(arch: str, family: str, run: Run, rng: np.random.Generator) -> None:
    """As docs/numerics.md has them, and each in its own block alone."""
    mx = block_cases.Target.of(family).format.is_mx
    case = block_cases.case(rng, family, "f16", [4], 256, {})
    x = case.inputs["x"]
    special = store(np.array([0, np.inf, np.nan, 1], np.float32), "f16")
    x[...] = special[3]
    x[..., :32 if mx else 128] = special[rng.integers(3)]
    run(arch, case)


SMALLEST = float(np.float32(1e-10) / np.float32(448))
# What the reference is, in numbers that can be computed by hand: largest magnitude of a block to its scale.
BY_HAND = {
    ("mxfp8_quantize", "up"): {448: 1, 449: 2, 256: 1, 224: 0.5, 0: 2.0**-127, np.inf: 2.0**120},
    ("mxfp8_quantize", "ocp"): {448: 1, 449: 1, 511: 1, 512: 2, 256: 1, 255: 0.5, 0: 2.0**-127, np.inf: 2.0**120},
    ("mxfp4_quantize", "up"): {6: 1, 6.5: 2, 4: 1, 3: 0.5, 0: 2.0**-127, np.inf: 2.0**126},
    ("mxfp4_quantize", "ocp"): {6: 1, 7.5: 1, 8: 2, 4: 1, 3.5: 0.5, 0: 2.0**-127, np.inf: 2.0**126},
    ("fp8_quantize", "none"): {448: 1, 224: 0.5, 1: 1 / 448, 0: SMALLEST, np.inf: np.inf},
    ("fp8_quantize", "power_of_two"): {448: 1, 449: 2, 224: 0.5, 256: 1, 0: 2.0**-42, np.inf: np.inf},
}


@every_arch
@pytest.mark.parametrize("family, rounding", BY_HAND)
def test_scales_by_hand(arch: str, family: str, rounding: str, packs: list[str] | None) -> None:
    """A row an entry of the table, whose block holds that magnitude, with a sign, and smaller ones."""
    table = BY_HAND[family, rounding]
    mx = block_cases.Target.of(family).format.is_mx
    x = np.zeros((len(table), 32 if mx else 128), np.float16)
    x[:, 5] = -np.array(list(table), np.float32)
    x[:, 17] = np.minimum(-x[:, 5], 1) / 2
    out = np.zeros((len(table), 16 if "mxfp4" in family else x.shape[1]), np.uint8)
    out_scale = np.zeros((len(table), 4), np.uint8) if mx else np.zeros((len(table), 1), np.float32)
    loader.launch(family, x=x, out=out, out_scale=out_scale, scale_layout="linear" if mx else "row_major",
                  scale_rounding=rounding, device=f"emulated:{arch}", packs=packs)  # fmt: skip
    scales = 2.0 ** (out_scale[:, 0].astype(float) - 127) if mx else out_scale[:, 0]
    np.testing.assert_array_equal(scales, np.array(list(table.values()), np.float32 if not mx else float))


@every_arch
@pytest.mark.parametrize("family", GATHERS)
@pytest.mark.usefixtures("unchecked_values")
def test_slots_that_do_not_exist_stay_in_the_buffers(
    arch: str, family: str, packs: list[str] | None, rng: np.random.Generator
) -> None:
    """Whatever slot_of_row, the offsets and the scale offsets hold, no access leaves a buffer."""
    case = block_cases.case(rng, family, "bf16", [2, 1, 3], 64, {})
    wild = np.array([-(2**31), -1, 2**31 - 1, 8], np.int32)
    case.inputs["slot_of_row"][:] = rng.choice(wild, len(case.inputs["slot_of_row"]))
    case.inputs["expert_offsets"][:] = [0, 3, 2**31 - 1, 2**31 - 1]
    if "scale_offsets" in case.inputs:
        case.inputs["scale_offsets"][:] = rng.choice(wild, 3)
    buffers = {name: RawBuffer.of(array) for name, array in (case.inputs | case.outputs).items()}
    loader.launch(family, **buffers, device=f"emulated:{arch}", packs=packs)  # the emulator refuses such an access


# A quantiser, a GEMM that reads what it writes, and how far off an element may be for its size: half a step of E4M3,
# or of E2M1 in the upper half of a block.
READERS = {
    "fp8_quantize": ("gemm_fp8", 2.0**-4),
    "fp8_ue8m0_quantize": ("gemm_fp8_ue8m0", 2.0**-4),
    "mxfp8_quantize": ("gemm_mxfp8", 2.0**-4),
    "mxfp4_quantize": ("gemm_mxfp4", 0.2),
}


def _operand(rng: np.random.Generator, rows: int, k: int, block: int) -> np.ndarray:
    """Values in the upper half of their block, whose size is its own over 2^12."""
    values = rng.uniform(0.5, 1, (rows, k // block, block)) * rng.choice([-1, 1], (rows, k // block, block))
    return (values * np.exp2(rng.integers(-6, 7, (rows, k // block, 1)))).reshape(rows, k).astype(np.float16)


READ = [(arch, family) for arch in ARCHS for family in READERS if arch == "90a" or family != "fp8_quantize"]


@pytest.mark.parametrize("arch, family", READ)
def test_a_gemm_reads_what_is_written(
    arch: str, family: str, packs: list[str] | None, rng: np.random.Generator
) -> None:
    """Both operands from fp16, but for weights of FP8 with fp32 scales, which have them for 128 x 128: the product is
    that of the values, but for what quantisation and sums lose, which on Hopper are cut off 13 bits below."""
    gemm, off = READERS[family]
    fmt, (m, n, k) = block_cases.Target.of(family).format, (21, 72, 640)
    where = {"device": f"emulated:{arch}", "packs": packs}
    operands, arguments = {"a": _operand(rng, m, k, fmt.block), "b": _operand(rng, n, k, fmt.block)}, {}
    for name, x in operands.items():
        like = block_cases.dense(rng, family, "f16", len(x), k).outputs
        out, scale = like["out"], like["out_scale"]
        scale = scale[: round_up(len(x), 128)] if fmt.is_mx else scale
        loader.launch(family, x=x, out=out, out_scale=scale, **where)
        arguments |= {name: out, f"{name}_scale": scale}
    if family == "fp8_quantize":
        b_scale = np.exp2(np.arange(-2, 3, dtype=np.float32))[None]
        operands["b"] = np.repeat(b_scale, 128, axis=1).repeat(n, axis=0)
        arguments |= {"b": np.full((n, k), 0x38, np.uint8), "b_scale": b_scale}  # ones
    if fmt.is_mx:
        arguments["alpha"] = np.ones(1, np.float32)
    out = np.full((m, n), np.nan, np.float32)
    loader.launch(gemm, **arguments, out=out, **where)
    a, b = (operand.astype(np.float64) for operand in operands.values())
    check_within(out, a @ b.T, ((1 + off) ** 2 - 1 + 2.0**-7) * (abs(a) @ abs(b).T), f"{family} {gemm} {arch}")
