"""Programmatic dependent launch (PTX ISA 9.0, section 9.7.13.13): what a CTA may touch before it has waited.

A grid that is launched so starts once every CTA of the grid before has executed griddepcontrol.launch_dependents or has
exited, and grids before that one are over only if some of its CTAs had waited for them by then. Grids run one after
another here, so nothing is read too early; but memory of grids that could still be running is out of reach of a CTA
until one of its threads has executed griddepcontrol.wait: what they may write, and for writes also what they may read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from ..checks.faults import DependenceFault, MemoryFault
from .memory import Region, Space


class EarlySpace(Space):
    """Global memory without what unfinished grids may write; what they may read is read-only."""

    def __init__(self, space: Space, unfinished: Iterable[Region]) -> None:
        super().__init__()
        self._whole, unfinished = space, list(unfinished)
        self.regions = [piece for region in space.regions for piece in _untouched(region, unfinished)]

    def find(self, address: int, size: int = 1) -> Region:
        try:
            return super().find(address, size)
        except MemoryFault:
            region = self._whole.find(address, size)
        message = f"access of {size} bytes to {region.name}, where a grid before this one may still write"
        raise DependenceFault(f"{message}, before griddepcontrol.wait", address=address)


def _untouched(region: Region, unfinished: list[Region]) -> Iterator[Region]:
    """The pieces of a region that no unfinished grid writes."""
    end = region.base + region.size
    near = [other for other in unfinished if other.base < end and region.base < other.base + other.size]
    edges = {region.base, end} | {edge for other in near for edge in (other.base, other.base + other.size)}
    for low, high in pairwise(sorted(edge for edge in edges if region.base <= edge <= end)):
        users = [other for other in near if other.base < high and low < other.base + other.size]
        if not any(other.writable for other in users):
            data = region.data[low - region.base : high - region.base]
            name = f"{region.name} (until griddepcontrol.wait)" if users else region.name
            yield Region(name, low, data, region.writable and not users)
