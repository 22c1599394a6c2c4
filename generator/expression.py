"""Parses the expression text of kernels.yaml into the list form that ``loader.expression`` evaluates.

The text is read with Python's grammar and walked node by node; nothing is executed. ``min`` and ``max`` take two or
more operands, comparisons may be chained, ``a if condition else b`` is the conditional.
"""

from __future__ import annotations

import ast
import keyword
from collections.abc import Mapping
from functools import reduce
from typing import Any

from loader.errors import ExpressionError
from loader.expression import LAZY_OPERATORS, OPERATORS, Expression, Number, evaluate, validate

_BINARY = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%",
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
    ast.And: "and", ast.Or: "or",
}  # fmt: skip
_UNARY = {ast.USub: "neg", ast.Not: "not"}
FUNCTIONS = sorted(name for name in OPERATORS if name.isidentifier() and name not in ("neg", "not"))
RESERVED = {*OPERATORS, *LAZY_OPERATORS}


def is_name(text: str) -> bool:
    """Whether ``text`` can name a dimension, an axis or a constant: an identifier that means nothing else here."""
    return text.isidentifier() and text.isascii() and not keyword.iskeyword(text) and text not in RESERVED


def parse(value: Any) -> Expression:
    """An expression of kernels.yaml, a number or text, in list form; ``ExpressionError`` says what is wrong."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ExpressionError(f"an expression is a number or text, got {type(value).__name__} {value!r}")
    try:
        expression = _convert(ast.parse(value.strip(), mode="eval").body, value) if isinstance(value, str) else value
    except ExpressionError:
        raise
    except SyntaxError as error:
        hint = "a choice is written `a if condition else b`"
        raise ExpressionError(f"cannot read {value!r}: {error.msg}; {hint}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"cannot read {value!r}: {error}") from None
    validate(expression)
    return expression


def _convert(node: ast.expr, text: str) -> Expression:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.Name):
        if not is_name(node.id):
            raise ExpressionError(f"{node.id!r} in {text!r} is not a name")
        return node.id
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        operand = _convert(node.operand, text)
        negative = isinstance(node.op, ast.USub) and isinstance(operand, (int, float))
        return -operand if negative else [_UNARY[type(node.op)], operand]
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return [_BINARY[type(node.op)], _convert(node.left, text), _convert(node.right, text)]
    if isinstance(node, ast.BoolOp):
        return _chain(_BINARY[type(node.op)], [_convert(operand, text) for operand in node.values])
    if isinstance(node, ast.Compare) and all(type(op) in _BINARY for op in node.ops):
        operands = [_convert(operand, text) for operand in (node.left, *node.comparators)]
        pairs = zip(node.ops, operands, operands[1:], strict=False)
        return _chain("and", [[_BINARY[type(op)], left, right] for op, left, right in pairs])
    if isinstance(node, ast.IfExp):
        return ["if", *(_convert(part, text) for part in (node.test, node.body, node.orelse))]
    if isinstance(node, ast.Call):
        return _convert_call(node, text)
    raise ExpressionError(f"{ast.unparse(node)!r} in {text!r} is not part of the expression language")


def _convert_call(node: ast.Call, text: str) -> Expression:
    name = ast.unparse(node.func)
    if name not in FUNCTIONS or node.keywords:
        raise ExpressionError(f"unknown function {name!r} in {text!r}; known are {', '.join(FUNCTIONS)}")
    operands = [_convert(operand, text) for operand in node.args]
    if name in ("min", "max") and len(operands) > 2:
        return _chain(name, operands)
    if len(operands) != OPERATORS[name][0]:
        raise ExpressionError(f"{name!r} in {text!r} takes {OPERATORS[name][0]} operands, got {len(operands)}")
    return [name, *operands]


def _chain(operator: str, operands: list[Expression]) -> Expression:
    return reduce(lambda left, right: [operator, left, right], operands)


def fold(expression: Expression, values: Mapping[str, Number]) -> Expression:
    """``expression`` with the names of ``values`` replaced and every part that is then a number computed.

    Truth values become 0 and 1. Raises ``ExpressionError`` where a computed part has no value (``7 / 2``).
    """
    if not isinstance(expression, list):
        return values.get(expression, expression) if isinstance(expression, str) else expression
    operator, *operands = expression
    if operator == "if":
        condition = fold(operands[0], values)
        if isinstance(condition, (int, float)):
            return fold(operands[1] if condition else operands[2], values)
    folded = [operator, *(fold(operand, values) for operand in operands)]
    if not all(isinstance(operand, (int, float)) for operand in folded[1:]):
        return folded
    try:
        result = evaluate(folded, {})
    except ExpressionError as error:
        advice = "; use // or fdiv where rounding is meant" if operator == "/" and folded[2] else ""
        raise ExpressionError(f"{error}{advice}") from None
    result = int(result) if isinstance(result, bool) else result
    validate(result)
    return result
