"""What went wrong elsewhere with the calls that ``integrations.deep_gemm`` answers, by numbers of DeepGEMM's issues."""

from __future__ import annotations

from collections.abc import Callable

import gemm_problem
import numpy as np
import pytest
import reference
import torch
from test_deep_gemm import launch_on, operands, to_torch, verify

import loader
from emulator.tools.profile import profile
from integrations import deep_gemm

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]
N, K = 136, 272


@pytest.fixture(autouse=True)
def on_hopper(monkeypatch, packs):
    launch_on("90a", monkeypatch, packs)


def test_masked_rows_end_with_their_group(rng: np.random.Generator) -> None:
    """#268: with 8 rows a group, fewer than any tile, no store reaches the next group."""
    problem = gemm_problem.gemm_problem(rng, "fp8", [3, 8, 0, 5], N, K)
    inputs, places = gemm_problem.masked(problem, 8)
    d = torch.full((4, 8, N), torch.nan, dtype=torch.bfloat16)
    deep_gemm.m_grouped_fp8_gemm_nt_masked(*operands(inputs, 8), d, torch.from_numpy(inputs["mask"]), 192)
    verify(problem, d, places, None)
    assert np.isnan(np.delete(d.float().numpy().reshape(32, N), places, axis=0)).all()


def test_skewed_masks(rng: np.random.Generator) -> None:
    """sglang#7869: one group has most rows and many have none; a tenth of the rows that hung."""
    counts = [400, 142, 0, 0, 0, 0, 0, 57, 50, 0, 3, 1, 123, 0, 0, 22]
    problem = gemm_problem.gemm_problem(rng, "bf16", counts, 24, 64)
    inputs, places = gemm_problem.masked(problem, 400)
    d = torch.zeros(16, 400, 24, dtype=torch.bfloat16)
    deep_gemm.m_grouped_bf16_gemm_nt_masked(*operands(inputs, 400), d, torch.from_numpy(inputs["mask"]), 100)
    verify(problem, d, places, "zeros")


@pytest.mark.parametrize("fmt", ["fp8", "bf16"])
def test_trailing_padding(fmt: str, rng: np.random.Generator) -> None:
    """#38, #103, #113: -1 between groups and for many tiles behind the last."""
    problem = gemm_problem.gemm_problem(rng, fmt, [5, 0, 130], N, K)
    inputs, places = gemm_problem.by_labels(problem, spare=10 * 128)
    rows = len(inputs["a"])
    d = torch.full((rows, N), torch.nan, dtype=torch.bfloat16)
    function = getattr(deep_gemm, f"m_grouped_{fmt}_gemm_nt_contiguous")
    function(*operands(inputs, rows), d, torch.from_numpy(inputs["row_groups"]))
    verify(problem, d, places, "zeros")


def test_one_row_that_is_not_padded(rng: np.random.Generator) -> None:
    """#178: one group of one row, and no padding behind."""
    problem = gemm_problem.gemm_problem(rng, "fp8", [1], N, K)
    inputs, places = gemm_problem.by_offsets(problem, spare=0)
    d = torch.full((1, N), torch.nan, dtype=torch.bfloat16)
    deep_gemm.m_grouped_fp8_gemm_nt_contiguous(*operands(inputs, 1), d, torch.zeros(1, dtype=torch.int32))
    verify(problem, d, places, None)


@pytest.mark.parametrize("psum", [False, True])
@pytest.mark.parametrize("value", [np.nan, 3e38])
def test_padding_stays_in_its_rows(value: float, psum: bool, rng: np.random.Generator) -> None:
    """flashinfer#3650, sglang#33106: NaN and huge values in padding change no byte of another row."""
    problem = gemm_problem.gemm_problem(rng, "fp8", [5, 130], N, K)
    inputs, places = (gemm_problem.by_ends if psum else gemm_problem.by_labels)(problem)
    rows = len(inputs["a"])
    layout = torch.from_numpy(inputs["group_ends" if psum else "row_groups"])
    results = []
    for scale, element in ((value, 0x7F if np.isnan(value) else 0x7E), (0, 0)):
        (a, a_scale), b = operands(inputs, rows)
        padding = torch.from_numpy(np.delete(np.arange(rows), places))
        a.view(torch.uint8)[padding], a_scale[padding] = element, float(scale)
        d = torch.full((rows, N), torch.nan, dtype=torch.bfloat16)
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous((a, a_scale), b, d, layout, use_psum_layout=psum)
        results.append(d)
    assert torch.equal(*results)
    verify(problem, results[0], places, "zeros")


