"""Dense and masked schedules, MX operands, on a GPU: every variant right, and equal in every byte over 20 launches."""

from __future__ import annotations

import hardware
import numpy as np
import packs
import pytest
import reference
import schedules

torch = pytest.importorskip("torch")

import loader  # noqa: E402

TORCH_TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
MX = schedules.MX_OPERANDS
COUNTS, MAX_ROWS = [0, 1, 300, 137, 0, 20, 301], 301


def variants(family: str) -> pytest.MarkDecorator:
    """Those that run on device 0."""
    found = packs.output_types(family, hardware.runs_here) if hardware.cuda_devices() else {"no device": ""}
    return pytest.mark.parametrize(("name", "dtype"), found.items(), ids=list(found))


def repeated(family: str, name: str, dtype: str, shape: tuple[int, ...], inputs: dict[str, np.ndarray]) -> np.ndarray:
    """``out`` of 20 launches, poisoned before each, all of them equal."""
    on_device = {key: torch.from_numpy(value).cuda() for key, value in inputs.items()}
    outs = [torch.full(shape, -1, dtype=torch.int32 if dtype == "f32" else torch.int16,
                       device="cuda").view(TORCH_TYPES[dtype]) for _ in range(20)]  # fmt: skip
    for out in outs:
        loader.launch(family, **on_device, out=out, variant=name)
    first = outs[0].view(torch.uint8).cpu()
    assert all(torch.equal(out.view(torch.uint8).cpu(), first) for out in outs)
    return first.numpy().view(reference.STORAGE[dtype]).reshape(shape)


@variants("grouped_fp4_masked")
def test_masked(name: str, dtype: str, rng: np.random.Generator) -> None:
    """Masks of 0, of 1, of every row; tails of N and K."""
    problem = reference.grouped_problem(rng, COUNTS, 392, 1120)
    inputs = schedules.masked_inputs(problem, rng, MAX_ROWS)
    out = repeated("grouped_fp4", name, dtype, (len(COUNTS), MAX_ROWS, 392), inputs)
    schedules.verify_masked(problem, reference.grouped_reference(problem), out, dtype, name)


@variants("gemm_fp4")
def test_dense(name: str, dtype: str, rng: np.random.Generator) -> None:
    """Tails of M, N and K."""
    problem = reference.grouped_problem(rng, [531], 392, 1120)
    out = repeated("gemm_fp4", name, dtype, (531, 392), schedules.dense_inputs(problem))
    reference.check(reference.as_float64(out, dtype), reference.grouped_reference(problem), 1120, dtype, name)


def expected(problem: reference.GroupedProblem) -> reference.Expected:
    return reference.grouped_reference(problem, on_hopper=hardware.is_hopper())


def mx_variants(schedule: str, form: str = "") -> pytest.MarkDecorator:
    """Those of every pair of MX formats that run on device 0."""
    families = {operands: f"{schedule}_{operands}{form}" for operands in MX if hardware.cuda_devices()}
    found = [(operands, name, dtype) for operands, family in families.items()
             for name, dtype in packs.output_types(family, hardware.runs_here).items()]  # fmt: skip
    return pytest.mark.parametrize(("operands", "name", "dtype"), found, ids=["-".join(case[:2]) for case in found])


@mx_variants("grouped")
def test_grouped_mx(operands: str, name: str, dtype: str, rng: np.random.Generator) -> None:
    """Empty experts, one row, tails of rows, N and K, and scales of every power of two."""
    k = 1152 if operands == "mxfp8_mxfp4" else 1120
    problem = reference.grouped_problem(rng, COUNTS, 392, k, formats=MX[operands], wide=True, gaps=True)
    out = repeated(f"grouped_{operands}", name, dtype, (sum(COUNTS), 392), problem.inputs())
    reference.check(reference.as_float64(out, dtype), expected(problem), k, dtype, name)


@mx_variants("grouped", "_masked")
def test_masked_mx(operands: str, name: str, dtype: str, rng: np.random.Generator) -> None:
    """Masks of 0, of 1, of every row; tails of N and K, and scales of every power of two."""
    k = 1152 if operands == "mxfp8_mxfp4" else 1120
    problem = reference.grouped_problem(rng, COUNTS, 392, k, formats=MX[operands], wide=True)
    inputs = schedules.masked_inputs(problem, rng, MAX_ROWS)
    out = repeated(f"grouped_{operands}", name, dtype, (len(COUNTS), MAX_ROWS, 392), inputs)
    schedules.verify_masked(problem, expected(problem), out, dtype, name)


@mx_variants("gemm")
def test_dense_mx(operands: str, name: str, dtype: str, rng: np.random.Generator) -> None:
    """Tails of M, N and K."""
    k = 1152 if operands == "mxfp8_mxfp4" else 1120
    problem = reference.grouped_problem(rng, [531], 392, k, formats=MX[operands], wide=True)
    out = repeated(f"gemm_{operands}", name, dtype, (531, 392), schedules.dense_inputs(problem))
    reference.check(reference.as_float64(out, dtype), expected(problem), k, dtype, name)
