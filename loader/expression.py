"""Evaluation of the expressions that a manifest carries as data.

An expression is an integer, a float, a name, or a list ``[operator, operand, ...]``. ``kernels.yaml`` writes them
as text; ``generator.expression`` parses that text once, at build time, so the loader neither parses it nor makes
Python of it. (The emulator does make Python of a pack's PTX, in ``emulator.execution``.) The operators are the keys of
``OPERATORS``; ``if`` and the logical operators evaluate only the operands that they need.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .errors import ExpressionError

Expression = int | float | str | list
Number = int | float | bool
Function = Callable[[Mapping[str, Number]], Number]


def _exact_divide(a: Number, b: Number) -> Number:
    if a % b:
        raise ExpressionError(f"{a} / {b} is not a whole number")
    return a // b  # not divmod, which symbolic integers lack


def ceil_div(a: int, b: int) -> int:
    """Quotient of two integers, rounded towards plus infinity."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """Smallest multiple of ``b`` that is not less than ``a``."""
    return ceil_div(a, b) * b


# name -> (number of operands, function). `/` is exact on purpose: a tail must be rounded by name, never cut off.
OPERATORS: dict[str, tuple[int, Callable[..., Any]]] = {
    "+": (2, operator.add),
    "-": (2, operator.sub),
    "*": (2, operator.mul),
    "/": (2, _exact_divide),
    "//": (2, operator.floordiv),
    "%": (2, operator.mod),
    "fdiv": (2, operator.truediv),
    "neg": (1, operator.neg),
    "min": (2, min),
    "max": (2, max),
    "ceil_div": (2, ceil_div),
    "round_up": (2, round_up),
    "==": (2, operator.eq),
    "!=": (2, operator.ne),
    "<": (2, operator.lt),
    "<=": (2, operator.le),
    ">": (2, operator.gt),
    ">=": (2, operator.ge),
    "not": (1, operator.not_),
}
LAZY_OPERATORS: dict[str, int] = {"and": 2, "or": 2, "if": 3}

MAX_DEPTH = 100  # of lists in lists, so that no walk over an expression gets near Python's limit of recursion
MAX_BITS = 64  # of an integer that is written out: what shapes and scalars hold
MAX_NODES = 1000  # of operators, names and numbers together, so that no product of all of them takes long

# What the operators raise; of a float that overflows, of text among the axes, of an integer too long to be shown.
_FAILURES = (ArithmeticError, TypeError, ValueError)


def validate(expression: Any) -> None:
    """Raise ``ExpressionError`` unless ``expression`` is well formed: operators known, operand counts right, names
    identifiers, numbers finite and of at most ``MAX_BITS``, lists at most ``MAX_DEPTH`` deep, and all of it at most
    ``MAX_NODES`` nodes."""
    nodes = _count(expression, 0)
    if nodes > MAX_NODES:
        raise ExpressionError(f"an expression has at most {MAX_NODES} operators, names and numbers, got {nodes}")


def _count(expression: Any, depth: int) -> int:
    """How many nodes a well-formed expression has; ``depth`` counts the lists around it."""
    if isinstance(expression, bool) or not isinstance(expression, (int, float, str, list)):
        raise ExpressionError(f"an expression is a number, a name or a list, got {type(expression).__name__}")
    if isinstance(expression, list):
        if depth == MAX_DEPTH:
            raise ExpressionError(f"an expression is at most {MAX_DEPTH} operators deep")
        return 1 + sum([_count(operand, depth + 1) for operand in _operands(expression)])
    if isinstance(expression, str) and not expression.isidentifier():
        raise ExpressionError(f"a name of an expression is an identifier, got {expression!r}")
    if isinstance(expression, int) and expression.bit_length() > MAX_BITS:
        raise ExpressionError(f"an integer of an expression has at most {MAX_BITS} bits, got "
                              f"{expression.bit_length()}")
    if isinstance(expression, float) and not math.isfinite(expression):
        raise ExpressionError(f"a number of an expression is finite, got {expression}")
    return 1


def _operands(expression: list[Any]) -> list[Any]:
    """Those of a list that starts with an operator and has as many as it takes."""
    if not expression or not isinstance(expression[0], str):
        got = type(expression[0]).__name__ if expression else "an empty list"
        raise ExpressionError(f"an expression list starts with an operator name, got {got}")
    name, *operands = expression
    expected = LAZY_OPERATORS.get(name) or OPERATORS.get(name, (None, None))[0]
    if expected is None:
        known = ", ".join([*OPERATORS, *LAZY_OPERATORS])
        raise ExpressionError(f"unknown operator {name!r}; known are {known}")
    if len(operands) != expected:
        raise ExpressionError(f"operator {name!r} takes {expected} operands, got {len(operands)}")
    return operands


def names(expression: Expression) -> set[str]:
    """The names that an expression refers to."""
    if isinstance(expression, str):
        return {expression}
    if isinstance(expression, list):
        return set().union(*(names(operand) for operand in expression[1:]))
    return set()


def evaluate(expression: Expression, values: Mapping[str, Number]) -> Number:
    """Value of a validated expression.

    ``values`` gives every name that the expression uses; a missing one, a division by zero, an inexact ``/`` and
    whatever else cannot be computed raises ``ExpressionError``.
    """
    kind = type(expression)
    if kind is str:
        try:
            return values[expression]
        except KeyError:
            raise ExpressionError(
                f"{expression!r} has no value; known are {', '.join(sorted(values)) or 'none'}") from None
    if kind is not list:
        return expression
    name = expression[0]
    if name == "if":
        return evaluate(expression[2] if evaluate(expression[1], values) else expression[3], values)
    if name == "and":
        return bool(evaluate(expression[1], values)) and bool(evaluate(expression[2], values))
    if name == "or":
        return bool(evaluate(expression[1], values)) or bool(evaluate(expression[2], values))
    function = OPERATORS[name][1]
    return _apply(expression, function, *(evaluate(operand, values) for operand in expression[1:]))


def _apply(expression: Expression, apply: Callable[..., Any], *operands: Number) -> Number:
    """What an operator of ``expression`` gives; whatever it raises as an ``ExpressionError``."""
    try:
        return apply(*operands)
    except ExpressionError:
        raise
    except ZeroDivisionError:
        raise ExpressionError(f"{to_text(expression)} divides by zero") from None
    except _FAILURES as error:
        raise ExpressionError(f"{to_text(expression)} cannot be computed: {error}") from None


def function(expression: Expression) -> Function:
    """A validated expression as a function of its values: ``evaluate``, several times as fast."""
    compiled = _function(expression)

    def call(values: Mapping[str, Number]) -> Number:
        try:
            return compiled(values)
        except (KeyError, *_FAILURES):
            return evaluate(expression, values)  # says what is wrong

    return call


def _function(expression: Expression) -> Function:
    if isinstance(expression, str):
        return operator.itemgetter(expression)
    if not isinstance(expression, list):
        return lambda values: expression
    name, *operands = expression
    a, b, c = (*map(_function, operands), None, None)[:3]
    if name == "if":
        return lambda values: b(values) if a(values) else c(values)
    if name == "and":
        return lambda values: bool(a(values)) and bool(b(values))
    if name == "or":
        return lambda values: bool(a(values)) or bool(b(values))
    count, apply = OPERATORS[name]
    if count == 1:
        return lambda values: apply(a(values))
    left, right = operands
    if not isinstance(right, (list, str)):
        return lambda values: apply(a(values), right)
    if isinstance(left, str) and isinstance(right, str):
        return lambda values: apply(values[left], values[right])
    return lambda values: apply(a(values), b(values))


def solvable(expression: Expression, name: str) -> bool:
    """Whether ``solve`` can find ``name``: it occurs once, under ``+ - * /`` and ``neg`` only."""
    if not isinstance(expression, list):
        return expression == name
    operands = [operand for operand in expression[1:] if name in names(operand)]
    return expression[0] in ("+", "-", "*", "/", "neg") and len(operands) == 1 and solvable(operands[0], name)


# operator, whether the unknown is its left operand -> what gives the unknown of the result and the other operand, and
# whether it takes the other one first
_INVERSES: dict[tuple[str, bool], tuple[Callable[..., Any], bool]] = {
    ("+", True): (operator.sub, False), ("+", False): (operator.sub, False),
    ("-", True): (operator.add, False), ("-", False): (operator.sub, True),
    ("*", True): (_exact_divide, False), ("*", False): (_exact_divide, False),
    ("/", True): (operator.mul, False), ("/", False): (_exact_divide, True),
}


def solve(expression: Expression, name: str, result: Number, values: Mapping[str, Number]) -> Number:
    """The value of ``name`` for which a solvable expression has ``result``; ``values`` gives every other name.

    ``ExpressionError`` if it is not a whole number.
    """
    if not isinstance(expression, list):
        return result
    operator_name, *operands = expression
    if operator_name == "neg":
        return solve(operands[0], name, -result, values)
    left = name in names(operands[0])
    unknown, other = (operands[0], operands[1]) if left else (operands[1], operands[0])
    other = evaluate(other, values)
    if operator_name in ("*", "/") and (other == 0 or (operator_name == "/" and not left and result == 0)):
        raise ExpressionError(f"{to_text(expression)} = {result} does not give {name}")
    inverse, exchanged = _INVERSES[operator_name, left]
    result = _apply(expression, inverse, *((other, result) if exchanged else (result, other)))
    return solve(unknown, name, result, values)


_INFIX = {"+", "-", "*", "/", "//", "%", "==", "!=", "<", "<=", ">", ">=", "and", "or"}


def to_text(expression: Expression) -> str:
    """The expression as a person would write it, for messages."""
    if not isinstance(expression, list):
        return str(expression)
    name, *operands = expression
    parts = [f"({to_text(o)})" if isinstance(o, list) and o[0] in _INFIX and name in _INFIX else to_text(o)
             for o in operands]
    if name in _INFIX:
        return f"{parts[0]} {name} {parts[1]}"
    if name == "neg":
        return f"-{parts[0]}"
    if name == "not":
        return f"not {parts[0]}"
    return f"{name}({', '.join(parts)})"


def solving_order(
    shapes: Sequence[Expression], known: Iterable[str]
) -> tuple[list[tuple[int, str | None]], set[str]]:
    """In which order shape entries give the dimensions, each by those before it.

    Returns ``(index of the entry, dimension that it gives)``, None where it gives none and can be checked, and the
    dimensions that no entry gives.
    """
    given, order = set(known), []
    pending = [(index, entry, names(entry)) for index, entry in enumerate(shapes)]
    unsolved = set().union(*(used for _, _, used in pending)) - given
    while True:
        later = []
        for index, entry, used in pending:
            missing = used - given
            if not missing or (len(missing) == 1 and solvable(entry, *missing)):
                given |= missing
                order.append((index, next(iter(missing), None)))
            else:
                later.append((index, entry, used))
        if len(later) == len(pending):
            return order, unsolved - given
        pending = later
