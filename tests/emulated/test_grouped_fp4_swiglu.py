"""Every variant of grouped_fp4_swiglu, executed from its PTX on the emulated device with all checks on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import reference
import schedules
import shipped_matrix
import swiglu_reference
from raw_buffer import RawBuffer
from swiglu_reference import Settings

import loader
from generator.matrix import Variant

MATRIX = shipped_matrix.VARIANTS
VARIANTS, MASKED = (
    [variant for variant in MATRIX if variant.family == family and variant.arch in ("90a", "100a", "120a")]
    for family in ("grouped_fp4_swiglu", "grouped_fp4_swiglu_masked")
)
SMALLEST = {variant.arch: variant for variant in sorted(VARIANTS, key=lambda variant: -variant.axes["block_m"])}

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v.arch}-{v.variant}")
every_arch = pytest.mark.parametrize("variant", SMALLEST.values(), ids=SMALLEST)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A grouped GEMM, and what its epilogue needs."""

    gemm: reference.GroupedProblem
    products: np.ndarray  # f32 [owned, 2 I], the result of grouped_fp4 where `exact`
    exact: np.ndarray  # bool [owned, 2 I]
    row_weight: np.ndarray  # f32 [M]
    encode_scale: np.ndarray  # f32 [E]
    up_alpha: np.ndarray | None = None  # f32 [E]
    bias: np.ndarray | None = None  # f32 [E, 2 I]

    @classmethod
    def random(cls, rng: np.random.Generator, counts: list[int], i: int, k: int, **options: object) -> Problem:
        """Encode scales from far too small to too large: scales of the result from 0 to 448."""
        gemm = reference.grouped_problem(rng, counts, 2 * i, k, **options)
        expected = reference.grouped_reference(gemm)
        rows = gemm.shape[0]
        row_weight = (rng.choice([0.125, 1, 1, -1], rows) * rng.uniform(0.5, 1, rows)).astype(np.float32)
        encode_scale = (2.0 ** rng.uniform(-6, 12, len(counts))).astype(np.float32)
        return cls(gemm, expected.value.astype(np.float32), expected.exact, row_weight, encode_scale)

    def with_alpha_and_bias(self, rng: np.random.Generator, up_alpha: bool = True) -> Problem:
        """The same with a bias, and with an alpha of its own for up."""
        alphas = np.repeat(self.gemm.alpha[:, None], self.products.shape[1], axis=1)
        if up_alpha:
            alphas[:, 1::2] *= rng.uniform(0.25, 4, (len(alphas), 1)).astype(np.float32)
        size = np.abs(self.products).mean()
        bias = (rng.standard_normal(alphas.shape) * size).astype(np.float32)
        expert = np.repeat(np.arange(len(alphas)), np.diff(self.gemm.expert_offsets))
        sums = reference.grouped_reference(dataclasses.replace(self.gemm, alpha=np.ones_like(self.gemm.alpha))).value
        products = (alphas[expert] * sums).astype(np.float32) + bias[expert]
        own = alphas[:, 1].copy() if up_alpha else None
        return dataclasses.replace(self, products=products, up_alpha=own, bias=bias)

    def inputs(self) -> dict[str, object]:
        """Of the GEMM."""
        return self.gemm.inputs() | {"bias": self.bias}

    def global_scale(self, settings: Settings) -> np.ndarray:
        return 1 / self.encode_scale if settings.global_scale_kind == "decode" else self.encode_scale

    def expected(self, settings: Settings) -> swiglu_reference.Quantized:
        return swiglu_reference.swiglu_reference(
            self.gemm, self.products, self.row_weight, self.global_scale(settings), settings, self.exact
        )


