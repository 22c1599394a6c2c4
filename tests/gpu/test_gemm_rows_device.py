"""FP8 and bf16 GEMMs on a GPU: every variant and form of rows right, and equal in every byte over 20 launches."""

from __future__ import annotations

import dataclasses

import gemm_problem
import hardware
import numpy as np
import packs
import pytest
import reference

torch = pytest.importorskip("torch")

import loader  # noqa: E402

TORCH_TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
COUNTS = [0, 1, 300, 137, 0, 20, 301]


def cases(families: list[str]) -> list[tuple[str, str, str]]:
    """(family, variant, output type) that run on device 0. A pack of one arch has not the families of others."""
    if not hardware.cuda_devices():
        return [(families[0], "no device", "")]
    return [(family, name, dtype) for family in families if family in packs.registry().families
            for name, dtype in packs.output_types(family, hardware.runs_here).items()]  # fmt: skip


def to_device(inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value.view(np.int16)).cuda().view(torch.bfloat16) if value.dtype == np.uint16
            else torch.from_numpy(value).cuda() for name, value in inputs.items()}  # fmt: skip


def problem_of(rng: np.random.Generator, family: str, counts: list[int], n: int, k: int) -> gemm_problem.GemmProblem:
    """With K as the format takes it."""
    fmt = gemm_problem.named(family)[1]
    k = reference.round_up(k, gemm_problem.K_MULTIPLE.get(fmt, 1))
    problem = gemm_problem.gemm_problem(rng, fmt, counts, n, k)
    problem.on_hopper = hardware.is_hopper()
    return problem


def launch_repeated(
    family: str, variant: str, dtype: str, inputs: dict[str, np.ndarray], shape: tuple[int, ...], times: int = 20,
    added_to: torch.Tensor | None = None,
) -> reference.GuardedOutput:  # fmt: skip
    """As many launches into poisoned outputs, or each added to the same: all equal. Returns the first."""
    on_device = to_device(inputs)
    poison = torch.full(shape, -1, dtype=torch.int32 if dtype == "f32" else torch.int16, device="cuda")
    outs = [(poison.view(TORCH_TYPES[dtype]) if added_to is None else added_to).clone() for _ in range(times)]
    for out in outs:
        loader.launch(family, **on_device, out=out, variant=variant,
                      accumulate="overwrite" if added_to is None else "add")  # fmt: skip
    first = outs[0].view(torch.uint8).cpu()
    assert all(torch.equal(out.view(torch.uint8).cpu(), first) for out in outs)
    held = reference.GuardedOutput(int(np.prod(shape[:-1])), shape[-1], dtype)
    held.array[:] = first.numpy().view(reference.STORAGE[dtype]).reshape(held.array.shape)
    return held


def verify_repeated(
    family: str, variant: str, dtype: str, problem: gemm_problem.GemmProblem,
    form: tuple[dict[str, np.ndarray], np.ndarray], padding: str, times: int = 20,
) -> None:  # fmt: skip
    """So many launches, and the result within its bound."""
    inputs, places = form
    *lead, _ = inputs["a"].shape
    rows, n = int(np.prod(lead)), problem.b.shape[1]
    inputs = gemm_problem.in_majors(inputs, gemm_problem.named(family)[2])
    held = launch_repeated(family, variant, dtype, inputs, (*lead, n), times)
    gemm_problem.verify(problem, places, held, rows, padding, f"{family} {variant}")


OF_32 = ("fp8_ue8m0_mxfp4", "mxfp4_fp8_ue8m0", "mxfp8_rows", "mxfp8_rows_mxfp4")  # of K a scale
FORMATS = ("fp8", "fp8_mxfp4", "fp8_ue8m0", *OF_32, "bf16", "bf16_nn")
GROUPED = {f"grouped_{fmt}{form}": form for fmt in FORMATS for form in gemm_problem.FORMS}
CHANNEL = [f"{schedule}_fp8_channel{tokens}" for schedule in ("grouped", "gemm") for tokens in ("", "_tokens")]
DENSE = [f"gemm_{fmt}" for fmt in (*FORMATS, "bf16_tt", "bf16_tn")]


