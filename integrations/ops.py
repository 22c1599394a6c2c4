"""The kernels as torch ops, ``torch.ops.block_scaled.<kernel>``, so that torch.compile traces calls of them.

There is one for every kernel and composite of the default packs, as the packs describe it, in two forms:

- the op itself, ``.default``, takes the buffers in the loader's order, those that may be left out last (``workspace``
  of a composite among them), and scalars by name. It writes its outputs and returns nothing;
- ``.functional``, of what reads no buffer that it writes, takes the inputs alone. It allocates the outputs, but those
  that may be left out, and returns them in the loader's order. Dimensions that only outputs have are integers by name,
  and an output of several dtypes is a word, as in ``out="bf16"``.

Shapes and types are checked by the loader at the call. There are no gradients: a tensor that requires one is refused.

The ops are registered when this module is imported, and are its attributes, too. Where no pack is found then, an
attribute looks again when it is used, and raises what the loader raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from . import loader, results

NAMESPACE = "block_scaled"
FUNCTIONAL = "functional"
# A promise about what is launched before: nobody can give it for what torch.compile puts there.
LEFT_OUT = ("prefetch",)

_ops: dict[str, torch._ops.OpOverloadPacket] = {}
# The registrations by qualified name, which last as long as these do.
_libraries: dict[str, torch.library.Library] = {}


class _Form(NamedTuple):
    """A way to call a kernel. keywords, returns: of its schema. run: the launch. fake: what it returns, without one."""

    overload: str
    arguments: Sequence[loader.manifest.Argument]
    keywords: list[str]
    returns: str
    run: Callable[..., Any]
    fake: Callable[..., Any]


def register(packs: Sequence[str] | None = None) -> None:
    """Register an op for every kernel of the packs, in the place of one of the same name.

    An op launches what the default packs hold; ``packs`` only describe it.
    """
    found = loader.registry.registry(packs)
    for family in found.families.values():
        _register(family, family.arguments)
    for composite in found.composites.values():
        workspace = loader.composite.WORKSPACE._replace(optional=True)
        _register(composite.signature, (*composite.signature.arguments, workspace))


def _register(family: loader.manifest.Family, arguments: Iterable[loader.manifest.Argument]) -> None:
    """The forms of one kernel, of which the first takes ``arguments``."""
    qualified = f"{NAMESPACE}::{family.name}"
    _libraries.pop(qualified, None)  # and with it what it has registered
    library = _libraries[qualified] = torch.library.Library(NAMESPACE, "FRAGMENT")
    _define(library, family.name, _out_form(family, results.in_order(arguments)))
    allotted = results.of(family)
    if allotted is not None:
        _define(library, family.name, _functional_form(family, allotted))
    _ops[family.name] = getattr(getattr(torch.ops, NAMESPACE), family.name)


def _out_form(family: loader.manifest.Family, arguments: Sequence[loader.manifest.Argument]) -> _Form:
    names = [argument.name for argument in arguments]

    def run(*buffers: torch.Tensor | None, **values: object) -> None:
        loader.launch(family.name, **dict(zip(names, buffers, strict=False)), **values)

    return _Form("", arguments, _scalars(family), "()", run, lambda *buffers, **values: None)


def _functional_form(family: loader.manifest.Family, allotted: results.Results) -> _Form:
    names = [argument.name for argument in allotted.inputs]
    written = [argument.name for argument in allotted.written]
    not_scalars = {*allotted.sizes, *allotted.words}

    def fake(*inputs: torch.Tensor | None, **values: object) -> torch.Tensor | tuple[torch.Tensor, ...]:
        return _returned(allotted.allocate(inputs, values))

    def run(*inputs: torch.Tensor | None, **values: object) -> torch.Tensor | tuple[torch.Tensor, ...]:
        tensors = allotted.allocate(inputs, values)
        scalars = {name: value for name, value in values.items() if name not in not_scalars}
        loader.launch(family.name, **dict(zip(names, inputs, strict=False)), **scalars,
                      **dict(zip(written, tensors, strict=True)))  # fmt: skip
        return _returned(tensors)

    keywords = [*_scalars(family), *(f"SymInt {name}" for name in allotted.sizes),
                *(f"str {name}" for name in allotted.words)]  # fmt: skip
    returns = ", ".join(["Tensor"] * len(written))
    return _Form(FUNCTIONAL, allotted.inputs, keywords, returns if len(written) == 1 else f"({returns})", run, fake)


def _returned(tensors: Sequence[torch.Tensor]) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """As a schema has it, of one tensor that one alone."""
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _define(library: torch.library.Library, kernel: str, form: _Form) -> None:
    """Tell torch of a form: its schema, its kernel on every device, its fake, and that it has no gradient."""
    name = f"{kernel}.{form.overload}" if form.overload else kernel
    schema = ", ".join([*map(_tensor, form.arguments), *["*"] * bool(form.keywords), *form.keywords])
    library.define(f"{name}({schema}) -> {form.returns}", tags=torch.Tag.pt2_compliant_tag)
    # The compiler would trace what is called of a frame that it has given up, as custom_op keeps it from doing.
    library.impl(name, torch._disable_dynamo(form.run), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", form.fake, lib=library)
    op = getattr(getattr(getattr(torch.ops, NAMESPACE), kernel), form.overload or "default")
    library.impl(name, torch._disable_dynamo(_without_gradient(kernel, form.arguments, op)), "Autograd")


def _without_gradient(kernel: str, arguments: Sequence[loader.manifest.Argument],
                      op: torch._ops.OpOverload) -> Callable[..., Any]:  # fmt: skip
    """The op where gradients may be recorded: it refuses what would need one, and counts what it has written."""

    def call(*tensors: torch.Tensor | None, **values: object) -> Any:
        given = [(argument, tensor) for argument, tensor in zip(arguments, tensors, strict=False) if tensor is not None]
        if torch.is_grad_enabled():
            for argument, tensor in given:
                if tensor.requires_grad:
                    raise loader.ArgumentError(
                        f"{kernel}: {argument.name} requires grad, and the kernel has no gradient; give "
                        f"{argument.name}.detach(), or call it under torch.no_grad()", kernel=kernel,
                        argument=argument.name, expected="a tensor without grad", got="requires_grad")  # fmt: skip
        with torch._C._AutoDispatchBelowAutograd():
            returned = op(*tensors, **values)
        if op._schema.is_mutable:
            torch.autograd.graph.increment_version(
                [tensor for argument, tensor in given if argument.direction != "in"])  # fmt: skip
        return returned

    return call


def _tensor(argument: loader.manifest.Argument) -> str:
    """As a schema of torch has it; what is written has an alias set of its own."""
    kind = "Tensor" if argument.direction == "in" else f"Tensor({argument.name}!)"
    return f"{kind}? {argument.name}=None" if argument.optional else f"{kind} {argument.name}"


def _scalars(family: loader.manifest.Family) -> list[str]:
    return [_number(scalar) for scalar in family.scalars if scalar.name not in LEFT_OUT]


def _number(scalar: loader.manifest.Scalar) -> str:
    kind = "str" if scalar.choices else "float" if scalar.dtype == "f32" else "SymInt"
    default = f'"{scalar.default}"' if scalar.choices else scalar.default
    return f"{kind} {scalar.name}" if scalar.default is None else f"{kind} {scalar.name}={default}"


def __getattr__(name: str) -> torch._ops.OpOverloadPacket:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _ops:
        found = loader.registry.registry()
        if name not in found.composites:
            found.family(name)  # raises where there is none
        register()
    return _ops[name]


try:
    register()
except loader.PackNotFoundError:
    pass  # said where an op is used
