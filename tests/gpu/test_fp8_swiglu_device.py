"""grouped_fp8_swiglu on a GPU: every variant and form of rows right, and equal in every byte over 20 launches."""

from __future__ import annotations

import dataclasses

import gemm_problem
import hardware
import numpy as np
import packs
import pytest
from fp8_swiglu import GPT_OSS, Outputs, Problem, Settings

torch = pytest.importorskip("torch")

import loader  # noqa: E402

COUNTS = [0, 1, 300, 137, 0, 20, 301]
SETTINGS = [Settings(), GPT_OSS, Settings("f32", "none", activation="gelu_tanh", swiglu_limit=7.0)]


def cases() -> list[tuple[str, str]]:
    """(form of rows, variant) that run on device 0."""
    if not hardware.cuda_devices():
        return [("", "no device")]
    return [(form, artifact.variant) for form in gemm_problem.FORMS
            for artifact in packs.artifacts(f"grouped_fp8_swiglu{form}", hardware.runs_here)]  # fmt: skip


def launch(
    problem: Problem, form: str, settings: Settings, variant: str, times: int
) -> tuple[Outputs, np.ndarray]:
    """As many launches into poisoned outputs: all equal. Returns the first, and the places of the rows."""
    inputs, places = problem.inputs(form)
    on_device = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
    outputs = Outputs.of(inputs["a"].shape[:-1], problem.columns)
    results = [{name: torch.from_numpy(array).cuda() for name, array in outputs.arrays.items()} for _ in range(times)]
    for result in results:
        loader.launch("grouped_fp8_swiglu", **on_device, **result, **dataclasses.asdict(settings), variant=variant)
    for name, array in outputs.arrays.items():
        first = results[0][name].view(torch.uint8)
        assert all(torch.equal(result[name].view(torch.uint8), first) for result in results)
        array[:] = results[0][name].cpu().numpy()
    return outputs, places


@pytest.mark.parametrize(("form", "name"), cases())
def test_rows(form: str, name: str, rng: np.random.Generator) -> None:
    """Groups of no row, of one, of several tiles; tails of I and K; NaN in padding; a bias and row weights."""
    problem = Problem.random(rng, COUNTS, 400, 1120, extras=True)
    for settings in SETTINGS:
        outputs, places = launch(problem, form, settings, name, 20)
        quantized = outputs.rows(places, gemm_problem.FORMS[form][1], name)
        quantized.verify(*problem.expected(settings), settings.scale_rounding, f"{name} {settings}")


def test_tiles_give_the_same_bytes(rng: np.random.Generator) -> None:
    """The order of sums does not depend on a tile, nor does it matter which lanes share a maximum."""
    problem = Problem.random(rng, COUNTS, 400, 1120)
    variants = [variant for form, variant in cases() if form == ""]
    arrays = [launch(problem, "", Settings(), variant, 1)[0].arrays for variant in variants]
    for name in ("out", "out_scale"):
        assert len({found[name].tobytes() for found in arrays}) == 1
