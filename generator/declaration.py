"""The parameter list of a kernel in CUDA, from its entries in kernels.yaml: stated there, and nowhere again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# What a kernel sees of an element: packed pairs and scale factors are bytes.
ELEMENTS = {
    "e2m1x2": "uint8_t", "ue4m3": "uint8_t", "ue8m0": "uint8_t", "e4m3": "uint8_t", "u8": "uint8_t", "i32": "int",
    "i64": "int64_t", "f32": "float", "f16": "__half", "bf16": "__nv_bfloat16",
}  # fmt: skip
SCALARS = {"i32": "int", "i64": "int64_t", "u32": "uint32_t", "f32": "float"}


def declare(parameters: Iterable[Mapping[str, Any]], dtypes: Mapping[str, str], inputs: Iterable[str]) -> str:
    """The list without its parentheses, one parameter a line.

    parameters: in manifest form. dtypes: of each argument that has one in this variant. inputs: arguments that no
    kernel writes.
    """
    lines = []
    for entry in parameters:
        if entry["kind"] == "tensor_map":
            kind = "const __grid_constant__ tma::TensorMap "
        elif entry["kind"] == "scalar":
            kind = f"{SCALARS[entry['dtype']]} "
        else:
            argument = entry["argument"]
            element = ELEMENTS[dtypes[argument]] if argument in dtypes else "void"
            kind = f"{'const ' if argument in inputs else ''}{element}* "
        lines.append(f"{kind}{entry['name']}")
    return ",\n    ".join(lines)
