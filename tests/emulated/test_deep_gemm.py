"""DeepGEMM's functions on CPU tensors: each against float64, and what they refuse."""

from __future__ import annotations

import functools

import gemm_problem
import numpy as np
import pytest
import reference
import torch

import loader
from integrations import deep_gemm, deep_gemm_scales

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors", "on_hopper"),
]
COUNTS, N, K = [5, 0, 130], 136, 400


def launch_on(arch: str, monkeypatch: pytest.MonkeyPatch, packs: list) -> None:
    """Launches of this test go to an emulated device, and tensors are taken for those of one."""
    monkeypatch.setattr(loader, "launch", functools.partial(loader.launch, packs=packs, device=f"emulated:{arch}"))
    monkeypatch.setattr(deep_gemm_scales, "is_blackwell", lambda x: arch != "90a")
    monkeypatch.setattr(deep_gemm_scales, "is_on_device", lambda x: True)


@pytest.fixture
def on_hopper(monkeypatch, packs):
    launch_on("90a", monkeypatch, packs)


def to_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array).view(torch.float8_e4m3fn) if array.dtype == np.uint8 else torch.from_numpy(array)


def operands(inputs: dict[str, np.ndarray], rows: int) -> tuple:
    """a and b as DeepGEMM takes them: FP8 with scales [.., rows, K / 128] row after row, as a quantiser leaves them."""
    a, b = to_torch(inputs["a"]), to_torch(inputs["b"])
    if "a_scale" not in inputs:
        return a, b
    scale = torch.from_numpy(inputs["a_scale"]).mT[..., :rows, :].contiguous()
    return (a, scale), (b, torch.from_numpy(inputs["b_scale"]))


def verify(problem: gemm_problem.GemmProblem, d: torch.Tensor, places: np.ndarray, padding: str | None) -> None:
    problem.on_hopper = not deep_gemm_scales.is_blackwell(d)
    value, bound = gemm_problem.expected(problem)
    d = d.reshape(-1, d.shape[-1])
    bound = gemm_problem.rounded_bound(value, bound, "bf16")
    reference.check_within(d.double().numpy()[places], value, bound)
    if padding == "zeros":
        assert not np.delete(d.float().numpy(), places, axis=0).any()


@pytest.mark.parametrize("fmt", ["fp8", "bf16"])
@pytest.mark.parametrize("with_c", [False, True])
def test_dense(fmt: str, with_c: bool, rng: np.random.Generator) -> None:
    """d = a . b^T, and with c = d added to what d holds."""
    problem = gemm_problem.gemm_problem(rng, fmt, [37], N, K)
    inputs, places = gemm_problem.dense(problem)
    d = torch.zeros(37, N, dtype=torch.bfloat16) if with_c else torch.full((37, N), torch.nan, dtype=torch.bfloat16)
    function = deep_gemm.fp8_gemm_nt if fmt == "fp8" else deep_gemm.bf16_gemm_nt
    function(*operands(inputs, 37), d, c=d if with_c else None)
    verify(problem, d, places, None)


@pytest.mark.parametrize("letters", ["nn", "tn", "tt"])
@pytest.mark.parametrize("fmt", ["fp8", "bf16"])
def test_views(fmt: str, letters: str, rng: np.random.Generator) -> None:
    """Operands by other letters are views of those of nt; FP8 that is not K-major then is refused."""
    problem = gemm_problem.gemm_problem(rng, fmt, [5], 24, 160)
    a, b = operands(gemm_problem.dense(problem)[0], 5)
    flip = (lambda x: tuple(each.mT for each in x)) if fmt == "fp8" else (lambda x: x.mT)
    plain, viewed = torch.zeros(2, 5, 24, dtype=torch.bfloat16)
    nt, function = (getattr(deep_gemm, f"{fmt}_gemm_{name}") for name in ("nt", letters))
    nt(a, b, plain)
    function(flip(a) if letters[0] == "t" else a, flip(b) if letters[1] == "n" else b, viewed)
    assert plain.any()
    assert torch.equal(plain, viewed)
    if letters == "nn" and fmt == "fp8":
        with pytest.raises(NotImplementedError, match="b: expected K-major and contiguous"):
            function(a, tuple(each.mT.contiguous() for each in b), viewed)


