"""Calls of the loader under torch's tracers: the graph breaks and they run, or they are refused with what to call."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

import loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
]
OP = "torch.ops.block_scaled.<kernel> of integrations.ops can"
options = {"device": "emulated:120a"}


@pytest.fixture
def launch(packs):
    """amax of twice the values, by ``loader.launch``."""

    def launch(x, partial):
        loader.launch("amax", x=x * 2, partial=partial, packs=packs, **options)
        return partial * 1

    return launch


@pytest.fixture
def data(rng):
    return torch.from_numpy(rng.standard_normal((3, 64))).bfloat16(), torch.empty(2)


@pytest.mark.parametrize("called_before", [False, True], ids=["first", "later"])
def test_launch_breaks_the_graph(data, launch, called_before):
    """In one place, and launches each time what it launches without a compiler."""
    x, partial = data
    torch.compiler.reset()
    if called_before:
        launch(x, partial)
    graphs = []
    compiled = torch.compile(launch, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    for factor in (1, 3, 2):
        assert torch.equal(compiled(x * factor, partial).amax(), (x * factor * 2).float().abs().max())
    assert len(graphs) == 2  # before the launch, and behind it


def test_plans_break_the_graph(data, packs):
    """So do planning, binding, and launching a plan."""
    x, partial = data

    def run(x, partial):
        plan = loader.plan("amax", x=x * 2, partial=torch.empty_like(partial), packs=packs, **options)
        plan.bind(partial=partial).launch()
        return partial * 1

    torch.compiler.reset()
    compiled = torch.compile(run, backend="eager")
    for factor in (1, 3):
        assert torch.equal(compiled(x * factor, partial).amax(), (x * factor * 2).float().abs().max())


def test_one_graph_names_the_op(data, launch):
    """Where a graph must not break, the compiler says what can be traced."""
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="cannot be traced; " + OP):
        torch.compile(launch, backend="eager", fullgraph=True)(*data)


TRACERS = {
    "fake tensors": lambda function, *data: _under_fake_tensors(function, *data),
    "make_fx": lambda function, *data: torch.fx.experimental.proxy_tensor.make_fx(function, tracing_mode="fake")(*data),
    "functionalize": lambda function, *data: torch.func.functionalize(function)(*data),
    "vmap": lambda function, x, partial: torch.func.vmap(lambda x: function(x, partial))(x[None]),
}


def _under_fake_tensors(function, *data):
    with FakeTensorMode() as mode:
        return function(*map(mode.from_tensor, data))


@pytest.mark.parametrize("tracer", TRACERS)
def test_tensors_without_memory_are_refused(data, launch, tracer):
    """With the argument, and with the op that can be traced; the frames of torch's C++ are none of a user's."""
    with pytest.raises(loader.BufferProtocolError) as caught:
        TRACERS[tracer](launch, *data)
    assert str(caught.value).endswith(f"a tensor has no memory while torch traces; {OP} be traced")
    assert "x" in (caught.value.argument, str(caught.value)[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("argument", ["x", "partial"])
def test_a_negation_that_waits_is_refused(data, packs, argument):
    """torch hands such a tensor on with the other sign; of a conjugate's imaginary part it is one element that may
    pass every other check."""
    tensors = dict(zip(("x", "partial"), data, strict=True))
    for waiting in (torch._neg_view(tensors[argument]), torch.ones(2, dtype=torch.complex64).conj().imag[:1]):
        with pytest.raises(loader.BufferProtocolError) as caught:
            loader.launch("amax", **{**tensors, argument: waiting}, packs=packs, **options)
        assert str(caught.value) == (
            f"{argument}: torch.Tensor gives no buffer: its negative bit is set, so what lies in memory has the other "
            "sign; pass tensor.resolve_neg()"
        )
