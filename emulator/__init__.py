"""Executes PTX on the CPU: `load` a module, make a `Device`, map host buffers, launch.

Pure Python and numpy. Modelled: threads, warps, CTAs and clusters, every state space, barriers, asynchronous copies
and tensor cores with the order that the seed gives them. Not modelled: time, caches, register limits, textures,
device-side calls. Memory is sequentially consistent, and grids run one after another; whether a grid waits for those
before it is checked.
"""

from emulator.checks import CHECKS as CHECKS
from emulator.device import Device as Device
from emulator.device import Module as Module
from emulator.device import load as load
from emulator.faults import BarrierFault as BarrierFault
from emulator.faults import DeadlockFault as DeadlockFault
from emulator.faults import DependenceFault as DependenceFault
from emulator.faults import DivergenceFault as DivergenceFault
from emulator.faults import EmulatorError as EmulatorError
from emulator.faults import EmulatorFault as EmulatorFault
from emulator.faults import LaunchError as LaunchError
from emulator.faults import MemoryFault as MemoryFault
from emulator.faults import PtxSyntaxError as PtxSyntaxError
from emulator.faults import TrapFault as TrapFault
from emulator.faults import UninitializedRead as UninitializedRead
from emulator.faults import UnsupportedInstruction as UnsupportedInstruction
from emulator.scheduler import Statistics as Statistics
