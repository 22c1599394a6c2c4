"""The kernels as torch custom ops, ``torch.ops.block_scaled.<kernel>``, so that torch.compile traces calls of them.

There is one for every kernel and composite of the default packs, as the packs describe it. An op takes the buffers in
the loader's order, those that may be left out last (``workspace`` of a composite among them), and scalars by name. It
writes its outputs and returns nothing; shapes and types are checked by the loader at the call.

The ops are registered when this module is imported. Where no pack is found then, an attribute of this module looks
again when it is used, and raises what the loader raises.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import loader

NAMESPACE = "block_scaled"
# A promise about what is launched before: nobody can give it for what torch.compile puts there.
LEFT_OUT = ("prefetch",)

_ops: dict[str, torch.library.CustomOpDef] = {}


def register(packs: Sequence[str] | None = None) -> None:
    """Register an op for every kernel of the packs, in the place of one of the same name.

    An op launches what the default packs hold; ``packs`` only describe it.
    """
    found = loader.registry.registry(packs)
    for family in found.families.values():
        _ops[family.name] = _op(family, family.arguments)
    for name, composite in found.composites.items():
        arguments = (*composite.signature.arguments, loader.composite.WORKSPACE._replace(optional=True))
        _ops[name] = _op(composite.signature, arguments)


def _op(family: loader.manifest.Family, arguments: Sequence[loader.manifest.Argument]) -> torch.library.CustomOpDef:
    """An op of one kernel that takes ``arguments``."""
    arguments = sorted(arguments, key=lambda argument: argument.optional)
    names = [argument.name for argument in arguments]
    written = [argument.name for argument in arguments if argument.direction != "in"]
    scalars = [_number(scalar) for scalar in family.scalars if scalar.name not in LEFT_OUT]
    schema = f"({', '.join([*map(_tensor, arguments), *['*'] * bool(scalars), *scalars])}) -> ()"

    def launch(*buffers: torch.Tensor | None, **values: object) -> None:
        loader.launch(family.name, **dict(zip(names, buffers, strict=False)), **values)

    op = torch.library.custom_op(f"{NAMESPACE}::{family.name}", launch, mutates_args=written, schema=schema)
    op.register_fake(lambda *buffers, **values: None)
    return op


def _tensor(argument: loader.manifest.Argument) -> str:
    """As a schema of torch has it; what is written has an alias set of its own."""
    kind = "Tensor" if argument.direction == "in" else f"Tensor({argument.name}!)"
    return f"{kind}? {argument.name}=None" if argument.optional else f"{kind} {argument.name}"


def _number(scalar: loader.manifest.Scalar) -> str:
    kind = "str" if scalar.choices else "float" if scalar.dtype == "f32" else "int"
    default = f'"{scalar.default}"' if scalar.choices else scalar.default
    return f"{kind} {scalar.name}" if scalar.default is None else f"{kind} {scalar.name}={default}"


def __getattr__(name: str) -> torch.library.CustomOpDef:
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
