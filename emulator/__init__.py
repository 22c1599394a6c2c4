"""Executes PTX on the CPU: `load` a module, make a `Device`, map host buffers, launch.

Pure Python and numpy. Modelled: threads, warps, CTAs and clusters, every state space, barriers, asynchronous copies
and tensor cores with the order that the seed gives them. Not modelled: time, caches, register limits, textures,
device-side calls. Memory is sequentially consistent, and grids run one after another; whether a grid waits for those
before it is checked.
"""

from emulator.checks.faults import BarrierFault as BarrierFault
from emulator.checks.faults import DeadlockFault as DeadlockFault
from emulator.checks.faults import DependenceFault as DependenceFault
from emulator.checks.faults import DivergenceFault as DivergenceFault
from emulator.checks.faults import EmulatorError as EmulatorError
from emulator.checks.faults import EmulatorFault as EmulatorFault
from emulator.checks.faults import LaunchError as LaunchError
from emulator.checks.faults import MemoryFault as MemoryFault
from emulator.checks.faults import PtxSyntaxError as PtxSyntaxError
from emulator.checks.faults import TrapFault as TrapFault
from emulator.checks.faults import UninitializedRead as UninitializedRead
from emulator.checks.faults import UnsupportedInstruction as UnsupportedInstruction
from emulator.checks.names import CHECKS as CHECKS
from emulator.device import Device as Device
from emulator.device import Module as Module
from emulator.device import load as load
from emulator.machine.state import Statistics as Statistics
