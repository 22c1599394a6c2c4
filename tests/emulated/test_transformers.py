"""The experts function for Hugging Face transformers, on modules with what its decorator gives experts."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import integrations.transformers as ours  # noqa: E402
import loader  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors", "emulated_hopper"),
]


def _default_apply_gate(self: torch.nn.Module, gate_up: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the gate is computed elsewhere")


class Experts(torch.nn.Module):
    """Random weights in bf16 of E experts, and what ``use_experts_implementation`` says of a class."""

    _apply_gate = _default_apply_gate
    has_gate, has_bias, has_post_expert_norm, is_concatenated, is_transposed = True, False, False, True, False
    _is_expert_parallel = False

    def __init__(self, generator: torch.Generator, experts: int = 4, hidden: int = 64, between: int = 48) -> None:
        super().__init__()
        self.act_fn = torch.nn.SiLU()
        for name, shape in (("gate_up_proj", (2 * between, hidden)), ("down_proj", (hidden, between))):
            weights = torch.randn(experts, *shape, generator=generator) * 0.2
            self.register_parameter(name, torch.nn.Parameter(weights.bfloat16()))


def routed(generator: torch.Generator, ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random tokens and weights of them."""
    x, index = torch.randn(len(ids), 64, generator=generator), torch.tensor(ids)
    return x.bfloat16(), index, torch.rand(index.shape, generator=generator).bfloat16()


@torch.no_grad()
def forward(module: Experts, *arguments: Any) -> torch.Tensor:
    return ours.experts_forward(module, *arguments)


def test_weights_that_changed_are_prepared_anew(generator: torch.Generator) -> None:
    """Whoever writes to them, or puts others in their place; a second call prepares nothing."""
    module, arguments = Experts(generator), routed(generator, [[0], [1]])
    outs = [forward(module, *arguments)]
    kept = ours._experts(module)
    with torch.no_grad():
        module.down_proj.mul_(2)
    outs.append(forward(module, *arguments))
    assert ours._experts(module) is ours._experts(module) is not kept
    module.down_proj.data = module.down_proj.data * 2
    outs.append(forward(module, *arguments))
    assert torch.equal(outs[1], 2 * outs[0]) and torch.equal(outs[2], 4 * outs[0])


def test_weights_may_be_given_up(generator: torch.Generator) -> None:
    """All modules below a model are prepared, and compute the same without their own weights."""
    module, arguments = Experts(generator), routed(generator, [[0, 3], [2, 1]])
    before = forward(module, *arguments)
    assert ours.prepare(torch.nn.Sequential(module, torch.nn.Linear(2, 2)), release=True) == 1
    assert module.gate_up_proj.numel() == module.down_proj.numel() == 0
    assert torch.equal(forward(module, *arguments), before)


def test_other_arrangements_of_weights(generator: torch.Generator) -> None:
    """Transposed ones give the same bytes, and ids that are no expert's, as those of other ranks, add nothing."""
    plain, turned = Experts(generator), Experts(generator)
    turned.is_transposed = True
    for name in ("gate_up_proj", "down_proj"):
        getattr(turned, name).data = getattr(plain, name).data.transpose(1, 2).contiguous()
    arguments = routed(generator, [[0, 3], [2, 4], [4, 4]])
    out = forward(plain, *arguments)
    assert torch.equal(forward(turned, *arguments), out)
    assert out[:2].any(dim=1).all() and not out[2].any()


def test_a_model_may_be_compiled(generator: torch.Generator) -> None:
    """Whole, with the same bytes."""

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = Experts(generator)

        def forward(self, x: torch.Tensor, *routing: torch.Tensor) -> torch.Tensor:
            return ours.experts_forward(self.experts, x * 2, *routing) + 1

    layer, arguments = Layer(), routed(generator, [[0, 3], [2, 1]])
    ours.prepare(layer)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(*arguments), layer(*arguments))


@pytest.mark.parametrize("name", ours.WANTED)
def test_other_experts_are_refused(name: str, generator: torch.Generator) -> None:
    """By what the class says of itself."""
    module = Experts(generator)
    setattr(module, name, not ours.WANTED[name])
    with pytest.raises(NotImplementedError, match=f"Experts: {name} is {not ours.WANTED[name]}, experts with"):
        forward(module, *routed(generator, [[0]]))


def test_what_kernels_do_not_take_is_refused(generator: torch.Generator) -> None:
    """Another activation or gate, sizes without whole groups, tokens in 32 bits, and gradients."""
    module, (x, ids, weights) = Experts(generator), routed(generator, [[0]])
    with pytest.raises(loader.ArgumentError, match="x requires grad"):
        ours.experts_forward(module, x.clone().requires_grad_(), ids, weights)
    with pytest.raises(ValueError, match="tokens expect bfloat16 or float16, got torch.float32"):
        forward(module, x.float(), ids, weights)
    with pytest.raises(loader.ShapeError, match="requires K % 16 == 0"):
        forward(Experts(generator, hidden=72), x, ids, weights)
    module = Experts(generator)
    module.act_fn = torch.nn.ReLU()
    with pytest.raises(NotImplementedError, match="gates by _default_apply_gate of ReLU; what is computed"):
        forward(module, x, ids, weights)