@pytest.mark.parametrize(("family", "name", "dtype"), cases(list(GROUPED)))
def test_groups(family: str, name: str, dtype: str, rng: np.random.Generator) -> None:
    """Groups of no row, of one, of several tiles; tails of N and K; NaN in padding."""
    problem = problem_of(rng, family, COUNTS, 392, 1120)
    place, padding = gemm_problem.FORMS[GROUPED[family]]
    verify_repeated(family, name, dtype, problem, place(problem), padding)


@pytest.mark.parametrize(("family", "name", "dtype"), cases(DENSE))
def test_dense(family: str, name: str, dtype: str, rng: np.random.Generator) -> None:
    """Tails of M, N and K; 100 launches, all equal."""
    problem = problem_of(rng, family, [536], 392, 1120)
    verify_repeated(family, name, dtype, problem, gemm_problem.dense(problem), "as before", times=100)


@pytest.mark.parametrize(("family", "name", "dtype"), cases(["gemm_fp8_row_scales"]))
def test_row_scales(family: str, name: str, dtype: str, rng: np.random.Generator) -> None:
    """Each row of b has its own scales."""
    problem = gemm_problem.gemm_problem(rng, "fp8", [531], 392, 1120, weight_rows=1)
    inputs, places = gemm_problem.dense(problem)
    inputs["b_row_scale"] = gemm_problem.row_scales(inputs.pop("b_scale"))
    verify_repeated(family, name, dtype, problem, (inputs, places), "as before")


@pytest.mark.parametrize(("family", "name", "dtype"), cases(CHANNEL))
def test_channel_scales(family: str, name: str, dtype: str, rng: np.random.Generator) -> None:
    """Each row of b has one scale for all of K, of each group its own; so may have the rows of a."""
    counts, form = ([0, 531, 1, 0, 9], gemm_problem.by_offsets) if "grouped" in family else ([531], gemm_problem.dense)
    problem = gemm_problem.gemm_problem(rng, "fp8", counts, 392, 1120, weight_rows=1)
    inputs, places = gemm_problem.with_channel_scales(problem, form, family.endswith("_tokens"))
    verify_repeated(family, name, dtype, problem, (inputs, places), "as before")


# M, N and K of each group: the last three are those of races and hangs that other implementations had
# (DeepGEMM#343, #365, #375; #415, #429).
GROUPS_OF_K = [
    (264, 392, [128, 0, 1152, 256, 0, 128]),
    (768, 2048, [128] * 8),
    (192, 3072, [128, 256]),
    (1408, 1408, [384, 256]),
]


@pytest.mark.parametrize(("m", "n", "ks"), GROUPS_OF_K)
@pytest.mark.parametrize(("family", "name", "dtype"), cases(["k_grouped_bf16_tn", "k_grouped_fp8_nt"]))
@pytest.mark.parametrize("adds", [False, True])
def test_k_groups(
    family: str, name: str, dtype: str, m: int, n: int, ks: list[int], adds: bool, rng: np.random.Generator
) -> None:
    """100 launches, all equal; 24 rows of each group within their bound."""
    problems = [gemm_problem.gemm_problem(rng, gemm_problem.named(family)[1], [m], n, k, weight_rows=1) for k in ks]
    shape = (len(ks), m, n)
    before = torch.randn(shape, dtype=TORCH_TYPES[dtype], device="cuda") * adds
    inputs = gemm_problem.groups_of_k(problems)
    held = launch_repeated(family, name, dtype, inputs, shape, 100, before if adds else None)
    stored = reference.as_float64(held.array, dtype).reshape(shape)
    for problem, found, old in zip(problems, stored, before.double().cpu().numpy(), strict=True):
        rows = rng.choice(m, 24, replace=False)
        some = dataclasses.replace(problem, a=problem.a[rows], a_scale=problem.a_scale[rows], counts=[24])
        value, bound = gemm_problem.expected(some)
        value, bound = value + old[rows], bound + (abs(value) + abs(old[rows])) * adds * 2.0**-22
        reference.check_within(found[rows], value, gemm_problem.rounded_bound(value, bound, dtype), f"{family} {name}")
