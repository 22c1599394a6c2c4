"""A launch as a Definition of flashinfer-bench: what is computed, in a JSON file for each distinct problem.

All axes are constant, since a launch knows one value of each: an extent that is no dimension is an axis that is named
by its expression. Scalars have no shape, and no value either. The schema has no names for packed FP4 and for UE8M0:
these are int8, and the description says what the bytes are.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from . import expression, files
from .manifest import Argument, Family, Scalar
from .observe import Launch

DTYPES = {"e2m1x2": "int8", "ue8m0": "int8", "u8": "int8", "ue4m3": "float8_e4m3fn", "e4m3": "float8_e4m3fn",
          "i32": "int32", "u32": "int64", "i64": "int64", "f16": "float16", "bf16": "bfloat16", "f32": "float32"}


def definition(launch: Launch, family: Family) -> dict[str, Any]:
    """The fields of the schema; ``name`` has a digest of all others."""
    axes: dict[str, int] = {}
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    for argument in family.arguments:
        operand = launch.buffers.get(argument.name)
        if operand is None:
            continue
        names = [expression.to_text(extent) for extent in argument.shape]
        used = set().union(*map(expression.names, argument.shape))
        axes |= {name: int(launch.problem[name]) for name in family.dimensions if name in used}
        axes |= dict(zip(names, operand.shape, strict=True))
        tensor = {"shape": names, "dtype": DTYPES[operand.dtype], "description": _words(argument, operand.dtype)}
        if argument.direction != "out":
            inputs[argument.name] = tensor
        if argument.direction != "in":
            outputs[argument.name] = tensor
    inputs |= {scalar.name: {"shape": None, "dtype": DTYPES[scalar.dtype], "description": _words(scalar, scalar.dtype)}
               for scalar in family.scalars}
    fields = {
        "op_type": family.name,
        "description": family.summary,
        "axes": {name: {"type": "const", "value": value} for name, value in axes.items()},
        "inputs": inputs,
        "outputs": outputs,
        "reference": _reference(family, inputs),
    }
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]
    sizes = [f"{name.lower()}{value}" for name, value in axes.items() if name in family.dimensions]
    return {"name": "_".join([family.name, *sizes, digest]), **fields}


def _words(entry: Argument | Scalar, dtype: str) -> str:
    choices = getattr(entry, "choices", ())
    which = ", ".join(f"{index} for {word}" for index, word in enumerate(choices)) or dtype
    return f"{entry.doc} ({which})"


def _reference(family: Family, inputs: dict[str, Any]) -> str:
    """The schema wants Python with a ``run``. A pack has the formula, and no program that says the same."""
    return (f"def run({', '.join(inputs)}):\n    {family.summary!r}\n"
            f"    raise NotImplementedError({f'the pack that has {family.name} has no reference of it'!r})\n")


def write(directory: str, launch: Launch, family: Family) -> None:
    """Write the definition of a launch, whole or not at all; one that is there is of the same content."""
    fields = definition(launch, family)
    path = os.path.join(directory, f"{fields['name']}.json")
    if not os.path.exists(path):
        files.replace(path, json.dumps(fields, indent=2).encode())
