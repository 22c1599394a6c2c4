"""Which variants the loader's selection can reach, found by evaluating every cost over the declared domain."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from loader.errors import ExpressionError
from loader.expression import Expression, Number, function, names


class Priced(NamedTuple):
    """A variant: its cost, ``None`` where measured rows decide, and what it requires of a problem."""

    cost: Expression | None
    requires: Sequence[Expression] = ()


def unreachable(
    costs: Mapping[str, Priced],
    features: Mapping[str, Expression],
    domain: Mapping[str, Sequence[Number]],
    constraints: Sequence[Expression],
    measured: Sequence[Mapping[str, float]],
) -> list[str]:
    """The variants of one arch and output type that win nowhere.

    costs: of each variant. domain: name -> values; its cross product, less the
    points that break a constraint, is searched. measured: variant -> microseconds, a row each. As in the loader,
    measured rows leave costs without a say, and among equals the name that sorts first wins. Raises
    ``ExpressionError`` where a cost has no value at a point.
    """
    if measured:
        winners = {min(sorted(row), key=row.__getitem__) for row in measured}
    else:
        winners = _cheapest(*(_frozen(part) for part in (sorted(costs.items()), sorted(features.items()),
                                                        sorted(domain.items()), constraints)))  # fmt: skip
    return [name for name in costs if name not in winners]


@cache
def _cheapest(costs: tuple, features: tuple, domain: tuple, constraints: tuple) -> frozenset[str]:
    """Cached because archs and output types usually share their costs."""
    priced = [(name, function(_thawed(cost)), [function(_thawed(rule)) for rule in requires])
              for name, (cost, requires) in costs if cost is not None]
    if len(costs) == 1:  # the only one needs no estimate
        return frozenset({costs[0][0]})
    if not priced:
        return frozenset()
    feature_functions = [(name, function(_thawed(expression))) for name, expression in features]
    winners = set()
    for point in _points(domain, [_thawed(constraint) for constraint in constraints]):
        values = {**point, **{name: feature(point) for name, feature in feature_functions}}
        fitting = [item for item in priced if all(holds(values) for holds in item[2])]
        winners |= {min(fitting, key=lambda item: item[1](values))[0]} if fitting else set()  # noqa: B023
    return frozenset(winners)


def _points(domain: tuple, constraints: list[Expression]) -> Iterator[dict[str, Number]]:
    keys = [key for key, _ in domain]
    if not keys:
        raise ExpressionError("select.domain is empty, so no two tiles can be compared")
    applicable = [function(constraint) for constraint in constraints if names(constraint) <= set(keys)]
    for values in itertools.product(*(values for _, values in domain)):
        point = dict(zip(keys, values, strict=True))
        if all(holds(point) for holds in applicable):
            yield point


def _frozen(value: object) -> object:
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def _thawed(value: object) -> Expression:
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value
