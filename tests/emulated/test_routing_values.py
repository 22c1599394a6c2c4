"""Offsets, counts and indices that a kernel cannot follow, on host buffers: named before anything runs."""

from __future__ import annotations

import numpy as np
import pytest
import quantization
import reference

import loader

pytestmark = [pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning")]

WRONG = {
    "expert_offsets": ("entry 1 of expert_offsets is 9, expected 0 to 5", lambda call: call["expert_offsets"], 1, 9),
    "scale_offsets": ("entry 1 of scale_offsets is 0, expected at least 128", lambda call: call["scale_offsets"], 1, 0),
}


@pytest.mark.parametrize("name", WRONG)
def test_routing_is_checked_on_host_buffers(name: str, packs: list[str] | None, rng: np.random.Generator) -> None:
    """By launch, a plan's launch and check; nothing is written."""
    message, array, index, value = WRONG[name]
    problem = reference.grouped_problem(rng, [2, 3], 24, 64)
    call = {key: np.array(given) for key, given in problem.inputs().items()}
    out = np.full((5, 24), 7, np.float32)
    options = {"device": "emulated:120a", "packs": packs, "out": out}
    plan = loader.plan("grouped_fp4", **call, **options)
    array(call)[index] = value
    for run in (plan.launch, plan.check_values, lambda: loader.launch("grouped_fp4", **call, **options),
                lambda: loader.check("grouped_fp4", **call, **options)):  # fmt: skip
        with pytest.raises(loader.ValuesError, match=f"^grouped_fp4: {message}"):
            run()
    assert (out == 7).all()


@pytest.mark.parametrize("family", [*quantization.PACKED, *quantization.MASKED])
def test_every_family_has_rules(family: str, packs: list[str] | None, rng: np.random.Generator) -> None:
    """One row more than there are is named, whatever counts them."""
    case = quantization.case(rng, family, "f32", [2, 3], 32, {"global_scale_kind": "encode"})
    name = "mask" if family in quantization.MASKED else "expert_offsets"
    case.inputs[name][-1] = 1000
    with pytest.raises(loader.ValuesError, match=f"of {name} is 1000"):
        loader.launch(family, **case.inputs, **case.outputs, **case.scalars, device="emulated:120a", packs=packs)
