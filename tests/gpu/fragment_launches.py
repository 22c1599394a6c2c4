"""GEMMs of 16-bit tokens by FP4 weights in fragment order, as sanitize.py launches them."""

from __future__ import annotations

import dataclasses
import itertools

import fragment_problem
import gated_fragments
import hardware
import numpy as np
import packs
import reference
from driver_memory import Device

import loader

# Of every GEMM here and in sanitize.py. Empty experts, one row, more than one tile of rows; more K tiles than stages,
# and a tail of each dimension.
COUNTS, COLUMNS, DEPTH = [0, 1, 19, 130, 0, 9], 264, 1312


def launch_fragments(device: Device, rng: np.random.Generator) -> str:
    """Every variant of 16-bit tokens by FP4 weights, each element within its bound; K ends inside a stage."""
    count = 0
    for family, formats in fragment_problem.FORMATS.items():
        chosen = packs.artifacts(family, hardware.runs_here)
        count += len(chosen)
        for element in sorted({artifact.axes["element"] for artifact in chosen}):
            problem = fragment_problem.fragment_problem(
                rng, element, COUNTS, COLUMNS, DEPTH + formats.group, unowned_rows=2, formats=formats
            )
            expected = fragment_problem.expected(problem)
            inputs = {name: device.upload(array) for name, array in problem.inputs().items()}
            some = [artifact.variant for artifact in chosen if artifact.axes["element"] == element]
            for variant, prefetch in itertools.product(some, ("none", "weights")):
                out = reference.GuardedOutput(problem.shape[0], COLUMNS, element)
                buffer = device.upload(out.array)
                loader.launch(family, **inputs, out=buffer, prefetch=prefetch, variant=variant)
                device.download(buffer, out.array)
                fragment_problem.verify(problem, expected, out, f"{family} {variant} prefetch={prefetch}")
    return f"{count} variants of GEMMs of 16-bit tokens and FP4 weights"


def launch_gated_fragments(device: Device, rng: np.random.Generator) -> str:
    """Every variant of their SwiGLU forms, with all that may be left out, each element within its bound."""
    families, settings = gated_fragments.FORMATS, gated_fragments.GPT_OSS
    chosen = [artifact for family in families for artifact in packs.artifacts(family, hardware.runs_here)]
    for artifact in chosen:
        problem = gated_fragments.Problem.random(
            rng, artifact.axes["element"], COUNTS, 192, DEPTH + 16, extras=True, formats=families[artifact.family]
        )
        out, inputs = problem.output(), {name: device.upload(array) for name, array in problem.inputs().items()}
        buffer = device.upload(out.array)
        loader.launch(problem.call, **inputs, out=buffer, variant=artifact.variant, **dataclasses.asdict(settings))
        device.download(buffer, out.array)
        problem.verify(settings, out, f"{artifact.family} {artifact.variant}")
    return f"{len(chosen)} variants of their SwiGLU forms"
