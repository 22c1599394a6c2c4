"""Random problems of any family: numbers drawn, then repaired until its constraints hold and every shape is whole."""

from __future__ import annotations

from typing import Any, NamedTuple

from loader import expression
from loader.errors import ExpressionError
from loader.manifest import DTYPE_BYTES, Family

EXTENTS = (0, 1, 2, 3, 4, 5, 7, 8, 12, 16, 24, 31, 32, 48, 64, 96, 100, 128, 160, 192, 256, 320, 384, 512, 640, 768,
           1000, 1024, 1536, 2048, 3072, 4096, 5120, 7168, 16384, 65536, 131072)
REPAIRS = 60
MAX_BYTES = 1 << 40


class Buffer(NamedTuple):
    dtype: str
    shape: tuple[int, ...]


class Problem(NamedTuple):
    """Buffers by argument; scalars by name as a call gives them, words for choices."""

    buffers: dict[str, Buffer]
    scalars: dict[str, Any]


def draw(rng: Any, family: Family, dtypes: dict[str, str]) -> Problem:
    """One that most likely fits its family; ``dtypes``: of arguments for which they are not free."""
    present = [a for a in family.arguments if not a.optional or rng.random() < 0.6]
    numbers = {name: int(rng.choice(EXTENTS)) for name in family.dimensions}
    numbers |= {scalar.name: _number(rng, scalar) for scalar in family.scalars}
    chosen = {a.name: dtypes.get(a.name) or str(rng.choice(a.dtypes)) for a in present}
    numbers |= {f"sizeof_{a.name}": DTYPE_BYTES[chosen[a.name]] if a in present else 0 for a in family.arguments}
    given = {name for a in present for entry in a.shape for name in expression.names(entry)}
    numbers |= {name: 0 for name in family.dimensions if name not in given}
    fixed = {name for name in family.dimensions if name not in given} | {f"sizeof_{a.name}" for a in family.arguments}
    fixed |= {scalar.name for scalar in family.scalars if scalar.choices}
    for _ in range(REPAIRS):
        broken = _broken(family, present, numbers)
        if broken is None:
            break
        _repair(rng, broken, numbers, fixed)
    shapes = {a.name: tuple(_extent(entry, numbers) for entry in a.shape) for a in present}
    return Problem({name: Buffer(chosen[name], shape) for name, shape in shapes.items()},
                   {s.name: s.choices[numbers[s.name]] if s.choices else numbers[s.name] for s in family.scalars
                    if s.default is None or rng.random() < 0.7})


def damage(rng: Any, problem: Problem) -> Problem:
    """The same with one extent changed, which most likely fits no longer."""
    name = str(rng.choice(sorted(problem.buffers)))
    shape = list(problem.buffers[name].shape)
    if shape:
        shape[int(rng.integers(len(shape)))] += int(rng.choice([1, 2, 3, 128]))
    return problem._replace(buffers={**problem.buffers, name: problem.buffers[name]._replace(shape=tuple(shape))})


def _number(rng: Any, scalar: Any) -> int | float:
    if scalar.choices:
        return int(rng.integers(len(scalar.choices)))
    if scalar.default is not None and rng.random() < 0.5:
        return scalar.default
    return float(rng.normal()) if scalar.dtype == "f32" else int(rng.choice(EXTENTS))


def _extent(entry: Any, numbers: dict[str, Any]) -> int:
    """Of a shape; 1 where it cannot be computed, for a call that is then refused."""
    try:
        value = expression.evaluate(entry, numbers)
    except ExpressionError:
        return 1
    return min(max(value, 0), 1 << 62)


def _broken(family: Family, present: list[Any], numbers: dict[str, Any]) -> Any:
    """The first rule that does not hold, as an expression."""
    for argument in present:
        size = 8
        for entry in argument.shape:
            try:
                value = expression.evaluate(entry, numbers)
            except ExpressionError:
                return entry
            if value < 0 or (size := size * max(value, 1)) > MAX_BYTES:
                return entry
    for rule in family.constraints:
        try:
            if not expression.evaluate(rule.expression, numbers):
                return rule.expression
        except ExpressionError:
            return rule.expression
    return None


def _repair(rng: Any, rule: Any, numbers: dict[str, Any], fixed: set[str]) -> None:
    """Change one number so that the rule may hold."""
    free = sorted(expression.names(rule) - fixed)
    if isinstance(rule, list) and rule[0] in ("and", "or"):
        _repair(rng, rule[int(rng.integers(1, 3))], numbers, fixed)
        return
    if not free:
        return
    name = str(rng.choice(free))
    try:
        numbers[name] = _fitting(rng, rule, name, numbers)
    except ExpressionError:
        numbers[name] = int(rng.choice(EXTENTS))


def _fitting(rng: Any, rule: Any, name: str, numbers: dict[str, Any]) -> int:
    if isinstance(rule, list) and rule[0] in ("==", ">=", "<=", "<"):
        operator, left, right = rule
        if left == name and operator in ("==", ">="):
            return int(expression.evaluate(right, numbers))
        if right == name and operator in ("==", "<="):
            return int(expression.evaluate(left, numbers))
        if left == name:
            return int(rng.integers(0, max(1, min(expression.evaluate(right, numbers), 4096))))
        if isinstance(left, list) and left[:2] == ["%", name]:
            return expression.round_up(max(int(numbers[name]), 1), expression.evaluate(left[2], numbers) or 1)
    return int(rng.choice(EXTENTS))
