"""torch.compile on a GPU: ops are traced, a launch breaks the graph, and what is remembered keeps its checks."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import loader  # noqa: E402
from integrations import ops  # noqa: E402


@pytest.fixture
def x(seed: int) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn((64, 256), generator=generator, device="cuda")


@pytest.mark.parametrize("call", [lambda x, partial: ops.amax(x, partial),
                                  lambda x, partial: loader.launch("amax", x=x, partial=partial)],
                         ids=["op", "launch"])  # fmt: skip
def test_a_compiled_call_launches(x: torch.Tensor, call) -> None:
    """Between kernels of inductor, each time with the values of that time."""

    def largest(x: torch.Tensor) -> torch.Tensor:
        partial = torch.empty(16, device="cuda")
        call(x * 2, partial)
        return partial.amax() + 1

    torch.compiler.reset()
    compiled = torch.compile(largest)
    for factor in (1, 3, 2):
        assert torch.equal(compiled(x * factor), (x * factor * 2).abs().max() + 1)


def test_a_functional_form_is_replayed(x: torch.Tensor) -> None:
    """In a CUDA graph of inductor, with the values of that time."""

    def largest(x: torch.Tensor) -> torch.Tensor:
        return ops.amax.functional(x * 2, P=16).amax() + 1

    torch.compiler.reset()
    compiled = torch.compile(largest, fullgraph=True, mode="reduce-overhead")
    for factor in (1, 3, 2, 5):
        torch.compiler.cudagraph_mark_step_begin()
        assert torch.equal(compiled(x * factor), (x * factor * 2).abs().max() + 1)


@pytest.mark.parametrize("argument", ["x", "partial"])
def test_a_negation_that_waits_is_refused_later(x: torch.Tensor, argument: str) -> None:
    """Also where the problem is remembered."""
    tensors = {"x": x, "partial": torch.empty(16, device="cuda")}
    for _ in range(2):
        loader.launch("amax", **tensors)
    with pytest.raises(loader.BufferProtocolError, match=f"^{argument}: .*its negative bit is set"):
        loader.launch("amax", **{**tensors, argument: torch._neg_view(tensors[argument])})
