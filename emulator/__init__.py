"""Executes PTX on the CPU: `load` a module, make a `Device`, map host buffers, launch.

Pure Python and numpy. Modelled: threads, warps, CTAs and clusters, every state space, barriers, asynchronous copies
and tensor cores with the order that the seed gives them. Not modelled: time, caches, register limits, textures,
device-side calls. Memory is sequentially consistent, and grids run one after another; whether a grid waits for those
before it is checked.
"""

from .checks.faults import BarrierFault as BarrierFault
from .checks.faults import DeadlockFault as DeadlockFault
from .checks.faults import DependenceFault as DependenceFault
from .checks.faults import DivergenceFault as DivergenceFault
from .checks.faults import EmulatorError as EmulatorError
from .checks.faults import EmulatorFault as EmulatorFault
from .checks.faults import LaunchError as LaunchError
from .checks.faults import MemoryFault as MemoryFault
from .checks.faults import PtxSyntaxError as PtxSyntaxError
from .checks.faults import TrapFault as TrapFault
from .checks.faults import UninitializedRead as UninitializedRead
from .checks.faults import UnsupportedInstruction as UnsupportedInstruction
from .checks.names import CHECKS as CHECKS
from .device import Device as Device
from .device import Module as Module
from .device import load as load
from .machine.state import Statistics as Statistics
