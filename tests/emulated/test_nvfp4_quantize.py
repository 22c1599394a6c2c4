"""The kernels that quantise to NVFP4, every variant on the emulated device: each byte as tests/quantization.py says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import quantization
from quantization import EMULATED, FAMILIES, Case
from raw_buffer import RawBuffer

import loader

ARCHS = ("90a", "100a", "120a")
SCHEDULES = 3
Run = Callable[..., bytes]

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]
every_arch = pytest.mark.parametrize("arch", ARCHS)
every_dtype = pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def launch(packs: list[str] | None, reschedule: Callable[[], str]) -> Callable[[str, Case], dict[str, np.ndarray]]:
    """Launches a case under a fresh schedule and returns its outputs. The emulator refuses accesses beyond a buffer."""

    def run(arch: str, case: Case) -> dict[str, np.ndarray]:
        reschedule()
        outputs = {name: array.copy() for name, array in case.outputs.items()}
        buffers = {name: RawBuffer.of(array) for name, array in (case.inputs | outputs).items()}
        loader.launch(case.family, **buffers, **case.scalars, device=f"emulated:{arch}", packs=packs)
        return outputs

    return run


@pytest.fixture
def run(launch: Callable[[str, Case], dict[str, np.ndarray]]) -> Run:
    """A launch that is checked; returns the bytes of all outputs."""

    def run(arch: str, case: Case) -> bytes:
        outputs = launch(arch, case)
        case.verify(outputs, EMULATED, arch)
        return b"".join(array.tobytes() for array in outputs.values())

    return run


@every_arch
@every_dtype
@every_family
def test_many_awkward_things_at_once(arch: str, dtype: str, family: str, run: Run, rng: np.random.Generator) -> None:
    """Empty experts, one row, more rows than a scale block; rows of nobody that hold NaN; a last word of scales that
    one block begins; more words than threads. Every schedule gives the same bytes, whatever the scalars."""
    for scalars in quantization.scalar_choices(family):
        case = quantization.case(rng, family, dtype, [0, 1, 30, 0, 0, 9], 848, scalars)
        repeats = SCHEDULES if scalars == {"global_scale_kind": "encode"} else 1
        assert len({run(arch, case) for _ in range(repeats)}) == 1, "the result depends on the schedule"


SHAPES = {
    "smallest": ([1], 16),
    "full_words": ([2, 3], 64),
    "two_scale_blocks": ([131], 32),
    "all_in_one_expert": ([0, 0, 7, 0], 48),
}


@every_arch
@every_family
@pytest.mark.parametrize("counts, k", SHAPES.values(), ids=SHAPES)
def test_small_shapes(arch: str, family: str, counts: list[int], k: int, run: Run, rng: np.random.Generator) -> None:
    """Fewer words than threads, one row, rows beyond the first scale block."""
    dtype = str(rng.choice(["bf16", "f16", "f32"]))
    run(arch, quantization.case(rng, family, dtype, counts, k, {"global_scale_kind": "encode"}))


@every_arch
@pytest.mark.parametrize("family", [*quantization.PACKED, *quantization.MASKED])
def test_most_experts(arch: str, family: str, run: Run, rng: np.random.Generator) -> None:
    """1024 experts, most of them without a row, the last ones with some."""
    counts = np.where(rng.random(1024) < 0.03, rng.integers(1, 4, 1024), 0)
    counts[-1] = 2
    run(arch, quantization.case(rng, family, "bf16", counts.tolist(), 16, {"global_scale_kind": "encode"}))


@every_arch
@every_family
def test_no_rows_write_nothing(arch: str, family: str, run: Run, rng: np.random.Generator) -> None:
    """Experts without any row are no error."""
    run(arch, quantization.case(rng, family, "f32", [0, 0], 32, {"global_scale_kind": "encode"}))


@every_arch
@pytest.mark.parametrize("division", ["approximate", "ieee"])
@pytest.mark.parametrize("kind, scale", [("decode", 0), ("encode", np.inf)])
def test_zeros_with_the_scale_of_zeros(
    arch: str, kind: str, scale: float, division: str, run: Run, rng: np.random.Generator
) -> None:
    """amax 0 gives the decode scale 0, or the infinite encode scale; it is kept finite, so that zeros stay zeros."""
    case = quantization.dense(rng, "f32", 3, 64, global_scale_kind=kind, division=division)
    case.inputs["x"][:], case.inputs["global_scale"][:] = 0, scale
    outputs = case.expected(EMULATED)
    assert not outputs["out"].any() and not outputs["out_scale"].reshape(-1, 16)[:3, :4].any()
    run(arch, case)


@every_arch
@every_family
def test_a_nan_stays_in_its_block(arch: str, family: str, run: Run, rng: np.random.Generator) -> None:
    """Its scale is 0x7F, and 448 where there is an infinity; no other byte changes."""
    dtype = str(rng.choice(["bf16", "f16", "f32"]))
    for division in ("approximate", "ieee"):
        scalars = {"global_scale_kind": str(rng.choice(["encode", "decode"])), "division": division}
        run(arch, quantization.with_nan_and_infinity(rng, family, dtype, scalars))


@every_arch
@every_family
def test_a_nan_global_scale_stays_in_its_expert(arch: str, family: str, run: Run, rng: np.random.Generator) -> None:
    """All scales of its rows are 0x7F, and no others."""
    for kind in ("encode", "decode"):
        run(arch, quantization.with_nan_scale(rng, family, "bf16", {"global_scale_kind": kind}))


@every_arch
@pytest.mark.parametrize("shares", [1, 5, 40])
def test_the_largest_share_is_the_amax(
    arch: str, shares: int, launch: Callable[[str, Case], dict[str, np.ndarray]], rng: np.random.Generator
) -> None:
    """Wherever the largest element is, and with more shares than blocks; a NaN is the amax of its share. The last 16
    elements are read again by threads that have none left, so a NaN there may be in other shares, too."""

    def partial(dtype: str, x: np.ndarray) -> np.ndarray:
        outputs = {"partial": np.full(shares, -1, np.float32)}
        return launch(arch, Case("amax", dtype, {"x": x}, {}, outputs, lambda _: {}))["partial"]

    for dtype, m, k in (("bf16", 131, 592), ("f16", 3, 16), ("f32", 67, 1040), ("f32", 0, 16)):
        x, amax = quantization.spread(rng, m, k, dtype) if m else (np.zeros((0, k), np.float32), 0.0)
        found = partial(dtype, x)
        assert found.max() == amax and (found >= 0).all(), (dtype, m, k)
        if m:
            at = int(rng.integers(m * k))
            x.flat[at] = quantization.store(np.full(1, np.nan, np.float32), dtype)[0]
            found = int(np.isnan(partial(dtype, x)).sum())
            assert found >= 1 if at >= m * k - 16 else found == 1, (dtype, m, k, at)


@every_arch
def test_global_scales(arch: str, run: Run, rng: np.random.Generator) -> None:
    """Exact quotients of the largest partial maximum, which is at least the floor."""
    for partials, experts, scalars in ((1, 1, {}), (700, 1024, {}), (3, 300, {"amax_floor": 4096.0})):
        run(arch, quantization.global_scales(rng, partials, experts, **scalars))


@every_arch
def test_the_global_scale_of_nan(
    arch: str, launch: Callable[[str, Case], dict[str, np.ndarray]], rng: np.random.Generator
) -> None:
    """NaN, whatever the floor of the amax, and so is alpha."""
    case = quantization.global_scales(rng, 700, 3, amax_floor=4096.0)
    case.inputs["partial"][rng.integers(700)] = np.nan
    outputs = launch(arch, case)
    assert np.isnan(outputs["encode_scale"]).all() and np.isnan(outputs["alpha"]).all()


def test_the_reference_rounds_to_nearest_even() -> None:
    """Ties, saturation, the smallest steps, zeros and NaN of both formats."""
    values = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 7, -0.25, -5.01, 0, -0.0, np.nan, np.inf, -np.inf]
    codes = [0, 2, 2, 4, 4, 6, 6, 7, 8, 15, 0, 8, 7, 7, 15]
    assert quantization.to_e2m1(np.array(values, np.float32)).tolist() == codes
    values = [0, 2**-10, 2**-10 * 1.001, 3 * 2**-10, 2**-6, 1, 1.0625, 1.1875, 448, 1e9, np.inf, np.nan]
    scales = [0, 0, 1, 2, 8, 0x38, 0x38, 0x3A, 0x7E, 0x7E, 0x7E, 0x7F]
    assert quantization.to_ue4m3(np.array(values, np.float32)).tolist() == scales


def check_reach(rng: np.random.Generator) -> None:
    """Blocks of ``sample`` have every scale byte, zero, saturated and NaN ones among them."""
    encode = quantization.sample_encode_scale(rng, 400)
    _, scales = quantization.quantize(quantization.sample(rng, 400, 512), encode, "ieee", EMULATED)
    assert set(range(0x80)) == set(scales.flat)