@pytest.mark.parametrize("n", [8, 16, 768])
def test_narrow_and_odd_widths(n: int, rng: np.random.Generator) -> None:
    """#147, #149: N = 16 could not be launched; #237, #300: N = 768 was an illegal instruction."""
    problem = gemm_problem.gemm_problem(rng, "fp8", [5], n, K)
    inputs, places = gemm_problem.dense(problem)
    d = torch.full((5, n), torch.nan, dtype=torch.bfloat16)
    deep_gemm.fp8_gemm_nt(*operands(inputs, 5), d)
    verify(problem, d, places, None)


@pytest.mark.parametrize("arch", ["90a", "100a", "120a"])
def test_odd_tiles_along_k(arch: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, packs: list) -> None:
    """#415, #429: an odd number of tiles in each group along K; #242, #270: boxes are those of the arch's own tiles."""
    launch_on(arch, monkeypatch, packs)
    ks, m, n = [128, 256], 264, 136
    problems = [gemm_problem.gemm_problem(rng, "bf16", [m], n, k) for k in ks]
    inputs = gemm_problem.groups_of_k(problems)
    a, b = (to_torch(inputs[name][:-128]) for name in "ab")
    d = torch.full((2, m, n), torch.nan)
    deep_gemm.k_grouped_bf16_gemm_tn_contiguous(a, b, d, ks, torch.tensor(ks, dtype=torch.int32))
    value, bound = gemm_problem.expected_of_groups(problems)
    reference.check_within(d.double().numpy().reshape(value.shape), value, bound + abs(value) * 2.0**-22)


@pytest.mark.parametrize("ks", [[128] * 8, [128]])
@pytest.mark.parametrize("fmt", ["bf16", "fp8_ue8m0"])
def test_repeats_along_k(fmt: str, ks: list[int], rng: np.random.Generator, reschedule: Callable[[], str]) -> None:
    """#430, #431: on sm_120, groups of 128 of K, eight or one, give the same bytes under every schedule."""
    m, n = 144, 144  # four tiles a group
    problems = [gemm_problem.gemm_problem(rng, fmt, [m], n, k, weight_rows=1) for k in ks]
    inputs = gemm_problem.buffers(gemm_problem.groups_of_k(problems))
    value, bound = gemm_problem.expected_of_groups(problems)
    results = []
    for _ in range(3):
        context, out = reschedule(), np.full((len(ks), m, n), np.nan, np.float32)
        loader.launch(f"k_grouped_{fmt}_tn", **inputs, out=out, device="emulated:120a")
        results.append(out)
        assert out.tobytes() == results[0].tobytes(), context
    reference.check_within(results[0].reshape(value.shape).astype(np.float64), value, bound + abs(value) * 2.0**-22)


def test_a_ring_many_times_round(rng: np.random.Generator) -> None:
    """#110, #121: barriers were overrun where K was deep, 147456 or 2048 in a group; here 36 times the stages."""
    problems = [gemm_problem.gemm_problem(rng, "fp8", [24], 24, k, weight_rows=1) for k in (18432, 2048)]
    inputs = gemm_problem.buffers(gemm_problem.groups_of_k(problems))
    value, bound = gemm_problem.expected_of_groups(problems)
    out = np.full((2, 24, 24), np.nan, np.float32)
    loader.launch("k_grouped_fp8_nt", **inputs, out=out)
    reference.check_within(out.reshape(value.shape).astype(np.float64), value, bound + abs(value) * 2.0**-22)


