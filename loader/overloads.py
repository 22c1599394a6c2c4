"""A kernel name that takes several sets of arguments: the names given say which family a call is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .call import Call
from .manifest import own_names
from .plan import Plan
from .registry import Registry


def overloads(found: Registry, name: str) -> list[str]:
    """The families that are called by the name of this one, too."""
    return [family.name for family in found.families.values() if family.overloads == name]


class OverloadedCall:
    """The calls of a family and of those that overload it; stands where ``Call`` stands for one."""

    def __init__(self, call: Call, others: Sequence[Call]) -> None:
        self._call = call
        self._others = [(name, other) for other in others for name in own_names(other.family, call.family)]

    def of(self, kwargs: Mapping[str, Any]) -> tuple[Call, Mapping[str, Any]]:
        """The call that takes these arguments, and the arguments."""
        for name, other in self._others:
            if name in kwargs:
                return other, kwargs
        return self._call, kwargs

    def launch(self, args: Sequence[Any], kwargs: Mapping[str, Any], stream: Any) -> None:
        self.of(kwargs)[0].launch(args, kwargs, stream)

    def plan(self, args: Sequence[Any], kwargs: Mapping[str, Any], stream: Any) -> Plan:
        return self.of(kwargs)[0].plan(args, kwargs, stream)
