"""Functional forms of the torch ops, of all shipped kernels without one launch: what they allocate, what torch.compile
makes of them and of the out forms, and that gradients are refused. Launches are checked as real ones are, and write
ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType
from typing import Any

import manifest_pack
import numpy as np
import pytest
import torch
from test_ops import NUMBERS, OTHER_SIZES, SIZES, WORDS, small_data

import loader
from integrations import ops
from loader import expression, registry

NAMESPACE = "block_scaled_forms"
KERNELS = getattr(torch.ops, NAMESPACE)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """All kernels, described; their ops lie in a namespace of their own."""
    directory = tmp_path_factory.mktemp("pack")
    manifest_pack.write(directory)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ops, "NAMESPACE", NAMESPACE)
        patched.setattr(ops, "_ops", {})
        patched.setattr(ops, "_libraries", {})
        ops.register([str(directory)])
        yield str(directory)


@pytest.fixture
def launched(pack: str, monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """The calls of the loader, each checked as a launch is, which then writes ones."""
    calls, outputs = [], loader.outputs

    def launch(name: str, **given: Any) -> None:
        for written in outputs(name, **given, packs=[pack]).keys() & given.keys():  # a workspace may be left out
            given[written].view(torch.uint8).numpy().fill(1)  # of which torch sees nothing, as of a kernel
        calls.append(given)

    monkeypatch.setattr(loader, "launch", launch)
    monkeypatch.setattr(loader, "outputs", lambda name, **given: outputs(name, **given, packs=[pack]))
    return calls


def described(pack: str) -> dict[str, loader.manifest.Family]:
    found = registry.registry([pack])
    return found.families | {name: composite.signature for name, composite in found.composites.items()}


def call_of(rng: np.random.Generator, family: loader.manifest.Family) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Inputs and keywords of a functional form: small, every word that an output admits in its turn."""
    sizes = SIZES | NUMBERS | OTHER_SIZES.get(family.name, {})
    words = sizes | WORDS | {argument.name: str(rng.choice(argument.dtypes)) for argument in family.arguments}
    keywords = [argument for argument in functional(family.name)._schema.arguments if argument.kwarg_only]
    given = {argument.name: words[argument.name] for argument in keywords if not argument.has_default_value()}
    data = small_data(rng, family)
    return [data[argument.name] for argument in of_direction(family, "in")], given


def functional(name: str) -> torch._ops.OpOverload:
    return getattr(KERNELS, name).functional


def of_direction(family: loader.manifest.Family, direction: str) -> list[loader.manifest.Argument]:
    """Those that every call gives."""
    return [argument for argument in family.arguments if argument.direction == direction and not argument.optional]


def functional_families(pack: str) -> list[loader.manifest.Family]:
    return [family for name, family in described(pack).items() if "functional" in getattr(KERNELS, name).overloads()]


def test_what_reads_no_result_has_a_functional_form(pack: str) -> None:
    """And what does has none; both are attributes of the module."""
    names = {family.name for family in functional_families(pack)}
    assert names == {name for name, family in described(pack).items()
                     if all(argument.direction != "inout" for argument in family.arguments)}  # fmt: skip
    assert {"moe_fp4", "nvfp4_quantize", "moe_route"} < names and "gemm_fp8" not in names
    assert ops.moe_route.functional is functional("moe_route")


def test_results_are_what_the_loader_asks_for(
    pack: str, launched: list[Mapping[str, Any]], rng: np.random.Generator
) -> None:
    """In the order of the arguments, of shape, dtype and alignment that a launch takes, and they are what it wrote."""
    for family in functional_families(pack):
        inputs, given = call_of(rng, family)
        results = several(functional(family.name)(*inputs, **given))
        written = [argument.name for argument in of_direction(family, "out")]
        specs = loader.outputs(family.name, **launched[-1])
        assert [specs[name].shape for name in written] == [tuple(result.shape) for result in results]
        for name, result in zip(written, results, strict=True):
            assert result.data_ptr() == launched[-1][name].data_ptr()
            assert specs[name].dtype == given.get(name, specs[name].dtype)
            assert result.is_contiguous() and (result.view(torch.uint8) == 1).all()
            assert specs[name].alignment <= 64  # what torch gives on the CPU; 512 on a GPU


