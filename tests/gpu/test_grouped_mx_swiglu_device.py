"""The fused GEMMs of MX operands on a GPU: each variant, rows packed and by mask, right, and 20 launches equal in every
byte."""

from __future__ import annotations

import dataclasses

import hardware
import numpy as np
import packs
import pytest
from mx_swiglu import FAMILIES, MANY, MASKED, Outputs, Problem

torch = pytest.importorskip("torch")

import loader  # noqa: E402

COUNTS = [0, 1, 300, 137, 0, 20, 301]


def cases() -> list[tuple[str, str]]:
    """(family, variant) that run on device 0."""
    if not hardware.cuda_devices():
        return [("", "no device")]
    return [(family, artifact.variant) for family in (*FAMILIES, *MASKED)
            for artifact in packs.artifacts(family, hardware.runs_here)]  # fmt: skip


@pytest.mark.parametrize(("family", "name"), cases())
def test_rows(family: str, name: str, rng: np.random.Generator) -> None:
    """Groups of no row, of one, of several tiles; tails of I and K; a bias, an alpha of its own for up, weights."""
    problem = Problem.random(rng, family, COUNTS, 416, 1120, extras=True, on_hopper=hardware.is_hopper())
    max_rows = max(COUNTS) if family in MASKED else None
    on_device = {key: torch.from_numpy(array).cuda() for key, array in problem.inputs(rng, max_rows).items()}
    for settings in MANY:
        outputs = Outputs(problem, {**FAMILIES, **MASKED}[family][1], max_rows)
        results = [{key: torch.from_numpy(array).cuda() for key, array in outputs.arrays.items()} for _ in range(20)]
        for result in results:
            loader.launch(family.removesuffix("_masked"), **on_device, **result, **dataclasses.asdict(settings),
                          variant=name)  # fmt: skip
        for key, array in outputs.arrays.items():
            assert all(torch.equal(result[key], results[0][key]) for result in results)
            array[...] = results[0][key].cpu().numpy()
        context = f"{family} {name} {settings}"
        outputs.rows(context).verify(*problem.expected(settings), settings.scale_rounding, context)
