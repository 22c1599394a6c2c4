"""Random data holds what its tests assume of it, whatever the seed: no kernel is launched here.

A test that asserts something of its data, and not of a kernel, makes that data in a function that is listed here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import test_grouped_fp4_swiglu as fused  # noqa: E402
import test_moe_fp4 as layer  # noqa: E402
import test_moe_layers_blocks as blocks  # noqa: E402
import test_nvfp4_quantize as quantizing  # noqa: E402
import test_reference as model  # noqa: E402

SEEDS = 30  # in a run, and others in the next


def _layer(bounded_problem: Callable[..., object], *case: str) -> Callable[[np.random.Generator], object]:
    return lambda rng: bounded_problem(torch.Generator().manual_seed(int(rng.integers(1 << 62))), *case)


DATA = {
    "awkward problems of the fused GEMM": lambda rng: fused.awkward_problem(rng, 8, 128),
    "awkward problems by mask": lambda rng: fused.awkward_problem(rng, 8, 128, 32, 352),
    "every choice of the fused GEMM": fused.problem_of_choices,
    "NaN in the fused GEMM": fused.problem_with_nan,
    "every scale byte": quantizing.check_reach,
    "exact sums": lambda rng: model.test_rounded_results_are_within_the_bound_and_wrong_ones_are_not(rng, wide=False),
    "one flipped nibble": model.test_one_flipped_nibble_is_seen,
    **{f"bound of a layer, {case}": _layer(layer.bounded_problem, case) for case in layer.CASES},
    **{f"bound of {name} on {arch}, {case}": _layer(blocks.bounded_problem, name, arch, case)
       for name, arch in blocks.PLACES if arch == "90a" for case in blocks.CASES},  # elsewhere no product is cut
}


@pytest.mark.parametrize("name", DATA)
def test_any_seed_will_do(name: str, rng: np.random.Generator) -> None:
    """Fresh seeds, of which each is named where it fails."""
    for seed in rng.integers(1 << 62, size=SEEDS).tolist():
        try:
            DATA[name](np.random.default_rng(seed))
        except AssertionError as error:
            raise AssertionError(f"{name}: seed {seed}") from error
