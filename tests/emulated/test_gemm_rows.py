"""Every variant of the FP8 and bf16 GEMMs, executed from its PTX on the emulated device, with rows in every form."""

from __future__ import annotations

from collections.abc import Callable

import gemm_problem
import numpy as np
import pytest
import reference
import shipped_matrix
from raw_buffer import RawBuffer

import loader
from generator.matrix import Variant

ARCHS = ("90a", "100a", "120a")
MATRIX = [variant for variant in shipped_matrix.VARIANTS if variant.arch in ARCHS]
BY_NAME = ("_channel_tokens",)  # that other arguments do not tell apart
OF_32 = ("fp8_ue8m0_mxfp4", "mxfp4_fp8_ue8m0", "mxfp8_rows", "mxfp8_rows_mxfp4")  # of K a scale, on Blackwell

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


def variants(
    form: str, dtypes: tuple[str, ...] = ("bf16", "f16", "f32"),
    formats: tuple[str, ...] = ("fp8", "fp8_mxfp4", "fp8_ue8m0", "fp8_ue8m0_nn", *OF_32, "bf16", "bf16_nn"),
    each: bool = True,
) -> pytest.MarkDecorator:  # fmt: skip
    """Of a form of rows, in every format and the majors of groups; in each output type, or in one of them."""
    families = [form.replace("*", f"_{fmt}") for fmt in formats]
    found = [v for v in MATRIX if v.family in families and v.axes["out"] in dtypes]
    found = found if each else shipped_matrix.one_output(found)
    return pytest.mark.parametrize("variant", found, ids=lambda v: f"{v.arch}-{v.family}-{v.variant}")


def problem_of(
    variant: Variant, rng: np.random.Generator, counts: list[int], n: int, k: int, weight_rows: int = 128
) -> gemm_problem.GemmProblem:
    """K reaches into a second word of packed scales, and has whole blocks of MXFP4; N is a pitch of TMA."""
    _, fmt, letters, _ = gemm_problem.named(variant.family)
    k = k // gemm_problem.K_MULTIPLE.get(fmt, 1) * gemm_problem.K_MULTIPLE.get(fmt, 1)
    if fmt != "bf16" and letters[1] == "n":
        n = reference.round_up(n, 16)
    problem = gemm_problem.gemm_problem(rng, fmt, counts, n, k + 512 if "fp8_ue8m0" in fmt else k, weight_rows)
    problem.on_hopper = variant.arch == "90a"
    return problem


class Run:
    """Launches one variant, and verifies what came out."""

    def __init__(self, packs: list[str] | None, reschedule: Callable[[], str]) -> None:
        self.packs, self.reschedule = packs, reschedule

    def __call__(
        self,
        variant: Variant,
        problem: gemm_problem.GemmProblem,
        form: tuple[dict[str, np.ndarray], np.ndarray],
        padding: str = "as before",
        **scalars: str,
    ) -> None:
        inputs, places = form
        *lead, _ = inputs["a"].shape
        rows, n = int(np.prod(lead)), problem.b.shape[1]
        out = reference.GuardedOutput(rows, n, variant.axes["out"])
        context = f"{variant.label} {self.reschedule()}"
        prefix, fmt, letters, suffix = gemm_problem.named(variant.family)
        loader.launch(
            f"{prefix}_{fmt}" + f"_{letters}" * (letters != "nt") + suffix * (suffix in BY_NAME),
            **gemm_problem.buffers(gemm_problem.in_majors(inputs, letters)),
            out=RawBuffer.of(out.array.reshape(*lead, n)),
            variant=variant.variant,
            device=f"emulated:{variant.arch}",
            packs=self.packs,
            **scalars,
        )
        gemm_problem.verify(problem, places, out, rows, padding, context)


@pytest.fixture
def run(packs: list[str] | None, reschedule: Callable[[], str]) -> Run:
    return Run(packs, reschedule)


