"""What Python the emulator may make of PTX: a fixed set of syntax and of names, whatever the text says.

Text of the PTX can be a string in it, and never a name, an attribute or syntax.
"""

from __future__ import annotations

import ast
import re
from functools import cache

from emulator.execution.emitter import Emitter
from emulator.execution.opcodes import EMITTERS
from emulator.execution.program import _NAMESPACE, Program
from emulator.machine.code import Block
from emulator.units.warps import Warps

# Assignments, calls, arithmetic and displays. No import, no loop, no lambda, no comprehension, no f-string.
SYNTAX = (
    ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.Expr, ast.Return, ast.Call, ast.keyword,
    ast.Attribute, ast.Name, ast.Subscript, ast.Slice, ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.BinOp,
    ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop, ast.expr_context,
)  # fmt: skip
OWN = re.compile(r"C|R|m|cc|[tvk](0|[1-9][0-9]*)")  # cohort, registers, mask, carry; temporaries, values, constants
NUMPY = frozenset({"abs", "asarray", "ascontiguousarray", "copysign", "ones_like", "stack"})
ARRAY = frozenset({"astype", "dtype", "view"})
MODULES = {"np": NUMPY, "mma": frozenset({"execute", "execute_selected"})}


@cache
def functions() -> frozenset[str]:
    """The names of the arithmetic that generated code may call."""
    return frozenset(name for name in _NAMESPACE if not name.startswith("_"))


@cache
def methods() -> frozenset[str]:
    """What of the cohort generated code may use: what its class has, but nothing private."""
    return frozenset(name for name in dir(Warps) if not name.startswith("_")) | {"device"}


def foreign(source: str) -> list[str]:
    """Whatever in the source of a block is not of the fixed set; empty where all is."""
    tree = ast.parse(source)
    found = [] if [type(node) for node in tree.body] == [ast.FunctionDef] else ["more than one function"]
    for node in ast.walk(tree):
        if not isinstance(node, SYNTAX):
            found.append(type(node).__name__)
        elif isinstance(node, ast.Name) and not (OWN.fullmatch(node.id) or node.id in functions()):
            found.append(node.id)
        elif isinstance(node, ast.Attribute) and not _is_known(node):
            found.append(ast.unparse(node))
        elif isinstance(node, ast.FunctionDef) and (node.name != "block" or node.decorator_list):
            found.append(node.name)
        elif isinstance(node, ast.Constant) and type(node.value) not in (int, str, bool, type(None), type(...)):
            found.append(repr(node.value))
    return found


def _is_known(node: ast.Attribute) -> bool:
    """Of the cohort its methods, of modules their arithmetic, of all else what arrays have."""
    if isinstance(node.value, ast.Name) and node.value.id == "C":
        return node.attr in methods()
    if isinstance(node.value, ast.Name) and node.value.id in MODULES:
        return node.attr in MODULES[node.value.id]
    return node.attr in ARRAY or ast.unparse(node) == "C.device.cuts_sums"


def source_of(program: Program, block: Block, masked: bool) -> str:
    """The source of one version of a block, which is compiled and not run."""
    source = Emitter(program._kernel, block, masked).function(EMITTERS)
    compile(source, "<ptx>", "exec")
    return source