@pytest.mark.parametrize("arch", ["90a", "100a", "120a"])
def test_padding_costs_nothing(arch: str, packs: list, rng: np.random.Generator) -> None:
    """#324: tiles of padding were multiplied with group 0. Here they load nothing and multiply nothing."""
    problem = gemm_problem.gemm_problem(rng, "bf16", [5, 130], 24, 64)
    tile = loader.explain("grouped_bf16_labels", E=2, M=256, N=24, K=64, out="f32", device=arch, packs=packs).variant
    counts = []
    for spare in (0, 10 * 128):
        inputs, _ = gemm_problem.by_labels(problem, spare=spare)
        out = np.empty((len(inputs["a"]), 24), np.float32)
        with profile() as launches:
            loader.launch("grouped_bf16", **gemm_problem.buffers(inputs), out=out, device=f"emulated:{arch}",
                          variant=tile)  # fmt: skip
        counts.append({key: launches[0].counts()[key] for key in ("tensor", "bulk_bytes")})
    assert counts[0]["tensor"] and counts[0] == counts[1]


@pytest.fixture
def on_sm120(monkeypatch: pytest.MonkeyPatch, packs: list) -> None:
    launch_on("120a", monkeypatch, packs)


def test_fp8_stays_fp8(on_sm120: None, rng: np.random.Generator) -> None:
    """#417, #447, vllm#53680: on sm_120 a call of FP8 alone was run by a kernel for FP4."""
    problem = gemm_problem.gemm_problem(rng, "fp8_ue8m0", [5], N, K)
    inputs, places = gemm_problem.dense(problem)
    d = torch.full((5, N), torch.nan, dtype=torch.bfloat16)
    a_scale, b_scale = torch.from_numpy(problem.a_scale), torch.from_numpy(problem.b_scale[0])
    deep_gemm.fp8_gemm_nt((to_torch(inputs["a"]), a_scale), (to_torch(inputs["b"]), b_scale), d, recipe=(1, 1, 128))
    verify(problem, d, places, None)


@pytest.mark.parametrize(("recipe", "is_sfa"), [((1, 128), None), ((128, 128), None), ((1, 128, 128), True),
                                                ((1, 128, 128), False), ((1, 1, 128), False)])  # fmt: skip
