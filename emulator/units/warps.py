"""Cohorts with all that PTX can ask of them."""

from __future__ import annotations

from emulator.machine.warp import WarpOperations
from emulator.units.matrices import MatrixOperations
from emulator.units.tensor_memory import TensorMemoryOperations
from emulator.units.warpgroups import WarpgroupOperations


class Warps(WarpOperations, MatrixOperations, WarpgroupOperations, TensorMemoryOperations):
    """The type of a cohort whose code `execution` generates."""