@variants("grouped*")
def test_offsets(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Groups of no row, of one, of a tile and a few; tails of N and K; NaN behind the last row."""
    problem = problem_of(variant, rng, [0, variant.axes["block_m"] + 3, 1, 0, 9], variant.axes["block_n"] + 8, 400)
    run(variant, problem, gemm_problem.by_offsets(problem), prefetch="weights")


@variants("grouped*_ends", ("bf16",))
def test_ends(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Padding of every group becomes zeros; a group of no row has none."""
    problem = problem_of(variant, rng, [7, 0, 130, 128], variant.axes["block_n"] + 8, 272)
    run(variant, problem, gemm_problem.by_ends(problem), "zeros")


@variants("grouped*_labels", ("bf16",))
def test_labels(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Padding, also whole tiles of it at the end, becomes zeros."""
    problem = problem_of(variant, rng, [1, 0, 100, 128], variant.axes["block_n"] + 8, 272)
    run(variant, problem, gemm_problem.by_labels(problem), "zeros")


@variants("grouped*_masked", ("bf16",))
def test_masked(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Masks of 0, 1, all rows; a number of rows that no tile divides. Rows from the mask on are left as they are."""
    rows = variant.axes["block_m"] + 5
    problem = problem_of(variant, rng, [0, rows, 1, rows - 6], variant.axes["block_n"] + 8, 272)
    run(variant, problem, gemm_problem.masked(problem, rows))


@variants("gemm*", formats=("fp8", "fp8_mxfp4", *OF_32, "bf16", *(f"{fmt}_{letters}" for fmt in ("bf16", "fp8_ue8m0")
                                             for letters in ("nn", "tt", "tn"))))  # fmt: skip
def test_dense(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """A tile and a few rows, 16 where they are a pitch of TMA; of a split K, shares of several blocks and of none."""
    rows = variant.axes["block_m"] + (16 if gemm_problem.named(variant.family)[2][0] == "t" else 3)
    depth = 400 if variant.axes.get("splits", 1) == 1 else 1040
    problem = problem_of(variant, rng, [rows], variant.axes["block_n"] + 8, depth)
    run(variant, problem, gemm_problem.dense(problem))


@variants("grouped*", ("bf16",), formats=("fp8_mxfp4",))
def test_scale_that_is_no_number(
    variant: Variant, packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator
) -> None:
    """0xFF makes its column NaN for the rows of its group, and no other; a scale of 0 makes its block nothing."""
    problem = gemm_problem.gemm_problem(rng, "fp8_mxfp4", [3, variant.axes["block_m"] + 1], 136, 288)
    problem.b_scale[1, 7, 2], problem.b_scale[0, :, 4] = np.nan, 2.0**-127
    inputs, places = gemm_problem.by_offsets(problem, spare=0)
    out = np.zeros((len(inputs["a"]), 136), np.uint16)
    loader.launch("grouped_fp8_mxfp4", **inputs, out=RawBuffer.of(out), variant=variant.variant,
                  device=f"emulated:{variant.arch}", packs=packs)  # fmt: skip
    stored, is_nan = reference.as_float64(out, "bf16"), np.zeros(out.shape, bool)
    is_nan[3:, 7] = True
    assert (np.isnan(stored) == is_nan).all(), f"{variant.label} {reschedule()}"
    problem.b_scale[1, 7, 2], problem.b_scale[0, :, 4] = 1, 0
    value, bound = gemm_problem.expected(problem)
    bound = gemm_problem.rounded_bound(value, bound, "bf16")
    reference.check_within(np.where(is_nan, value, stored)[places], value, bound, variant.label)


@variants("gemm*_row_scales", formats=("fp8",))
def test_row_scales(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Each row of the weights has its own scales, NaN behind the last row's."""
    n = variant.axes["block_n"] + 8
    problem = gemm_problem.gemm_problem(rng, "fp8", [variant.axes["block_m"] + 3], n, 400, weight_rows=1)
    inputs, places = gemm_problem.dense(problem)
    row_scale = gemm_problem.row_scales(inputs.pop("b_scale"))
    run(variant, problem, ({**inputs, "b_row_scale": row_scale}, places))


@pytest.mark.parametrize("variant", shipped_matrix.one_output([v for v in MATRIX if "_fp8_channel" in v.family]),
                         ids=lambda v: f"{v.arch}-{v.family}-{v.variant}")  # fmt: skip
def test_channel_scales(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Each row of the weights has one scale for all of K, of each group its own, and so may have the tokens."""
    grouped, rows, n = variant.family.startswith("grouped"), variant.axes["block_m"] + 3, variant.axes["block_n"] + 8
    counts, form = ([0, rows, 1, 0, 9], gemm_problem.by_offsets) if grouped else ([rows], gemm_problem.dense)
    problem = gemm_problem.gemm_problem(rng, "fp8", counts, n, 272, weight_rows=1)
    tokens = variant.family.endswith("_tokens")
    run(variant, problem, gemm_problem.with_channel_scales(problem, form, tokens))


@variants("bmm*", formats=("fp8", "fp8_ue8m0", "bf16"))
def test_batched(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """Without a mask all rows of each matrix are there."""
    rows = variant.axes["block_m"] + 3
    problem = problem_of(variant, rng, [rows, rows], variant.axes["block_n"] + 8, 144)
    inputs, places = gemm_problem.masked(problem, rows)
    del inputs["mask"]
    run(variant, problem, (inputs, places))


@variants("gemm*_heads", formats=("fp8", "fp8_ue8m0", "bf16"))
@pytest.mark.parametrize(("width", "left", "gap"), [(48, 16, 8), (64, 0, 16), (32, 32, 24)])
def test_heads(
    variant: Variant, width: int, left: int, gap: int, packs: list[str] | None, rng: np.random.Generator
) -> None:
    """Heads with a gap within, in front and behind: what lies in the gaps stays. A bias has no gaps."""
    heads = 3 if width == 48 else 2
    problem = problem_of(variant, rng, [21], heads * width, 144)
    inputs, _ = gemm_problem.dense(problem)
    bias = rng.standard_normal(heads * width).astype(np.float32)
    out = reference.GuardedOutput(21, heads * (width + gap), variant.axes["out"])
    loader.launch(variant.family, **gemm_problem.buffers(inputs), out=RawBuffer.of(out.array), bias=bias,
                  head_width=width, head_left=left, head_gap=gap, variant=variant.variant,
                  device=f"emulated:{variant.arch}", packs=packs)  # fmt: skip
    columns = gemm_problem.columns_of_heads(heads, width, left, gap)
    value, bound = gemm_problem.expected(problem)
    value = value + bias
    reference.check_within(reference.as_float64(out.array[:, columns], out.out_type), value,
                           gemm_problem.rounded_bound(value, bound, out.out_type), variant.label)  # fmt: skip
    assert (np.ascontiguousarray(np.delete(out.array, columns, axis=1)).view(np.uint8) == out.POISON).all()
    assert out.intact(21)


@variants("k_grouped*", formats=("fp8_nt", "fp8_ue8m0_tn", "bf16_tn"))
@pytest.mark.parametrize("accumulate", ["overwrite", "add"])
def test_k_groups(
    variant: Variant, accumulate: str, packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator
) -> None:
    """Groups of no k, of one stage, of several, the last one with a second word of packed scales; NaN behind it. One
    without k becomes zeros, or stays. Rows end within the 16 of a warp, where they may."""
    fmt = gemm_problem.named(variant.family)[1]
    m = variant.axes["block_m"] + (16 if fmt == "fp8_ue8m0" else 24)
    n, ks = variant.axes["block_n"] + 16, [128, 0, 256, 256]
    problems = [gemm_problem.gemm_problem(rng, fmt, [m], n, k, weight_rows=1) for k in ks]
    before = rng.standard_normal((len(ks) * m, n)).astype(np.float32)
    out = reference.GuardedOutput(len(ks) * m, n, variant.axes["out"])
    held = (before.view(np.uint32) >> 16).astype(np.uint16) if out.out_type == "bf16" else before
    if accumulate == "add":
        out.array[:] = held
    context = f"{variant.label} {reschedule()}"
    loader.launch(variant.family, **gemm_problem.buffers(gemm_problem.groups_of_k(problems)),
                  out=RawBuffer.of(out.array.reshape(len(ks), m, n)), accumulate=accumulate,
                  variant=variant.variant, device=f"emulated:{variant.arch}", packs=packs)  # fmt: skip
    value, bound = gemm_problem.expected_of_groups(problems)
    if accumulate == "add":
        before = reference.as_float64(held, out.out_type)
        value, bound = value + before, bound + (abs(value) + abs(before)) * 2.0**-22
    reference.check_within(reference.as_float64(out.array, out.out_type), value,
                           gemm_problem.rounded_bound(value, bound, out.out_type), context)  # fmt: skip
    assert out.intact(len(ks) * m)
    if accumulate == "overwrite":
        assert (out.array[m : 2 * m] == 0).all()


@variants("gemm*", formats=("fp8", "fp8_ue8m0", *OF_32, "bf16"), each=False)
def test_smallest(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """One row, 8 columns, as few of K as there may be; a column tile of which 8 are there; K of one step more than a
    block."""
    fmt = gemm_problem.named(variant.family)[1]
    for rows, n, k in ((1, 8, 16), (3, 136, 32), (2, 24, 144)):
        depth = reference.round_up(k, gemm_problem.K_MULTIPLE.get(fmt, 1))
        problem = gemm_problem.gemm_problem(rng, fmt, [rows], n, depth)
        problem.on_hopper = variant.arch == "90a"
        run(variant, problem, gemm_problem.dense(problem))


@variants("gemm*", formats=tuple(f"{fmt}_{letters}" for fmt in ("bf16", "fp8_ue8m0") for letters in ("nn", "tt", "tn")),
          each=False)  # fmt: skip
def test_smallest_of_other_majors(variant: Variant, run: Run, rng: np.random.Generator) -> None:
    """As few rows, columns and elements along K as are a pitch of TMA, or one where they are not; a panel and a few."""
    _, fmt, letters, _ = gemm_problem.named(variant.family)
    pitch = 8 if fmt == "bf16" else 16
    m, n = (pitch if letters[0] == "t" else 1), (pitch if letters[1] == "n" else 8)
    k = 1 if letters == "tn" else pitch
    for rows, columns, depth in ((m, n, k), (72 // m * m, 128 + n, 33 * k), (m, 64 + n, 129 * k)):
        problem = gemm_problem.gemm_problem(rng, fmt, [rows], columns, depth)
        run(variant, problem, gemm_problem.dense(problem))


@variants("grouped*", each=False)
def test_accumulate(variant: Variant, packs: list[str] | None, rng: np.random.Generator) -> None:
    """add: alpha times the product, a bias and what out held, rounded once."""
    out_type = variant.axes["out"]
    problem = problem_of(variant, rng, [21, 5], 80, 160)
    inputs, _ = gemm_problem.by_offsets(problem, spare=0)
    inputs = gemm_problem.in_majors(inputs, gemm_problem.named(variant.family)[2])
    before = rng.standard_normal((26, 80)).astype(np.float16 if out_type == "f16" else np.float32)
    held = (before.view(np.uint32) >> 16).astype(np.uint16) if out_type == "bf16" else before
    out = held.copy()
    alpha, bias = np.float32([0.5, -2]), rng.standard_normal((2, 80)).astype(np.float32)
    loader.launch(variant.family, **gemm_problem.buffers(inputs), out=RawBuffer.of(out), alpha=alpha, bias=bias,
                  accumulate="add", variant=variant.variant, device=f"emulated:{variant.arch}",
                  packs=packs)  # fmt: skip
    value, bound = gemm_problem.expected(problem)
    factor = alpha[problem.groups, None].astype(np.float64)
    before = reference.as_float64(held, out_type)
    value = factor * value + bias[problem.groups] + before
    bound = abs(factor) * bound + (abs(before) + abs(value) + 8) * 2.0**-22
    reference.check_within(
        reference.as_float64(out, out_type), value, gemm_problem.rounded_bound(value, bound, out_type)
    )


@pytest.mark.parametrize("tile", ["m16n128s1", "m64n32s1", "m64n128s4", "m128n192s1", "m128n256s1"])
def test_scales_that_are_no_ordinary_numbers(tile: str, packs: list[str] | None, rng: np.random.Generator) -> None:
    """A NaN of a token stays in its row, one of 128 weights in their columns; 0 takes its block out of the sum."""
    problem = gemm_problem.gemm_problem(rng, "fp8", [9], 264, 272)
    problem.a_scale[3, 1], problem.b_scale[0, 1, 0] = np.nan, np.nan
    problem.a_scale[5, 0] = problem.b_scale[0, 2, 2] = 0
    inputs, _ = gemm_problem.dense(problem)
    out = np.empty((9, 264), np.float32)
    loader.launch("gemm_fp8", **inputs, out=out, variant=f"{tile}_f32", device="emulated:90a", packs=packs)
    value, bound = gemm_problem.expected(problem)
    is_nan = np.zeros((9, 264), bool)
    is_nan[3], is_nan[:, 128:256] = True, True
    assert (np.isnan(out) == is_nan).all()
    reference.check_within(out[~is_nan][None].astype(np.float64), value[~is_nan][None], bound[~is_nan][None])


@variants("gemm*", ("f32",), formats=("fp8_ue8m0", *OF_32))
def test_a_nan_ue8m0_scale_reaches_its_row_alone(
    variant: Variant, packs: list[str] | None, rng: np.random.Generator
) -> None:
    """A row of out for a token's, a column for a weight's; also from the last of four in a word."""
    problem = problem_of(variant, rng, [9], 264, 128)
    problem.a_scale[3, 3], problem.b_scale[0, 200, 1] = np.nan, np.nan
    inputs, _ = gemm_problem.dense(problem)
    out = np.empty((9, 264), np.float32)
    loader.launch(variant.family, **inputs, out=out, variant=variant.variant, device=f"emulated:{variant.arch}",
                  packs=packs)  # fmt: skip
    problem.a_scale[3, 3], problem.b_scale[0, 200, 1] = 1, 1
    value, bound = gemm_problem.expected(problem)
    is_nan = np.zeros((9, 264), bool)
    is_nan[3], is_nan[:, 200] = True, True
    assert (np.isnan(out) == is_nan).all()
    reference.check_within(out[~is_nan][None].astype(np.float64), value[~is_nan][None], bound[~is_nan][None])
