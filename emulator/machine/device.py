"""An architecture's limits, and global memory: mapped host buffers and the variables of modules."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..checks.faults import LaunchError, UnsupportedInstruction
from ..checks.names import selected
from ..text.instructions import Source
from .memory import Region, Space, host_bytes

_SHARED_LIMITS = {"90": 227 << 10, "100": 227 << 10, "103": 227 << 10, "120": 99 << 10, "121": 99 << 10}


class Machine:
    """A device of an architecture such as "120a"; `emulator.Device` says what the arguments are."""

    def __init__(self, arch: str, seed: int = 0, lazy: bool = True, checks: bool | Iterable[str] = True):
        number = arch.rstrip("af")
        if number not in _SHARED_LIMITS:
            raise LaunchError(f"architecture {arch!r} is not one of {', '.join(_SHARED_LIMITS)} with a or f")
        self.arch, self.seed, self.lazy, self.checks = arch, seed, lazy, selected(checks)
        self.shared_limit = _SHARED_LIMITS[number]
        self.cuts_sums = number == "90"  # recorded of Hopper alone
        self.sm_count = 132
        self.space = Space()
        self._unfinished: list[Region] = []  # of grids that could be running when the next one starts
        self._variables: dict[int, tuple[Source, dict[str, int], list[np.ndarray]]] = {}

    def map_buffer(self, pointer: int, size: int, writable: bool, name: str) -> None:
        """Makes host memory reachable at its own address; it is used in place. Raises MemoryFault where buffers
        overlap.
        """
        self.space.map(Region(name, pointer, host_bytes(pointer, size), writable))

    def unmap_buffer(self, pointer: int) -> None:
        self.space.unmap(pointer)

    def check_target(self, target: str) -> None:
        """a: this architecture alone; f: the same major number and a minor not lower; neither: this or newer."""
        number, have = target.removeprefix("sm_"), int(self.arch.rstrip("af"))
        plain = int(number.rstrip("af"))
        if number.endswith("a"):
            good = have == plain
        elif number.endswith("f"):
            good = have // 10 == plain // 10 and have >= plain
        else:
            good = have >= plain
        if not good:
            raise LaunchError(f"PTX for {target} on a device of architecture {self.arch}")

    def module_variables(self, source: Source) -> dict[str, int]:
        """Addresses of a module's .global and .const variables, which are allocated on first use and live as long
        as the device.
        """
        held = self._variables.get(id(source))
        if held is not None:
            return held[1]
        addresses: dict[str, int] = {}
        arrays = []
        variables = list(source.variables.values())
        for function in source.entries.values():
            variables += function.variables.values()
        variables = [v for v in variables if v.space in ("global", "const") and v.size]
        for v in variables:
            memory = np.zeros(v.size + v.align, np.uint8)
            start = -memory.ctypes.data % v.align
            data = memory[start : start + v.size]
            data[: len(v.data)] = np.frombuffer(v.data, np.uint8)
            addresses[v.name] = data.ctypes.data
            arrays.append(memory)
            self.space.map(Region(f"variable {v.name}", data.ctypes.data, data, v.space == "global"))
        for v in variables:
            for offset, symbol in v.references:
                if symbol not in addresses:
                    raise UnsupportedInstruction(f"variable {v.name} holds the address of {symbol}, which is unknown")
                target = self.space.find(addresses[v.name] + offset, 8).bytes_at(addresses[v.name] + offset, 8)
                target[:] = (target.view(np.uint64) + np.uint64(addresses[symbol])).view(np.uint8)
        self._variables[id(source)] = (source, addresses, arrays)
        return addresses
