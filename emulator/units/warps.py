"""Cohorts with all that PTX can ask of them."""

from __future__ import annotations

from ..machine.warp import WarpOperations
from .matrices import MatrixOperations
from .tensor_memory import TensorMemoryOperations
from .warpgroups import WarpgroupOperations


class Warps(WarpOperations, MatrixOperations, WarpgroupOperations, TensorMemoryOperations):
    """The type of a cohort whose code `execution` generates."""