def test_every_recipe_has_a_layout(
    recipe: tuple[int, ...], is_sfa: bool | None, on_sm120: None, rng: np.random.Generator
) -> None:
    """#403, vllm#50796: on sm_120 scales had no layout. Here they are the exponents of each row, four in a word."""
    rows, mn, k = recipe[0] if is_sfa in (None, True) else recipe[1], 200, 640
    codes = rng.integers(1, 255, (-(-mn // rows), k // 128), dtype=np.uint8)
    scales = torch.from_numpy(np.exp2(codes.astype(np.float64) - 127).astype(np.float32))
    words = deep_gemm.transform_sf_into_required_layout(scales, mn, k, recipe, is_sfa=is_sfa)
    assert words.dtype == torch.int32 and tuple(words.shape) == (mn, 2) and words.stride(0) == 1
    exponents = np.ascontiguousarray(words.numpy()).view(np.uint8)[:, : k // 128]
    assert np.array_equal(exponents, np.repeat(codes, rows, 0)[:mn])


def test_floats_are_not_read_as_exponents(on_sm120: None, rng: np.random.Generator) -> None:
    """vllm#53680, vllm#57218: with disable_ue8m0_cast on sm_120 fp32 scales were read as exponents. Here no kernel
    takes them, and d stays as it is."""
    problem = gemm_problem.gemm_problem(rng, "fp8", [5], N, K)
    d = torch.full((5, N), 7, dtype=torch.bfloat16)
    with pytest.raises(loader.LoaderError, match="gemm_fp8.*120a"):
        deep_gemm.fp8_gemm_nt(*operands(gemm_problem.dense(problem)[0], 5), d, disable_ue8m0_cast=True)
    assert (d == 7).all()


@pytest.mark.parametrize("arch", ["90a", "100a", "120a"])
def test_a_width_that_no_tile_divides(arch: str, rng: np.random.Generator) -> None:
    """#191: 160 and 192 columns are no multiple of a tile's; the last tile ends with the matrix."""
    for n in (160, 192):
        problem = gemm_problem.gemm_problem(rng, "bf16", [5], n, K)
        inputs, places = gemm_problem.dense(problem)
        out = reference.GuardedOutput(5, n, "f32")
        inputs = gemm_problem.buffers(inputs)
        loader.launch("gemm_bf16", **inputs, out=out.array, device=f"emulated:{arch}")
        gemm_problem.verify(problem, places, out, 5, "as before", f"{arch} N={n}")


def test_each_exponent_in_its_byte() -> None:
    """#309, #310: four neighbours of K are a word, the first in its lowest byte, whatever the others are."""
    codes = np.arange(1, 241, dtype=np.uint8).reshape(5, 48)
    scales = torch.from_numpy(np.exp2(codes.astype(np.float32) - 127))
    packed = deep_gemm.get_mn_major_tma_aligned_packed_ue8m0_tensor(scales)
    assert np.array_equal(np.ascontiguousarray(packed.numpy()).view(np.uint8).reshape(codes.shape), codes)


@pytest.mark.parametrize("k", [640, 1040])
def test_shares_of_k_begin_at_a_scale(k: int, rng: np.random.Generator) -> None:
    """DeepGEMM's branch for sm_120: K split in four, where a fourth is no multiple of a scale's 128."""
    problem = gemm_problem.gemm_problem(rng, "fp8", [5], N, k)
    inputs, places = gemm_problem.dense(problem)
    out = reference.GuardedOutput(5, N, "f32")
    loader.launch("gemm_fp8", **inputs, out=out.array, variant="m64n128s4_f32")
    gemm_problem.verify(problem, places, out, 5, "as before", f"K={k}")


@pytest.mark.parametrize("arch", ["90a", "100a", "120a"])
def test_a_batch_is_added_once(arch: str, rng: np.random.Generator) -> None:
    """DeepGEMM's branch for sm_120: c of a batch was added twice."""
    problem = gemm_problem.gemm_problem(rng, "bf16", [19, 19], N, K)
    inputs, _ = gemm_problem.masked(problem, 19)
    inputs = gemm_problem.buffers({name: inputs[name] for name in "ab"})
    out, before = np.full((2, 19, N), np.nan, np.float32), rng.standard_normal((2, 19, N), dtype=np.float32)
    added = before.copy()
    loader.launch("bmm_bf16", **inputs, out=out, device=f"emulated:{arch}")
    loader.launch("bmm_bf16", **inputs, out=added, accumulate="add", device=f"emulated:{arch}")
    assert np.array_equal(added, out + before)


def test_names() -> None:
    """sgl-project/DeepGEMM#39: all letters are there; #224: an old name raises with what there is."""
    for letters in ("nt", "nn", "tn", "tt"):
        assert callable(getattr(deep_gemm, f"fp8_gemm_{letters}"))
        assert callable(getattr(deep_gemm, f"bf16_gemm_{letters}"))
    for name in ("m_grouped_bf16_gemm_nn_contiguous", "m_grouped_fp8_gemm_nn_contiguous"):
        assert callable(getattr(deep_gemm, name))
    with pytest.raises(NotImplementedError, match="gemm_fp8_fp8_bf16_nt is not covered; covered are .*fp8_gemm_nt"):
        _ = deep_gemm.gemm_fp8_fp8_bf16_nt


@pytest.mark.parametrize("shape", [(3,), ()])
def test_scales_that_are_no_matrix(shape: tuple[int, ...]) -> None:
    """#143: scales without rows and columns are refused by what they should be."""
    for function in (
        deep_gemm.get_mn_major_tma_aligned_tensor, deep_gemm.get_mn_major_tma_aligned_packed_ue8m0_tensor
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"scales: expected \[.., MN, K\], got shape \("):
            function(torch.ones(shape))