class Symbolic:
    """Fakes of which each size is a symbol, with the sizes of other tensors that it may stand for."""

    def __init__(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        self.environment = ShapeEnv(specialize_zero_one=False, duck_shape=False)
        self.mode = FakeTensorMode(shape_env=self.environment)
        self.others: dict[Any, int] = {}

    def fake(self, tensor: torch.Tensor, others: Sequence[int]) -> torch.Tensor:
        from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

        context = StatelessSymbolicContext([DimDynamic.DYNAMIC] * tensor.ndim)
        fake = self.mode.from_tensor(tensor, symbolic_context=context)
        self.others |= {size.node.expr: other for size, other in zip(fake.shape, others, strict=True)}
        return fake

    def shape(self, fake: torch.Tensor) -> list[int]:
        """What it is of the other sizes."""
        return [size if type(size) is int else int(size.node.expr.subs(self.others)) for size in fake.shape]


def test_fakes_bind_no_size(pack: str, rng: np.random.Generator) -> None:
    """With all sizes symbolic, shapes and whatever guards a graph hold for other sizes: of a third of the forms."""
    families = functional_families(pack)
    for index in rng.choice(len(families), len(families) // 3, replace=False):
        family, symbolic = families[index], Symbolic()
        inputs, given = call_of(rng, family)
        sizes = SIZES | NUMBERS | OTHER_SIZES.get(family.name, {})
        others = {name: 2 * int(rng.integers(2, 9)) * size for name, size in sizes.items()} | {"scale_layout": 0}
        fakes = [symbolic.fake(tensor, shape_of(argument, others))
                 for argument, tensor in zip(of_direction(family, "in"), inputs, strict=True)]  # fmt: skip
        given |= {name: symbolic.fake(torch.empty(value), [others[name]]).shape[0]
                  for name, value in given.items() if type(value) is int}  # fmt: skip
        with symbolic.mode:
            results = functional(family.name)(*fakes, **given)
        for argument, result in zip(of_direction(family, "out"), several(results), strict=True):
            assert symbolic.shape(result) == shape_of(argument, others), (family.name, argument.name)
        assert symbolic.others
        for guard in symbolic.environment.guards:
            assert guard.expr.subs(symbolic.others) == True, (family.name, guard.expr)  # noqa: E712 (of sympy)


def several(results: Any) -> Sequence[torch.Tensor]:
    """What a form returns, also where that is one tensor."""
    return [results] if isinstance(results, torch.Tensor) else results


def shape_of(argument: loader.manifest.Argument, sizes: Mapping[str, int]) -> list[int]:
    return [int(expression.evaluate(entry, sizes)) for entry in argument.shape]


def test_functional_forms_tell_torch_the_truth(
    pack: str, launched: list[Mapping[str, Any]], rng: np.random.Generator
) -> None:
    """Schemas and fakes agree with what the forms do: of a tenth of them, others in every run."""
    families = functional_families(pack)
    for index in rng.choice(len(families), len(families) // 10, replace=False):
        inputs, given = call_of(rng, families[index])
        results = torch.library.opcheck(functional(families[index].name), tuple(inputs), given)
        assert set(results.values()) == {"SUCCESS"}, (families[index].name, results)
    assert launched


WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("rank", {"x": torch.ones(64).bfloat16()}, loader.RankError, "nvfp4_quantize: x expects 2 dimensions"),
    ("size", {"S": -1}, loader.ShapeError, "nvfp4_quantize: .*S >= 0, got -1"),
    ("constraint", {"S": 64}, loader.ConstraintError, "nvfp4_quantize: S % 128 == 0 .* does not hold"),
    ("choice", {"scale_layout": "rows"}, loader.ScalarError, "nvfp4_quantize: scale_layout expects .*got 'rows'"),
]


@pytest.mark.parametrize("change, error, message", [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_errors_are_those_of_the_loader(
    change: dict[str, Any], error: type[Exception], message: str, launched: list[Mapping[str, Any]]
) -> None:
    """Of what a shape follows from, and of what the launch finds."""
    call = {"x": torch.ones(3, 64).bfloat16(), "global_scale": torch.ones(1), "S": 128, "global_scale_kind": "encode"}
    with pytest.raises(error, match=f"^{message}"):
        functional("nvfp4_quantize")(**{**call, **change})
    assert not launched


def test_a_word_that_no_result_may_be_is_refused(launched: list[Mapping[str, Any]]) -> None:
    """As the dtype of a result is."""
    with pytest.raises(loader.DtypeError, match=r"^moe_combine: out takes bf16 or f16 or f32, got 'f8'"):
        functional("moe_combine")(torch.ones(2, 64).bfloat16(), torch.zeros(2, 1, dtype=torch.int32),
                                  torch.ones(2, 1), out="f8")  # fmt: skip
    assert not launched


# Gradients

FORMS = {"out": lambda x, partial: KERNELS.amax(x, partial),
         "functional": lambda x, partial: KERNELS.amax.functional(x, P=len(partial))}  # fmt: skip


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("compiled", [False, True])
def test_what_requires_grad_is_refused(
    form: Callable[..., Any], compiled: bool, launched: list[Mapping[str, Any]]
) -> None:
    """At the call, or as it is compiled, unless nothing is recorded."""
    torch.compiler.reset()
    call = torch.compile(form, fullgraph=True, backend="aot_eager") if compiled else form
    x, partial = torch.ones(3, 16, requires_grad=True), torch.zeros(2)
    expected = r"amax: x requires grad, and the kernel has no gradient; give x\.detach\(\), or call it under torch\.no_"
    error = torch._dynamo.exc.TorchRuntimeError if compiled else loader.ArgumentError
    with pytest.raises(error, match=expected):
        call(x, partial)
    assert not launched
    with torch.no_grad():
        call(x, partial)
    call(x.detach(), partial)
    assert len(launched) == 2


def test_a_result_that_requires_grad_is_refused(launched: list[Mapping[str, Any]]) -> None:
    """Of the out form, which would write it behind the back of autograd."""
    with pytest.raises(loader.ArgumentError, match="^amax: partial requires grad"):
        KERNELS.amax(torch.ones(3, 16), torch.zeros(2, requires_grad=True))
    assert not launched


def test_autograd_sees_what_is_written(launched: list[Mapping[str, Any]]) -> None:
    """A tensor that was saved for a gradient and then written by an out form gives none."""
    factor, weight = torch.zeros(2), torch.ones(2, requires_grad=True)
    product = (factor * weight).sum()
    KERNELS.amax(torch.ones(3, 16), factor)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    assert len(launched) == 1


# Copies


def scales(x: torch.Tensor, weight_scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A chain of two functional calls."""
    partial = KERNELS.amax.functional(x, P=2)
    return partial, *KERNELS.nvfp4_global_scale.functional(partial, weight_scale)


def scales_into(x: torch.Tensor, weight_scale: torch.Tensor, encode: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same by out forms, into a buffer of the caller and two of its own."""
    partial, alpha = x.new_empty(2), x.new_empty(1)
    KERNELS.amax(x, partial)
    KERNELS.nvfp4_global_scale(partial, weight_scale, encode, alpha)
    return partial, encode, alpha


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:dynamo_pgo")  # of inductor's own
@pytest.mark.parametrize("function", [scales, scales_into])
def test_compiled_calls_copy_no_buffer(
    function: Callable[..., Any], launched: list[Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels get the buffers of the caller, hand theirs on, and what they wrote is returned; no graph has a copy."""
    from torch._inductor import config, metrics
    from torch._inductor.fx_passes import post_grad

    graphs, decompose = [], post_grad.decompose_auto_functionalized

    def last_pass(graph: torch.fx.Graph) -> None:
        decompose(graph)
        graphs.append([node for node in graph.nodes if node.op == "call_function"])

    monkeypatch.setattr(post_grad, "decompose_auto_functionalized", last_pass)
    metrics.reset()
    torch.compiler.reset()
    buffers = [torch.ones(3, 16), torch.ones(1)] + [torch.zeros(1)] * (function is scales_into)
    with config.patch(force_disable_caches=True):  # or there is no pass
        results = torch.compile(function, fullgraph=True, backend="inductor")(*buffers)
    first, second = launched
    for one, other in zip((*buffers[:2], *results, results[0]),
                          (first["x"], second["weight_scale"], first["partial"], second["encode_scale"],
                           second["alpha"], second["partial"]), strict=True):  # fmt: skip
        assert one.data_ptr() == other.data_ptr()
    assert function is scales or results[1].data_ptr() == buffers[2].data_ptr()
    nodes, = graphs
    assert sum(str(node.target).startswith(NAMESPACE) for node in nodes) == 2
    copies = [node for node in nodes if "clone" in str(node.target) or "copy" in str(node.target)]
    assert all(node.args[0] is node.args[1] for node in copies)  # of a buffer to itself, for which there is no code
    assert metrics.generated_kernel_count == 0


def product(x: torch.Tensor, scale: torch.Tensor, b: torch.Tensor, b_scale: torch.Tensor) -> torch.Tensor:
    """Tokens quantised and multiplied, as many as there are."""
    rows = (len(x) + 127) // 128 * 128
    a, a_scale = ops.nvfp4_quantize.functional(x, scale, S=rows, global_scale_kind="encode")
    return ops.gemm_fp4.functional(a, b, a_scale, b_scale, scale, out="bf16")


def test_one_graph_serves_any_number_of_rows(launched: list[Mapping[str, Any]]) -> None:
    """What is compiled for some rows is not compiled again for others, nor bound to a number of them."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(product, fullgraph=True, backend=counter)
    weights = [torch.zeros(24, 32, dtype=torch.uint8), torch.zeros(128, 4, dtype=torch.uint8)]
    for rows in (3, 128, 129, 300):
        x = torch.ones(rows, 64).bfloat16()
        torch._dynamo.mark_dynamic(x, 0)
        out = compiled(x, torch.ones(1), *weights)
        assert (out.shape, out.dtype) == ((rows, 24), torch.bfloat16) and (out.view(torch.uint8) == 1).all()
    assert (counter.frame_count, len(launched)) == (1, 8)


@pytest.mark.parametrize("form", ["default", "functional"])
def test_a_call_outside_a_graph_is_not_traced(
    form: str, launched: list[Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing below an op is compiled where the compiler gives up the function that calls it."""
    from torch._dynamo import convert_frame

    frames, convert = [], convert_frame._compile
    op, given = getattr(KERNELS.amax, form), {"P": 2} if form == "functional" else {"partial": torch.zeros(2)}

    def compile_frame(code: CodeType, *args: Any, **kwargs: Any) -> Any:
        frames.append(code.co_name)
        return convert(code, *args, **kwargs)

    def given_up(x: torch.Tensor) -> None:
        for _ in range(2):
            torch._dynamo.graph_break()
            op(x, **given)

    monkeypatch.setattr(convert_frame, "_compile", compile_frame)
    torch.compiler.reset()
    torch.compile(given_up, backend="eager")(torch.ones(3, 16))
    assert len(launched) == 2
    assert frames == ["given_up"]
