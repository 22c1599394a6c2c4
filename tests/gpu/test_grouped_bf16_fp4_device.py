"""16-bit tokens by FP4 weights on a GPU: every variant right, and equal in every byte over 20 launches."""

from __future__ import annotations

import dataclasses

import fragment_problem
import hardware
import numpy as np
import packs
import pytest
import reference
from fragment_problem import FORMATS

torch = pytest.importorskip("torch")

import loader  # noqa: E402
from integrations.weight_fragments import to_fragments  # noqa: E402

TORCH_TYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
COUNTS = [0, 1, 300, 137, 0, 20, 301]


def every_variant() -> pytest.MarkDecorator:
    """Those that run on device 0."""
    families = FORMATS if hardware.cuda_devices() else ()
    found = [(family, *each) for family in families for each in packs.output_types(family, hardware.runs_here).items()]
    return pytest.mark.parametrize(("family", "name", "element"), found or [("", "no device", "")])


def to_device(array: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(array.view(np.int16) if array.dtype == np.uint16 else array).cuda()
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def repeated(
    family: str, name: str, problem: fragment_problem.FragmentProblem, prefetch: str
) -> reference.GuardedOutput:
    """``out`` of 20 launches into poisoned outputs, all of them equal."""
    m, n, _, _ = problem.shape
    inputs = {key: to_device(array) for key, array in problem.inputs().items()}
    poison = torch.full((m, n), -1, dtype=torch.int16, device="cuda").view(TORCH_TYPES[problem.element])
    outs = [poison.clone() for _ in range(20)]
    for out in outs:
        loader.launch(family, **inputs, out=out, variant=name, prefetch=prefetch)
    stored = [out.view(torch.int16).cpu() for out in outs]
    assert all(torch.equal(other, stored[0]) for other in stored)
    held = reference.GuardedOutput(m, n, problem.element)
    held.array[:] = stored[0].numpy().view(reference.STORAGE[problem.element])
    return held


@every_variant()
@pytest.mark.parametrize("wide", [False, True])
def test_groups(family: str, name: str, element: str, wide: bool, rng: np.random.Generator) -> None:
    """Empty experts, one row, several tiles of rows; tails of N and K, and of K inside a word of scales; NaN in padding
    and in rows of no expert; every scale."""
    formats = FORMATS[family]
    k = 1136 if formats.group == 16 else 1120
    problem = fragment_problem.fragment_problem(
        rng, element, COUNTS, 392, k, wide=wide, unowned_rows=2, formats=formats
    )
    out = repeated(family, name, problem, "weights" if wide else "none")
    fragment_problem.verify(problem, fragment_problem.expected(problem), out, name)


@every_variant()
def test_every_weight_times_every_scale_is_exact(
    family: str, name: str, element: str, rng: np.random.Generator
) -> None:
    """Tokens are the rows of the identity, so a result is one weight times its scale, to the last bit."""
    n, k = 264, 384
    problem = fragment_problem.fragment_problem(rng, element, [k], n, k, formats=FORMATS[family])
    scales = 0x7F if family == "grouped_bf16_nvfp4" else fragment_problem.LARGEST_POWER + 1
    groups = problem.weights.b_groups
    groups = rng.permuted(np.arange(groups.size) % scales).astype(np.uint8).reshape(groups.shape)
    weights = fragment_problem.with_scales(problem.weights, groups)
    weights.b[:] = rng.permuted(np.arange(n * k // 2) % 256).reshape(weights.b.shape)
    weights.alpha[:] = 1
    problem.tokens[:] = np.eye(k) * {"bf16": 0x3F80, "f16": 1}[element]
    problem = dataclasses.replace(problem, weights=weights)
    exact = fragment_problem.dequantized(weights, 0).T
    assert (repeated(family, name, problem, "none").values(k) == exact).all()


def test_fragments_made_on_the_device(rng: np.random.Generator) -> None:
    """Are those that numpy makes."""
    packed = rng.integers(0, 256, (3, 72, 200), dtype=np.uint8)
    assert (to_fragments(torch.from_numpy(packed).cuda()).cpu().numpy() == to_fragments(packed)).all()
