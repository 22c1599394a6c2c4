"""FP8 GEMMs with E4M3 results on a GPU: each variant and form of rows right, and 20 launches equal in every byte."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import gemm_problem
import hardware
import numpy as np
import packs
import pytest
from fp8_swiglu import FORMATS, GPT_OSS, Outputs, Problem, Settings

torch = pytest.importorskip("torch")

import loader  # noqa: E402

COUNTS = [0, 1, 300, 137, 0, 20, 301]
SETTINGS = [Settings(), GPT_OSS, Settings("f32", "none", activation="gelu_tanh", swiglu_limit=7.0)]


def cases(families: Iterable[str] = FORMATS) -> list[tuple[str, str, str]]:
    """(family, form of rows, variant) that run on device 0."""
    if not hardware.cuda_devices():
        return [("", "", "no device")]
    return [(family, form, artifact.variant) for family in families for form in gemm_problem.FORMS
            for artifact in packs.artifacts(f"{family}{form}", hardware.runs_here)]  # fmt: skip


def launch_repeated(
    family: str, inputs: dict[str, np.ndarray], columns: int, times: int, fmt: str = "fp8", **scalars: object
) -> Outputs:
    """As many launches into poisoned outputs: all equal. Returns the first."""
    on_device = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
    outputs = Outputs.of(inputs["a"].shape[:-1], columns, fmt)
    results = [{name: torch.from_numpy(array).cuda() for name, array in outputs.arrays.items()} for _ in range(times)]
    for result in results:
        loader.launch(family, **on_device, **result, **scalars)
    for name, array in outputs.arrays.items():
        first = results[0][name].view(torch.uint8)
        assert all(torch.equal(result[name].view(torch.uint8), first) for result in results)
        array[:] = results[0][name].cpu().numpy()
    return outputs


def launch(
    family: str, problem: Problem, form: str, settings: Settings, variant: str, times: int
) -> tuple[Outputs, np.ndarray]:
    """The outputs of equal launches, and the places of the rows."""
    (inputs, places), fmt = problem.inputs(form), FORMATS[family]
    scalars = {**settings.scalars(fmt), "variant": variant}
    return launch_repeated(family, inputs, problem.columns, times, fmt, **scalars), places


@pytest.mark.parametrize(("family", "form", "name"), cases())
def test_rows(family: str, form: str, name: str, rng: np.random.Generator) -> None:
    """Groups of no row, of one, of several tiles; tails of I and K; NaN in padding; a bias and row weights."""
    fmt = FORMATS[family]
    problem = Problem.random(rng, COUNTS, 400, 1120, extras=True, fmt=fmt)
    for settings in SETTINGS:
        outputs, places = launch(family, problem, form, settings, name, 20)
        quantized = outputs.rows(places, gemm_problem.FORMS[form][1], name)
        quantized.verify(*problem.expected(settings), settings.scales(fmt), f"{name} {settings}")


QUANTIZED = {"gemm_fp8_quantized": gemm_problem.dense, "grouped_fp8_quantized": gemm_problem.by_offsets,
             "grouped_fp8_quantized_masked": gemm_problem.FORMS["_masked"][0]}  # fmt: skip


@pytest.mark.parametrize("family", QUANTIZED)
def test_quantized_results(family: str, rng: np.random.Generator) -> None:
    """Every variant, by both rules for scales, 20 launches each; tails of N and K."""
    problem = gemm_problem.gemm_problem(rng, "fp8", [531] if family.startswith("gemm") else COUNTS, 400, 1120)
    value, bound = gemm_problem.expected(problem)
    inputs, places = QUANTIZED[family](problem)
    for artifact, rule in itertools.product(packs.artifacts(family, hardware.runs_here), ("none", "power_of_two")):
        outputs = launch_repeated(family.removesuffix("_masked"), inputs, 400, 20,
                                  scale_rounding=rule, variant=artifact.variant)  # fmt: skip
        quantized = outputs.rows(places, "as before", artifact.variant)
        quantized.verify(value, gemm_problem.rounded_bound(value, bound, "f32"), rule, artifact.variant)


@pytest.mark.parametrize("family", FORMATS)
def test_tiles_give_the_same_bytes(family: str, rng: np.random.Generator) -> None:
    """The order of sums does not depend on a tile, nor does it matter which lanes share a maximum."""
    problem = Problem.random(rng, COUNTS, 400, 1120, fmt=FORMATS[family])
    variants = [variant for _, form, variant in cases([family]) if form == ""]
    if not variants:
        pytest.skip("no kernel of the family runs here")
    arrays = [launch(family, problem, "", Settings(), variant, 1)[0].arrays for variant in variants]
    for name in ("out", "out_scale"):
        assert len({found[name].tobytes() for found in arrays}) == 1