class Runner:
    """Launches through the loader on an emulated device, each time under a fresh schedule."""

    def __init__(self, packs: list[str] | None, reschedule: Callable[[], str]) -> None:
        self._packs, self._reschedule = packs, reschedule

    def __call__(
        self,
        arch: str,
        variant: str | None,
        problem: Problem,
        settings: Settings,
        expected: swiglu_reference.Quantized,
        prefetch: str = "none",
    ) -> tuple[bytes, bytes]:
        """A checked launch; returns the bytes of the outputs."""
        schedule = self._reschedule()
        rows, columns, _, _ = problem.gemm.shape
        out = reference.GuardedOutput(rows, columns // 4, "u8")
        scale_shape = len(problem.gemm.a_scale), reference.round_up(columns // 32, 4)
        out_scale = reference.GuardedOutput(*scale_shape, "u8")
        loader.launch(
            "grouped_fp4_swiglu",
            **problem.inputs(),
            up_alpha=problem.up_alpha,
            row_weight=problem.row_weight,
            global_scale=problem.global_scale(settings),
            out=out.array,
            out_scale=out_scale.array,
            **dataclasses.asdict(settings),
            prefetch=prefetch,
            variant=variant,
            device=f"emulated:{arch}",
            packs=self._packs,
        )
        context = f"{variant}@{arch} (M, N, K, E) = {problem.gemm.shape} {settings} prefetch={prefetch} {schedule}"
        expected.verify(problem.gemm, out, out_scale, context)
        return out.array.tobytes(), out_scale.array.tobytes()

    def gemm(self, variant: Variant, problem: Problem, intermediate: str) -> np.ndarray:
        """The owned rows of grouped_fp4, stored as ``intermediate``, in fp32."""
        rows, columns, _, _ = problem.gemm.shape
        out = reference.GuardedOutput(rows, columns, intermediate)
        # A tile with as many rows; the order of a sum does not depend on its columns and depth.
        wanted = {"block_m": variant.axes["block_m"], "out": intermediate}
        unfused, *_ = [
            other.variant
            for other in MATRIX
            if other.family == "grouped_fp4" and other.arch == variant.arch and wanted.items() <= other.axes.items()
        ]
        loader.launch(
            "grouped_fp4",
            **problem.inputs(),
            out=RawBuffer.of(out.array),
            variant=unfused,
            device=f"emulated:{variant.arch}",
            packs=self._packs,
        )
        return out.values(int(problem.gemm.expert_offsets[-1])).astype(np.float32)


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Runner:
    return Runner(packs, reschedule)


MANY = [
    Settings(intermediate="bf16"),
    Settings(intermediate="f16", global_scale_kind="decode", division="ieee", swiglu_limit=7.0),
    Settings(intermediate="f32", swiglu_alpha=1.702, swiglu_beta=1.0, swiglu_limit=7.0),
]
GELU = [Settings(intermediate=dtype, activation="gelu_tanh", swiglu_limit=limit)
        for dtype, limit in (("bf16", Settings.swiglu_limit), ("f32", 7.0))]  # fmt: skip


def awkward_problem(rng: np.random.Generator, rows: int, columns: int, tail: int = 16, k: int = 608) -> Problem:
    """For a tile of so many rows and columns, and a tail of I; nearly all sums are exact, so that nearly all bytes are
    known."""
    counts = [0, 1, rows + 3, 0, rows - 1, 0]
    problem = Problem.random(rng, counts, columns // 2 + tail, k, gaps=True, unowned_rows=2)
    assert problem.exact.mean() > 0.9
    return problem


@every_variant
def test_many_awkward_things_at_once(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """Empty experts, one row, a row tile and three rows, a row tile less one; tails of I and K, and of K inside a word
    of scales; unused scale blocks, rows without an expert, NaN in all padding. Three schedules, two of which load
    weights ahead."""
    problem = awkward_problem(rng, variant.axes["block_m"], variant.axes["block_n"])
    for settings, prefetch in zip(MANY, ("none", "weights", "weights"), strict=True):
        run(variant.arch, variant.variant, problem, settings, problem.expected(settings), prefetch)


@pytest.mark.parametrize("variant", MASKED, ids=lambda v: f"{v.arch}-{v.variant}")
def test_rows_by_mask(
    variant: Variant, packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator
) -> None:
    """The awkward problem in matrices of as many rows as the largest mask: every byte. The next GEMM by mask takes both
    outputs as they are; nothing from the mask on is read or written."""
    problem = awkward_problem(rng, variant.axes["block_m"], variant.axes["block_n"], 32, 352).with_alpha_and_bias(rng)
    counts, settings = np.diff(problem.gemm.expert_offsets).tolist(), MANY[0]
    max_rows, between = max(counts), problem.gemm.shape[1] // 2
    rows, scale_rows = schedules.extents(problem.gemm, max_rows)
    out = reference.GuardedOutput(rows, between // 2, "u8")
    out_scale = reference.GuardedOutput(scale_rows, reference.round_up(between // 16, 4), "u8")
    outputs = [schedules.matrices(buffer.array, len(counts), max_rows) for buffer in (out, out_scale)]
    options = {"device": f"emulated:{variant.arch}", "packs": packs}
    context = f"{variant.label} {reschedule()}"
    loader.launch(
        "grouped_fp4_swiglu",
        **schedules.masked_layer_inputs(problem.gemm, rng, max_rows, problem.row_weight),
        up_alpha=problem.up_alpha,
        bias=problem.bias,
        global_scale=problem.global_scale(settings),
        **dict(zip(("out", "out_scale"), outputs, strict=True)),
        **dataclasses.asdict(settings),
        prefetch="weights",
        variant=variant.variant,
        **options,
    )
    problem.expected(settings).verify(problem.gemm, out, out_scale, context, max_rows)
    weights = reference.grouped_problem(rng, counts, 72, between)
    schedules.check_next_layer(weights, *outputs, max_rows, f"L2 of {context}", **options)


SMALL = {
    "all_rows_in_one_expert": ([0, 0, 9, 0], 48, 96),
    "smallest": ([1], 16, 32),
    "one_row_each": ([1] * 5, 144, 64),
    "no_scale_padding": ([3, 0, 2], 64, 256),
}


@every_variant
def test_fused_equals_grouped_fp4_then_the_activation(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """Every scale byte from 0 to 0x7E, so that sums are not exact, on shapes smaller than any tile."""
    for (counts, i, k), intermediate in zip(SMALL.values(), ("bf16", "bf16", "f32", "bf16"), strict=True):
        problem = Problem.random(rng, counts, i, k, wide=True)
        if i % 3 == 0:
            problem = problem.with_alpha_and_bias(rng, up_alpha=False)
        settings = Settings(intermediate=intermediate)
        products = run.gemm(variant, problem, intermediate)
        expected = swiglu_reference.swiglu_reference(
            problem.gemm, products, problem.row_weight, problem.encode_scale, settings
        )
        run(variant.arch, variant.variant, problem, settings, expected)


@every_variant
def test_up_has_an_alpha_of_its_own_and_both_a_bias(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """Each product with its alpha, then the bias, both rounded to fp32, before gate and up are rounded; every byte."""
    counts = [2, 0, variant.axes["block_m"] + 1]
    problem = Problem.random(rng, counts, variant.axes["block_n"] // 2 + 16, 96, unowned_rows=1)
    assert problem.exact.all()
    changed = problem.with_alpha_and_bias(rng)
    for settings, prefetch in zip(MANY, ("none", "weights", "weights"), strict=True):
        run(variant.arch, variant.variant, changed, settings, changed.expected(settings), prefetch)


def problem_with_nan(rng: np.random.Generator) -> tuple[Problem, Settings, swiglu_reference.Quantized]:
    """An expert for each place of a NaN: alpha, a scale of a gate's weights, the bias of an up, a global scale, the
    weight of a row, and none. Limits do not take it away."""
    problem = Problem.random(rng, [2, 2, 2, 2, 2, 2], 48, 96).with_alpha_and_bias(rng, up_alpha=False)
    assert problem.exact.all()
    problem.gemm.alpha[0] = problem.bias[2, 37] = problem.encode_scale[3] = problem.row_weight[9] = np.nan
    scales = problem.gemm.b_scale
    scales[1].reshape(-1)[reference.scale_offset(6, 1, scales.shape[-1])] = reference.NAN_SCALE
    problem.products[0:2], problem.products[2:4, 6], problem.products[4:6, 37] = np.nan, np.nan, np.nan
    settings = Settings("encode", "ieee", "bf16", "activation_type", 1.702, 1.0, 7.0)
    expected = problem.expected(settings)
    blocks = np.repeat([[1, 1, 1], [1, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0], [0, 0, 0]], 2, axis=0)
    blocks[9] = 1
    assert ((expected.groups == reference.NAN_SCALE) == blocks).all()
    return problem, settings, expected


@every_variant
def test_a_nan_stays_in_its_blocks(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """The scale of a block is 0x7F where a NaN has a part in it, and no other byte changes."""
    run(variant.arch, variant.variant, *problem_with_nan(rng))


@every_variant
def test_the_largest_alpha(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """No product with alpha overflows that fp32 holds; every byte."""
    problem = Problem.random(rng, [3], 16, 32)
    unit = np.abs(problem.products).max()
    factor = np.float32(2.0 ** (126 - np.ceil(np.log2(unit))))
    gemm = dataclasses.replace(problem.gemm, alpha=problem.gemm.alpha * factor)
    products = problem.products * factor
    products[:, 1::2] = problem.products[:, 1::2] / factor
    large = dataclasses.replace(problem, gemm=gemm, products=products, up_alpha=problem.gemm.alpha / factor)
    assert np.isfinite(products).all()
    settings = Settings(intermediate="f32", rounding="none")
    run(variant.arch, variant.variant, large, settings, large.expected(settings))


@every_variant
def test_gelu_in_the_place_of_silu(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """By tanh; with and without a limit, of every way in which gate and up are handed on; every byte."""
    problem = Problem.random(rng, [2, 0, 9], 80, 64)
    for settings in GELU:
        run(variant.arch, variant.variant, problem, settings, problem.expected(settings))


@every_arch
def test_gelu_takes_no_alpha(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """It is no sigmoid of gate whose factor could be another; nothing is left out in silence."""
    problem, settings = Problem.random(rng, [1], 16, 32), Settings(activation="gelu_tanh", swiglu_alpha=1.702)
    with pytest.raises(loader.ConstraintError, match="activation == 0 or swiglu_alpha == 1 does not hold"):
        run(variant.arch, None, problem, settings, problem.expected(settings))


CHOICES = [
    Settings(*words, swiglu_alpha=1.702, swiglu_beta=1.0, swiglu_limit=7.0)
    for words in itertools.product(
        ("encode", "decode"), ("approximate", "ieee"), ("f32", "bf16", "f16"), ("activation_type", "none")
    )
]


def problem_of_choices(rng: np.random.Generator) -> tuple[Problem, dict[Settings, swiglu_reference.Quantized]]:
    """A problem and its result for every choice. Encode scales that no sum makes up for give scales of 0 and 448; rows
    are so many that every rounding turns some code, or a kernel that confuses two of them would pass."""
    problem = Problem.random(rng, [5, 0, 3, 90], 48, 64)
    problem.encode_scale[[0, 2, 3]] = 2.0**-30, 2.0**30, 8
    expected = {settings: problem.expected(settings) for settings in CHOICES}
    for result in expected.values():
        assert {0, reference.MAX_SCALE} <= set(result.groups.flat)
    roundings = [("f32", "none"), ("bf16", "none"), ("bf16", "activation_type")]
    results = [expected[Settings("encode", "ieee", *words, 1.702, 1.0, 7.0)] for words in roundings]
    assert len({(result.out.tobytes(), result.groups.tobytes()) for result in results}) == len(roundings)
    return problem, expected


@every_arch
def test_every_choice(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """All combinations of words, and the parameters of the activation; scales of the result reach 0 and 448."""
    problem, expected = problem_of_choices(rng)
    for settings in CHOICES:
        run(variant.arch, variant.variant, problem, settings, expected[settings])


@every_arch
@pytest.mark.usefixtures("unchecked_values")
def test_scale_offsets_that_leave_the_buffer(
    variant: Variant, packs: list[str] | None, rng: np.random.Generator
) -> None:
    """Scales of that expert are not written, nor is anything else; the others have theirs."""
    problem, settings = Problem.random(rng, [3, 4], 64, 64), Settings()
    expected = problem.expected(settings)
    inputs = problem.gemm.inputs()
    inputs["scale_offsets"] = np.array([0, len(problem.gemm.a_scale)], np.int32)
    rows = problem.gemm.shape[0]
    out, out_scale = reference.GuardedOutput(rows, 32, "u8"), reference.GuardedOutput(len(inputs["a_scale"]), 4, "u8")
    loader.launch(
        "grouped_fp4_swiglu",
        **inputs,
        row_weight=problem.row_weight,
        global_scale=problem.global_scale(settings),
        out=out.array,
        out_scale=out_scale.array,
        **dataclasses.asdict(settings),
        variant=variant.variant,
        device=f"emulated:{variant.arch}",
        packs=packs,
    )
    scales = out_scale.array.reshape(-1)
    place = reference.scale_offset(np.arange(3)[:, None], np.arange(4), 4)
    assert (scales[place] == expected.groups[:3])[expected.known[:3]].all()
    assert (np.delete(scales, place.flat) == swiglu_reference.UNWRITTEN).all()
    assert out.intact(rows) and out_scale.intact(len(out_scale.array))


@every_arch
def test_no_rows_is_no_launch(variant: Variant, packs: list[str] | None, rng: np.random.Generator) -> None:
    """M = 0 computes nothing and is no error."""
    problem = Problem.random(rng, [0, 0], 64, 64)
    loader.launch(
        "grouped_fp4_swiglu",
        **problem.gemm.inputs(),
        row_weight=problem.row_weight,
        global_scale=problem.encode_scale,
        out=np.empty((0, 32), np.uint8),
        out_scale=np.empty((128, 4), np.uint8),
        global_scale_kind="encode",
        intermediate="bf16",
        device=f"emulated:{variant.arch}",
        packs=packs,
    )


@every_arch
def test_selection_without_a_variant(variant: Variant, run: Runner, rng: np.random.Generator) -> None:
    """Selection finds one."""
    problem, settings = Problem.random(rng, [0, 5, 2], 80, 160), Settings()
    run(variant.arch, None, problem, settings, problem.expected(settings))
