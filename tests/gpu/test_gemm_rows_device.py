"""FP8 and bf16 GEMMs on a GPU: every variant and form of rows right, and equal in every byte over 20 launches."""

from __future__ import annotations

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


def cases(prefix: str, forms: tuple[str, ...]) -> list[tuple[str, str, str, str]]:
    """(format, form, variant, output type) that run on device 0."""
    if not hardware.cuda_devices():
        return [("fp8", forms[0], "no device", "")]
    return [(fmt, form, name, dtype) for fmt in ("fp8", "bf16") for form in forms
            for name, dtype in packs.output_types(f"{prefix}_{fmt}{form}", hardware.runs_here).items()]  # fmt: skip


def to_device(inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value.view(np.int16)).cuda().view(torch.bfloat16) if value.dtype == np.uint16
            else torch.from_numpy(value).cuda() for name, value in inputs.items()}  # fmt: skip


def verify_repeated(
    family: str, variant: str, dtype: str, problem: gemm_problem.GemmProblem,
    form: tuple[dict[str, np.ndarray], np.ndarray], padding: str,
) -> None:  # fmt: skip
    """20 launches into poisoned outputs: all equal, and the first within its bound."""
    inputs, places = form
    *lead, _ = inputs["a"].shape
    rows, n = int(np.prod(lead)), problem.b.shape[1]
    on_device = to_device(inputs)
    outs = [torch.full((*lead, n), -1, dtype=torch.int32 if dtype == "f32" else torch.int16,
                       device="cuda").view(TORCH_TYPES[dtype]) for _ in range(20)]  # fmt: skip
    for out in outs:
        loader.launch(family, **on_device, out=out, variant=variant)
    first = outs[0].view(torch.uint8).cpu()
    assert all(torch.equal(out.view(torch.uint8).cpu(), first) for out in outs)
    held = reference.GuardedOutput(rows, n, dtype)
    held.array[:] = first.numpy().view(reference.STORAGE[dtype]).reshape(rows, n)
    gemm_problem.verify(problem, places, held, rows, padding, f"{family} {variant}")


@pytest.mark.parametrize(("fmt", "form", "name", "dtype"), cases("grouped", tuple(gemm_problem.FORMS)))
def test_groups(fmt: str, form: str, name: str, dtype: str, rng: np.random.Generator) -> None:
    """Groups of no row, of one, of several tiles; tails of N and K; NaN in padding."""
    problem = gemm_problem.gemm_problem(rng, fmt, COUNTS, 392, 1120)
    place, padding = gemm_problem.FORMS[form]
    verify_repeated(f"grouped_{fmt}", name, dtype, problem, place(problem), padding)


@pytest.mark.parametrize(("fmt", "form", "name", "dtype"), cases("gemm", ("",)))
def test_dense(fmt: str, form: str, name: str, dtype: str, rng: np.random.Generator) -> None:
    """Tails of M, N and K."""
    problem = gemm_problem.gemm_problem(rng, fmt, [531], 392, 1120)
    verify_repeated(f"gemm_{fmt}{form}", name, dtype, problem, gemm_problem.dense(problem), "as before")