@pytest.mark.parametrize("letters", ["nn", "tn", "tt"])
def test_majors(letters: str, rng: np.random.Generator) -> None:
    """bf16 by other letters, in memory as they say, and the same as views for nt."""
    problem = gemm_problem.gemm_problem(rng, "bf16", [72], 24, 160)
    inputs, places = gemm_problem.dense(problem)
    a, b = operands(gemm_problem.in_majors(inputs, letters), 72)
    d, of_nt = torch.full((2, 72, 24), torch.nan, dtype=torch.bfloat16)
    getattr(deep_gemm, f"bf16_gemm_{letters}")(a, b, d)
    verify(problem, d, places, None)
    deep_gemm.bf16_gemm_nt(a.mT if letters[0] == "t" else a, b.mT if letters[1] == "n" else b, of_nt)
    assert torch.equal(of_nt, d)


def test_groups_of_either_major(rng: np.random.Generator) -> None:
    """b [G, K, N]: by labels as nn, masked as a view for nt."""
    problem = gemm_problem.gemm_problem(rng, "bf16", COUNTS, N, K)
    for place, nn in ((gemm_problem.by_labels, True), (lambda problem: gemm_problem.masked(problem, 131), False)):
        inputs, places = place(problem)
        *lead, _ = inputs["a"].shape
        a, b = operands(gemm_problem.in_majors(inputs, "nn"), lead[-1])
        d = torch.full((*lead, N), torch.nan, dtype=torch.bfloat16)
        if nn:
            deep_gemm.m_grouped_bf16_gemm_nn_contiguous(a, b, d, torch.from_numpy(inputs["row_groups"]))
        else:
            deep_gemm.m_grouped_bf16_gemm_nt_masked(a, b.mT, d, torch.from_numpy(inputs["mask"]), 50)
        verify(problem, d, places, "zeros" if nn else None)


