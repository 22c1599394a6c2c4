"""The emulated device: mapped host buffers, tensor maps, modules and launches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from functools import lru_cache

import numpy as np

from emulator.checks.faults import LaunchError, UnsupportedInstruction, shortened
from emulator.checks.names import selected
from emulator.execution.program import Program
from emulator.machine.dependence import EarlySpace
from emulator.machine.launch import Launch, Statistics
from emulator.machine.memory import Region, Space, host_bytes
from emulator.text.instructions import Source
from emulator.text.parse import parse
from emulator.units import tma

_SHARED_LIMITS = {"90": 227 << 10, "100": 227 << 10, "103": 227 << 10, "120": 99 << 10, "121": 99 << 10}
_SWIZZLES = {0: "none", 32: "32B", 64: "64B", 128: "128B"}
launcher: ContextVar[Callable[..., Launch]] = ContextVar("launcher", default=Launch)  # `tools.profile` sets another


class Module:
    """A parsed module. Code is generated for a kernel when it is first launched."""

    def __init__(self, source: Source):
        self.source = source
        self._programs: dict[str, Program] = {}

    @property
    def entries(self) -> tuple[str, ...]:
        return tuple(self.source.entries)

    def program(self, name: str) -> Program:
        found = self._programs.get(name)
        if found is None:
            function = self.source.entries.get(name)
            if function is None:
                have = ", ".join(map(shortened, self.entries))
                raise LaunchError(f"no kernel {shortened(name)!r} in the module; it has {have}")
            found = self._programs[name] = Program(function, self.source.files, self.source.target)
        return found


@lru_cache(maxsize=64)
def load(ptx_text: str) -> Module:
    """The module of a PTX text, parsed once per text. Raises PtxSyntaxError."""
    return Module(parse(ptx_text))


class Device:
    """An emulated device of an architecture such as "120a".

    Args:
        seed: decides the schedule of warps and of asynchronous operations.
        lazy: asynchronous operations are carried out late, at points that the seed decides; otherwise when they are
            issued.
        checks: all of `CHECKS`, none, or the names of some. Bounds, alignment and barriers are checked always.
    """

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
        self._variables: dict[int, tuple[Module, dict[str, int], list[np.ndarray]]] = {}

    def map_buffer(self, pointer: int, size: int, writable: bool, name: str) -> None:
        """Makes host memory reachable at its own address; it is used in place. Raises MemoryFault where buffers
        overlap.
        """
        self.space.map(Region(name, pointer, host_bytes(pointer, size), writable))

    def unmap_buffer(self, pointer: int) -> None:
        self.space.unmap(pointer)

    def encode_tensor_map(
        self,
        pointer: int,
        element: str,
        dims: Sequence[int],
        strides: Sequence[int],
        box: Sequence[int],
        swizzle: int | str,
    ) -> bytes:
        """The 128 bytes of a tensor map (`emulator.units.tma` describes them).

        Args:
            element: one of `tma.ELEMENTS`; u4_align8 and u4_align16 are packed FP4.
            dims, box: in elements, innermost first.
            strides: bytes, of the dimensions after the innermost.
            swizzle: bytes: 0, 32, 64 or 128; or a name in `tma.SWIZZLES`.

        Raises:
            LaunchError: for what cuTensorMapEncodeTiled would refuse.
        """
        mode = _SWIZZLES.get(swizzle, swizzle)
        if element not in tma.ELEMENTS or mode not in tma.SWIZZLES:
            raise LaunchError(f"tensor map element {element!r} or swizzle {swizzle!r} is not known")
        steps = (1,) * len(dims)
        return tma.TensorMap(pointer, element, tuple(dims), tuple(strides), tuple(box), mode, steps).encode()

    def launch(
        self, module: Module, entry: str, grid: Sequence[int], block: Sequence[int], cluster: Sequence[int],
        shared_bytes: int, parameters: bytes, programmatic: bool = False,
    ) -> Statistics:  # fmt: skip
        """Runs a kernel to its end. Raises LaunchError, or an EmulatorFault that says where the kernel went wrong.

        Args:
            programmatic: the grid does not wait for the end of the one launched before on this device (programmatic
            stream serialization): until griddepcontrol.wait, what that one writes is out of reach.
        """
        target = module.source.target
        self._check_target(target)
        shapes = [tuple(int(n) for n in (*shape, 1, 1)[:3]) for shape in (grid, block, cluster)]
        launch = launcher.get()(self, module, entry, *shapes, int(shared_bytes), bytes(parameters))
        before = self._unfinished if programmatic else []
        launch.early_space = EarlySpace(self.space, before) if before else self.space
        statistics = launch.run()
        if not launch.allows_dependents:
            self._unfinished = []
        else:
            self._unfinished = [*self.space.regions, *([] if launch.waits_before else before)]
        return statistics

    def _check_target(self, target: str) -> None:
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

    def module_variables(self, module: Module) -> dict[str, int]:
        """Addresses of the module's .global and .const variables, which are allocated on first use and live as long
        as the device.
        """
        held = self._variables.get(id(module))
        if held is not None:
            return held[1]
        addresses: dict[str, int] = {}
        arrays = []
        variables = list(module.source.variables.values())
        for function in module.source.entries.values():
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
        self._variables[id(module)] = (module, addresses, arrays)
        return addresses
