"""Special registers (PTX ISA 10) of the warps of a CTA."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..checks.faults import UnsupportedInstruction
from .cta import Cta

_LANES = np.arange(32, dtype=np.uint32)
_ONE, _WIDE_TWO = np.uint32(1) << _LANES, np.uint64(2) << _LANES.astype(np.uint64)


def _thread(cta: Cta, warps: np.ndarray, axis: int) -> np.ndarray:
    x, y, _ = cta.launch.block
    thread = warps * np.uint32(32) + _LANES
    return (thread // (1, x, x * y)[axis]) % cta.launch.block[axis]


_OF_AXIS: dict[str, Callable[[Cta, np.ndarray, int], object]] = {
    "tid": _thread,
    "ntid": lambda cta, warps, axis: cta.launch.block[axis],
    "ctaid": lambda cta, warps, axis: cta.index[axis],
    "nctaid": lambda cta, warps, axis: cta.launch.grid[axis],
    "clusterid": lambda cta, warps, axis: cta.index[axis] // cta.launch.cluster[axis],
    "nclusterid": lambda cta, warps, axis: cta.launch.grid[axis] // cta.launch.cluster[axis],
    "cluster_ctaid": lambda cta, warps, axis: cta.index[axis] % cta.launch.cluster[axis],
    "cluster_nctaid": lambda cta, warps, axis: cta.launch.cluster[axis],
}
_SINGLE: dict[str, Callable[[Cta, np.ndarray], object]] = {
    "laneid": lambda cta, warps: _LANES[None],
    "warpid": lambda cta, warps: warps,
    "nwarpid": lambda cta, warps: cta.launch.warps,
    "cluster_ctarank": lambda cta, warps: cta.rank,
    "cluster_nctarank": lambda cta, warps: len(cta.cluster.ctas),
    "is_explicit_cluster": lambda cta, warps: int(cta.launch.explicit_cluster),
    "smid": lambda cta, warps: cta.slot,
    "nsmid": lambda cta, warps: cta.launch.device.sm_count,
    "lanemask_eq": lambda cta, warps: _ONE,
    "lanemask_le": lambda cta, warps: _WIDE_TWO - np.uint64(1),
    "lanemask_lt": lambda cta, warps: _ONE - np.uint32(1),
    "lanemask_ge": lambda cta, warps: ~(_ONE - np.uint32(1)),
    "lanemask_gt": lambda cta, warps: 0xFFFFFFFF ^ (_WIDE_TWO - np.uint64(1)),
    "dynamic_smem_size": lambda cta, warps: cta.launch.dynamic_shared,
    "total_smem_size": lambda cta, warps: cta.launch.shared_size,
    "gridid": lambda cta, warps: 0,
    "current_graph_exec": lambda cta, warps: 0,
}


def special(name: str, cta: Cta, warps: np.ndarray) -> object:
    """The value, of a shape that goes with [warps, 32]; `warps` are uint32 numbers in the CTA, [warps, 1]."""
    base, _, axis = name.partition(".")
    if axis in ("x", "y", "z") and base in _OF_AXIS:
        return _OF_AXIS[base](cta, warps, "xyz".index(axis))
    if name not in _SINGLE:
        raise UnsupportedInstruction(f"special register %{name} is not implemented")
    return _SINGLE[name](cta, warps)