@pytest.mark.parametrize("recipe", [{"recipe": (1, 1, 128)}, {"recipe_a": (1, 128), "recipe_b": (1, 128)}])
def test_scales_of_each_row(recipe: dict[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    """Scales of b [N, K / 128], row after row."""
    problem = gemm_problem.gemm_problem(rng, "fp8", [37], N, K, weight_rows=1)
    inputs, places = gemm_problem.dense(problem)
    d = torch.full((37, N), torch.nan, dtype=torch.bfloat16)
    deep_gemm.fp8_gemm_nt(*operands(inputs, 37), d, **recipe)
    verify(problem, d, places, None)


@pytest.mark.parametrize("fmt", ["fp8", "bf16"])
@pytest.mark.parametrize("with_c", [False, True])
def test_groups_along_k(fmt: str, with_c: bool, rng: np.random.Generator) -> None:
    """K of each group in host and in device memory; a group without K becomes zeros, or c."""
    ks, rows = [128, 0, 256], 72
    problems = [gemm_problem.gemm_problem(rng, fmt, [rows], N, k, weight_rows=1) for k in ks]
    inputs = gemm_problem.groups_of_k(problems)
    spare = {"a": -128 * (1 if fmt == "bf16" else rows), "b": -128 * (1 if fmt == "bf16" else N)}
    a, b = (to_torch(inputs[name][: spare[name]]) for name in "ab")
    if fmt == "fp8":
        a, b = ((each, torch.from_numpy(inputs[f"{name}_scale"][:-1, :size]).T)
                for name, each, size in (("a", a, rows), ("b", b, N)))  # fmt: skip
    d = torch.ones(3, rows, N) if with_c else torch.full((3, rows, N), torch.nan)
    function = (deep_gemm.k_grouped_fp8_gemm_nt_contiguous if fmt == "fp8"
                else deep_gemm.k_grouped_bf16_gemm_tn_contiguous)  # fmt: skip
    function(a, b, d, ks, torch.tensor(ks, dtype=torch.int32), c=d if with_c else None)
    value, bound = gemm_problem.expected_of_groups(problems)
    bound = bound + (abs(value) + 1) * 2.0**-22
    reference.check_within(d.double().numpy().reshape(value.shape), value + with_c, bound)
    function(a, b, d[:0], [], torch.empty(0, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"ks_cpu: expected 3 multiples of 128, got \[64, 64, 256\]"):
        function(a, b, d, [64, 64, 256], torch.tensor(ks, dtype=torch.int32))


def test_skip_head_mid(rng: np.random.Generator) -> None:
    """The middle of each head stays as it is."""
    left, mid, right = 16, 8, 32
    problem = gemm_problem.gemm_problem(rng, "fp8", [37], 3 * (left + right), K)
    inputs, places = gemm_problem.dense(problem)
    d = torch.full((37, 3, left + mid + right), 7, dtype=torch.bfloat16)
    deep_gemm.fp8_gemm_nt_skip_head_mid(*operands(inputs, 37), d.view(37, -1), (left, mid, right))
    assert (d[..., left : left + mid] == 7).all()
    verify(problem, torch.cat([d[..., :left], d[..., left + mid :]], -1).reshape(37, -1), places, None)


def test_cublaslt() -> None:
    """What torch gives; FP8 is refused."""
    a, b = torch.randn(2, 8, 16, dtype=torch.bfloat16)
    d, expected = torch.ones(8, 8, dtype=torch.bfloat16), a.float() @ b.float().T
    deep_gemm.cublaslt_gemm_nt(a, b, d, c=d)
    assert torch.allclose(d.float(), expected + 1, atol=0.1)
    deep_gemm.cublaslt_gemm_nt(a, b, d)
    assert torch.allclose(d.float(), expected, atol=0.1)
    with pytest.raises(NotImplementedError, match="expected bfloat16 operands"):
        deep_gemm.cublaslt_gemm_nt(a.to(torch.float8_e4m3fn), b, d)


@pytest.mark.parametrize("fmt", ["fp8", "bf16"])
@pytest.mark.parametrize("psum", [False, True])
def test_contiguous(fmt: str, psum: bool, rng: np.random.Generator) -> None:
    """By labels and by ends; padding becomes zeros."""
    problem = gemm_problem.gemm_problem(rng, fmt, COUNTS, N, K)
    inputs, places = (gemm_problem.by_ends if psum else gemm_problem.by_labels)(problem)
    rows = len(inputs["a"])
    d = torch.full((rows, N), torch.nan, dtype=torch.bfloat16)
    layout = torch.from_numpy(inputs["group_ends" if psum else "row_groups"])
    function = (deep_gemm.m_grouped_fp8_gemm_nt_contiguous if fmt == "fp8"
                else deep_gemm.m_grouped_bf16_gemm_nt_contiguous)  # fmt: skip
    function(*operands(inputs, rows), d, layout, use_psum_layout=psum)
    verify(problem, d, places, "zeros")


@pytest.mark.parametrize("fmt", ["fp8", "bf16"])
def test_masked(fmt: str, rng: np.random.Generator) -> None:
    """A number of rows that no tile divides."""
    problem = gemm_problem.gemm_problem(rng, fmt, COUNTS, N, K)
    inputs, places = gemm_problem.masked(problem, 131)
    d = torch.full((3, 131, N), torch.nan, dtype=torch.bfloat16)
    function = deep_gemm.m_grouped_fp8_gemm_nt_masked if fmt == "fp8" else deep_gemm.m_grouped_bf16_gemm_nt_masked
    function(*operands(inputs, 131), d, torch.from_numpy(inputs["mask"]), 50)
    verify(problem, d, places, None)


def test_no_depth() -> None:
    """Of no K, d is c, or zeros; of no row, nothing happens."""
    d = torch.ones(3, 8, dtype=torch.bfloat16)
    a, b = torch.empty(3, 0, dtype=torch.bfloat16), torch.empty(8, 0, dtype=torch.bfloat16)
    deep_gemm.bf16_gemm_nt(a, b, d, c=torch.full_like(d, 2))
    assert (d == 2).all()
    deep_gemm.bf16_gemm_nt(a, b, d)
    assert (d == 0).all()
    deep_gemm.bf16_gemm_nt(torch.empty(0, 64, dtype=torch.bfloat16), torch.empty(8, 64, dtype=torch.bfloat16), d[:0])


def test_refusals() -> None:
    """Other recipes, exponents for scales, operands that are no matrix, settings, functions."""
    a, b = torch.empty(8, 128, dtype=torch.float8_e4m3fn), torch.empty(16, 128, dtype=torch.float8_e4m3fn)
    d, one, two = torch.empty(8, 16, dtype=torch.bfloat16), torch.ones(8, 1), torch.ones(1, 1)
    for recipes in ({"recipe": (1, 128, 32)}, {"recipe_a": (1, 32), "recipe_b": (128, 128)}, {"recipe_b": (1, 32)}):
        with pytest.raises(NotImplementedError, match=r"recipe: with FP8 expected .*32\)\), got .*32"):
            deep_gemm.fp8_gemm_nt((a, one), (b, two), d, **recipes)
    with pytest.raises(NotImplementedError, match=r"b in FP4 expected .* of \(\(1, 128\), \(1, 32\)\) or .*, got"):
        deep_gemm.fp8_fp4_gemm_nt((a, one), (torch.zeros(16, 64, dtype=torch.int8), two), d, recipe=(1, 128, 32))
    for function in (deep_gemm.m_grouped_fp8_gemm_nt_contiguous, deep_gemm.fp8_gemm_nt_skip_head_mid):
        with pytest.raises(NotImplementedError, match=r"recipe: .* expected .* \(\(1, 128\), \(128, 128\)\), got"):
            function((a, one), (b, two), d, (8, 0, 8), recipe=(1, 1, 128))
    with pytest.raises(ValueError, match="expected recipe, or recipe_a and recipe_b, got both"):
        deep_gemm.fp8_gemm_nt((a, one), (b, two), d, recipe=(1, 128, 128), recipe_a=(1, 128))
    with pytest.raises(ValueError, match=r"scales of b: expected float32 \(1, 1\)"):
        deep_gemm.fp8_gemm_nt((a, one), (b, torch.ones(16, 1)), d)
    with pytest.raises(ValueError, match="expected those of a and b of one type, got torch.int32 and torch.float32"):
        deep_gemm.fp8_gemm_nt((a, one.int()), (b, two), d)
    with pytest.raises(ValueError, match="scales of a: expected float32, or exponents in int32, got torch.float64"):
        deep_gemm.fp8_gemm_nt((a, one.double()), (b, two.double()), d)
    with pytest.raises(loader.LoaderError, match="emulated sm_90a"):  # wgmma transposes 16-bit types alone
        deep_gemm.fp8_gemm_nn((a, one.int()), (b.mT.contiguous(), torch.ones(16, 1).int().mT), d)
    with pytest.raises(NotImplementedError, match=r"b: expected contiguous matrices .*, got strides \(256, 2\)"):
        deep_gemm.bf16_gemm_nt(d.new_empty(8, 128), d.new_empty(16, 256)[:, ::2], d)
    with pytest.raises(NotImplementedError, match="alignment of groups: expected 128, got 64"):
        deep_gemm.set_mk_alignment_for_contiguous_layout(64)
    with pytest.raises(NotImplementedError, match="deep_gemm.fp8_mega_moe is not covered; covered are bf16_gemm_nn, "):
        _ = deep_gemm.fp8_mega_moe


@pytest.fixture(params=["100a", "120a"])
def on_blackwell(request, monkeypatch, packs):
    launch_on(request.param, monkeypatch, packs)


def exponents_of(problem: gemm_problem.GemmProblem, a_scale: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    pack = deep_gemm.get_mn_major_tma_aligned_packed_ue8m0_tensor
    return pack(torch.from_numpy(a_scale)), pack(torch.from_numpy(problem.b_scale))


@pytest.mark.parametrize("cast", [False, True])
def test_dense_by_exponents(cast: bool, on_blackwell: None, rng: np.random.Generator) -> None:
    """Packed by the caller, or made of fp32 scales, of b for 128 x 128."""
    problem = gemm_problem.gemm_problem(rng, "fp8_ue8m0", [37], N, 640)
    blocks = np.exp2(rng.integers(-14, 15, (1, 2, 5))).astype(np.float32)
    problem.b_scale = np.repeat(blocks, 128, 1)[:, :N]
    inputs, places = gemm_problem.dense(problem)
    a, b, d = to_torch(inputs["a"]), to_torch(inputs["b"]), torch.full((37, N), torch.nan, dtype=torch.bfloat16)
    if cast:
        a_scale, b_scale = torch.from_numpy(problem.a_scale), torch.from_numpy(blocks[0])
    else:
        a_scale, b_scale = exponents_of(problem, problem.a_scale)
        b_scale = b_scale[0]
    deep_gemm.fp8_gemm_nt((a, a_scale), (b, b_scale), d)
    verify(problem, d, places, None)
    if cast:
        with pytest.raises(ValueError, match="expected positive powers of two"):
            deep_gemm.fp8_gemm_nt((a, a_scale * 1.5), (b, b_scale), d)


@pytest.mark.parametrize("letters", ["nn", "tn", "tt"])
def test_majors_by_exponents(letters: str, on_blackwell: None, rng: np.random.Generator) -> None:
    """FP8 by other letters, in memory as they say, and the same as views for nt."""
    problem = gemm_problem.gemm_problem(rng, "fp8_ue8m0", [144], 48, 640)
    inputs, places = gemm_problem.dense(problem)
    a, b = (to_torch(gemm_problem.in_majors(inputs, letters)[name]) for name in "ab")
    a_scale, b_scale = torch.from_numpy(problem.a_scale), torch.from_numpy(problem.b_scale[0])
    turned = [letters[0] == "t", letters[1] == "n"]
    d, of_nt = torch.full((2, 144, 48), torch.nan, dtype=torch.bfloat16)
    given = [(x, scale.mT if t else scale) for x, scale, t in zip((a, b), (a_scale, b_scale), turned, strict=True)]
    getattr(deep_gemm, f"fp8_gemm_{letters}")(*given, d, recipe=(1, 1, 128))
    verify(problem, d, places, None)
    views = [(x.mT if t else x, scale) for x, scale, t in zip((a, b), (a_scale, b_scale), turned, strict=True)]
    deep_gemm.fp8_gemm_nt(*views, of_nt, recipe=(1, 1, 128))
    assert torch.equal(of_nt, d)


def test_groups_of_either_major_by_exponents(on_blackwell: None, rng: np.random.Generator) -> None:
    """b [G, K, N] by labels; a that is not K-major is refused there."""
    problem = gemm_problem.gemm_problem(rng, "fp8_ue8m0", COUNTS, 144, 640)
    inputs, places = gemm_problem.by_labels(problem)
    a_scale = np.ones((len(inputs["a"]), problem.a_scale.shape[1]), np.float32)
    a_scale[places] = problem.a_scale
    a_scale, b_scale = exponents_of(problem, a_scale)
    a, b = (to_torch(gemm_problem.in_majors(inputs, "nn")[name]) for name in "ab")
    d, layout = torch.full((len(a), 144), torch.nan, dtype=torch.bfloat16), torch.from_numpy(inputs["row_groups"])
    deep_gemm.m_grouped_fp8_gemm_nn_contiguous((a, a_scale), (b, b_scale.mT), d, layout)
    verify(problem, d, places, "zeros")
    with pytest.raises(NotImplementedError, match="a: expected K-major and contiguous"):
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous((a.mT.contiguous().mT, a_scale), (b.mT, b_scale), d, layout)


@pytest.mark.parametrize("fmt", ["fp8_ue8m0", "bf16"])
@pytest.mark.parametrize("with_c", [False, True])
def test_groups_along_k_on_blackwell(
    fmt: str, with_c: bool, on_blackwell: None, rng: np.random.Generator
) -> None:
    """A group without K becomes zeros, or c; the last one has a second word of exponents."""
    ks, rows, n = [128, 0, 512], 80, 144
    problems = [gemm_problem.gemm_problem(rng, fmt, [rows], n, k) for k in ks]
    inputs = gemm_problem.groups_of_k(problems)
    a, b = (to_torch(inputs[name][:-128]) for name in "ab")
    function = deep_gemm.k_grouped_bf16_gemm_tn_contiguous
    if fmt != "bf16":
        a_scale, b_scale = (np.concatenate(scales, axis=1).T for scales in (
            [problem.a_scale for problem in problems], [problem.b_scale[0] for problem in problems]))  # fmt: skip
        a, b = (a, torch.from_numpy(a_scale)), (b, torch.from_numpy(b_scale))
        function = deep_gemm.k_grouped_fp8_gemm_tn_contiguous
    d = torch.ones(3, rows, n) if with_c else torch.full((3, rows, n), torch.nan)
    function(a, b, d, ks, torch.tensor(ks, dtype=torch.int32), c=d if with_c else None)
    value, bound = gemm_problem.expected_of_groups(problems)
    bound = bound + (abs(value) + 1) * 2.0**-22
    reference.check_within(d.double().numpy().reshape(value.shape), value + with_c, bound)
    function(a, b, d[:0], [], torch.empty(0, dtype=torch.int32))
    if fmt != "bf16":
        with pytest.raises(ValueError, match=r"scales of a: expected float32 \(5, 80\), got torch.int32 \(5, 80\)"):
            function((a[0], a[1].int()), b, d, ks, torch.tensor(ks, dtype=torch.int32))
        with pytest.raises(NotImplementedError, match=r"recipe: expected \(1, 1, 128\), scales of each row"):
            function(a, b, d, ks, torch.tensor(ks, dtype=torch.int32), recipe=(1, 1, 32))


def test_skip_head_mid_by_exponents(on_blackwell: None, rng: np.random.Generator) -> None:
    """The middle of each head stays as it is."""
    left, mid, right = 16, 8, 32
    problem = gemm_problem.gemm_problem(rng, "fp8_ue8m0", [37], 3 * (left + right), 640)
    inputs, places = gemm_problem.dense(problem)
    a_scale, b_scale = exponents_of(problem, problem.a_scale)
    d = torch.full((37, 3, left + mid + right), 7, dtype=torch.bfloat16)
    deep_gemm.fp8_gemm_nt_skip_head_mid((to_torch(inputs["a"]), a_scale), (to_torch(inputs["b"]), b_scale[0]),
                                        d.view(37, -1), (left, mid, right))  # fmt: skip
    assert (d[..., left : left + mid] == 7).all()
    verify(problem, torch.cat([d[..., :left], d[..., left + mid :]], -1).reshape(37, -1), places, None)


@pytest.mark.parametrize("form", ["_labels", "_ends", "_masked"])
def test_groups_by_exponents(form: str, on_blackwell: None, rng: np.random.Generator) -> None:
    """Contiguous by labels and ends, and masked."""
    problem = gemm_problem.gemm_problem(rng, "fp8_ue8m0", COUNTS, N, 640)
    place, padding = gemm_problem.FORMS[form]
    inputs, places = place(problem)
    *lead, _ = inputs["a"].shape
    a_scale = np.ones((int(np.prod(lead)), problem.a_scale.shape[1]), np.float32)
    a_scale[places] = problem.a_scale
    a_scale, b_scale = exponents_of(problem, a_scale.reshape(*lead, -1))
    a, b = (to_torch(inputs["a"]), a_scale), (to_torch(inputs["b"]), b_scale)
    d = torch.full((*lead, N), torch.nan, dtype=torch.bfloat16)
    if form == "_masked":
        deep_gemm.m_grouped_fp8_gemm_nt_masked(a, b, d, torch.from_numpy(inputs["mask"]), 50)
    else:
        layout = torch.from_numpy(inputs["group_ends" if form == "_ends" else "row_groups"])
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous(a, b, d, layout, use_psum_layout=form == "_ends")
    verify(problem, d, places, padding if padding == "zeros" else None)


ALWAYS_EXPONENTS = ("mxfp4_fp8_ue8m0", "mxfp8_rows", "mxfp8_rows_mxfp4")
OF_32 = {"90a": ("fp8_mxfp4", *ALWAYS_EXPONENTS), "100a": ("fp8_ue8m0_mxfp4", *ALWAYS_EXPONENTS),
         "120a": ("fp8_ue8m0_mxfp4", *ALWAYS_EXPONENTS)}  # fmt: skip


@pytest.fixture(params=[(arch, fmt) for arch, formats in OF_32.items() for fmt in formats], ids="-".join)
def format_of_32(request, monkeypatch, packs):
    """Each generation, and formats there of which an operand has scales for 32 of K."""
    arch, fmt = request.param
    launch_on(arch, monkeypatch, packs)
    return fmt


FP4_RECIPE = {"recipe_a": (1, 128), "recipe_b": (1, 32)}


def operands_of_32(problem: gemm_problem.GemmProblem, a: np.ndarray, places: np.ndarray, packed: bool) -> tuple:
    """a, b [E, N, ..] and the recipes: with fp32 scales, or exponents where kernels read those; the same block of both
    operands then as a recipe of three. Scales of padding are 1."""
    smallest = np.float32(2.0**-126)  # fp32 below has no exponent of its own
    *lead, _ = a.shape
    a_scale = np.ones((int(np.prod(lead)), problem.a_scale.shape[1]), np.float32)
    a_scale[places], problem.b_scale = np.maximum(problem.a_scale, smallest), np.maximum(problem.b_scale, smallest)
    problem.a_scale = a_scale[places]
    scales, found = (a_scale.reshape(*lead, -1), problem.b_scale), []
    for x, scale, operand in zip((a, problem.b), map(torch.from_numpy, scales), problem.operands, strict=True):
        if packed and operand.scales == "ue8m0":
            scale = deep_gemm.get_mn_major_tma_aligned_packed_ue8m0_tensor(scale)
        found.append((torch.from_numpy(x.view(np.int8)) if operand.elements == "e2m1" else to_torch(x), scale))
    recipe_a, recipe_b = ((1, operand.block) for operand in problem.operands)
    if packed and recipe_a == recipe_b:
        return *found, {"recipe": (1, *recipe_b)}
    return *found, {"recipe_a": recipe_a, "recipe_b": recipe_b}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("with_c", [False, True])
def test_dense_of_32(packed: bool, with_c: bool, format_of_32: str, rng: np.random.Generator) -> None:
    """FP8 by FP4 and MXFP8, whose scales are fp32 or exponents; with c = d added to what d holds."""
    problem = gemm_problem.gemm_problem(rng, format_of_32, [37], N, 640)
    inputs, places = gemm_problem.dense(problem)
    a, (b, b_scale), recipes = operands_of_32(problem, inputs["a"], places, packed)
    d = torch.full((37, N), 0 if with_c else torch.nan, dtype=torch.bfloat16)
    deep_gemm.fp8_fp4_gemm_nt(a, (b[0], b_scale[0]), d, c=d if with_c else None, **recipes)
    verify(problem, d, places, None)


@pytest.mark.parametrize("form", ["_labels", "_ends", "_masked"])
def test_groups_of_32(form: str, format_of_32: str, rng: np.random.Generator) -> None:
    """Contiguous by labels and ends, and masked."""
    problem = gemm_problem.gemm_problem(rng, format_of_32, COUNTS, N, 384)
    place, padding = gemm_problem.FORMS[form]
    inputs, places = place(problem)
    a, b, recipes = operands_of_32(problem, inputs["a"], places, packed=form == "_ends")
    d = torch.full((*inputs["a"].shape[:-1], N), torch.nan, dtype=torch.bfloat16)
    if form == "_masked":
        deep_gemm.m_grouped_fp8_fp4_gemm_nt_masked(a, b, d, torch.from_numpy(inputs["mask"]), 50, **recipes)
    else:
        by_ends = form == "_ends"
        layout = torch.from_numpy(inputs["group_ends" if by_ends else "row_groups"])
        deep_gemm.m_grouped_fp8_fp4_gemm_nt_contiguous(a, b, d, layout, **recipes, use_psum_layout=by_ends)
    verify(problem, d, places, padding if padding == "zeros" else None)


@pytest.mark.parametrize("fmt", ["fp8_ue8m0", "fp8_ue8m0_mxfp4"])
def test_exponents_on_hopper(fmt: str, rng: np.random.Generator) -> None:
    """Scales for 128 of K that come as exponents are read as these, though fp32 ones stay fp32."""
    problem = gemm_problem.gemm_problem(rng, fmt, [37], N, 640)
    inputs, places = gemm_problem.dense(problem)
    a, (b, b_scale), recipes = operands_of_32(problem, inputs["a"], places, packed=True)
    d = torch.full((37, N), torch.nan, dtype=torch.bfloat16)
    deep_gemm.fp8_fp4_gemm_nt(a, (b[0], b_scale[0]), d, **recipes)
    verify(problem, d, places, None)


def test_fp4_by_fp8_of_blocks(on_blackwell: None, rng: np.random.Generator) -> None:
    """FP8 weights with an fp32 scale for 128 x 128, which is that of each of its rows: the default recipe_b."""
    problem = gemm_problem.gemm_problem(rng, "mxfp4_fp8_ue8m0", [5], N, 640)
    blocks = np.exp2(rng.integers(-14, 15, (1, 2, 5))).astype(np.float32)
    problem.b_scale = np.repeat(blocks, 128, 1)[:, :N]
    inputs, places = gemm_problem.dense(problem)
    a, (b, _), _ = operands_of_32(problem, inputs["a"], places, packed=False)
    d = torch.full((5, N), torch.nan, dtype=torch.bfloat16)
    deep_gemm.fp8_fp4_gemm_nt(a, (b[0], torch.from_numpy(blocks[0])), d, recipe_a=(1, 32))
    verify(problem, d, places, None)


def test_refusals_of_fp4(on_blackwell: None) -> None:
    """Recipes that no kernel has, also none; other pairs of formats; scales and majors that do not fit."""
    a, a_scale = torch.zeros(8, 128, dtype=torch.float8_e4m3fn), torch.ones(8, 1)
    b, b_scale = torch.zeros(16, 64, dtype=torch.int8), torch.ones(16, 4)
    d = torch.empty(8, 16, dtype=torch.bfloat16)
    mask = torch.ones(1, dtype=torch.int32)

    def masked(a: tuple, b: tuple, d: torch.Tensor, **recipes: tuple[int, ...]) -> None:
        a, b = (tuple(each[None] for each in operand) for operand in (a, b))
        deep_gemm.m_grouped_fp8_fp4_gemm_nt_masked(a, b, d[None], mask, 1, **recipes)

    for recipes in ({}, {"recipe": (1, 128, 32)}, {"recipe": (1, 1, 128)}, {"recipe_b": (1, 128)},
                    {"recipe_a": (1, 128)}, {"recipe_b": (128, 32)},
                    {"recipe_a": (1, 32), "recipe_b": (1, 128)}):  # fmt: skip
        for function in (deep_gemm.fp8_fp4_gemm_nt, masked):
            with pytest.raises(NotImplementedError, match=r"b in FP4 expected .* of \(\(1, 128\), \(1, 32\)\) or"):
                function((a, a_scale), (b, b_scale), d, **recipes)
    with pytest.raises(NotImplementedError, match="FP4, int8, is covered beside FP8, got a and b in FP4"):
        deep_gemm.fp8_fp4_gemm_nt((b, b_scale), (b, b_scale), d, recipe_a=(1, 32), recipe_b=(1, 32))
    for recipes in ({}, FP4_RECIPE, {"recipe": (1, 1, 32)}, {"recipe_a": (1, 32), "recipe_b": (1, 32)}):
        with pytest.raises(NotImplementedError, match=r"with a in FP4 expected .* \(\(1, 32\), \(128, 128\)\) or"):
            deep_gemm.fp8_fp4_gemm_nt((b, b_scale), (a, a_scale), d.mT, **recipes)
    with pytest.raises(NotImplementedError, match="FP4 tokens are covered beside FP8 with exponents, got"):
        deep_gemm.fp8_fp4_gemm_nt((b, b_scale), (a, a_scale), d.mT, recipe_a=(1, 32), recipe_b=(1, 128),
                                  disable_ue8m0_cast=True)  # fmt: skip
    with pytest.raises(ValueError, match=r"scales of b: expected \[.., 16, 4\], got \(16, 1\)"):
        deep_gemm.fp8_fp4_gemm_nt((a, a_scale), (b, a_scale.repeat(2, 1)), d, **FP4_RECIPE)
    with pytest.raises(ValueError, match=r"scales of a: expected \[.., 8, 1\], got \(8, 4\)"):
        deep_gemm.fp8_fp4_gemm_nt((a, b_scale[:8]), (b, b_scale), d, **FP4_RECIPE)
    with pytest.raises(ValueError, match="expected positive powers of two"):
        deep_gemm.fp8_fp4_gemm_nt((a, a_scale), (b, b_scale * 1.5), d, **FP4_RECIPE)
    with pytest.raises(NotImplementedError, match="b: expected K-major and contiguous"):
        deep_gemm.fp8_fp4_gemm_nn((a, a_scale), (b.mT.contiguous(), b_scale.mT), d, **FP4_RECIPE)
    for recipe in ((1, 1, 32), (1, 1, 128)):
        with pytest.raises(NotImplementedError, match="with gaps in heads expected"):
            deep_gemm.fp8_gemm_nt_skip_head_mid((a, a_scale), (a, a_scale), d, (8, 0, 8), recipe=recipe)
    with pytest.raises(NotImplementedError, match="with b in FP4 expected"):
        deep_gemm.fp8_gemm_nt_skip_head_mid((a, a_scale), (b, b_scale), d, (8, 0, 8))
