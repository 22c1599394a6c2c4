"""The emulated device, of all rooms together: modules, tensor maps and launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import lru_cache

from .checks.faults import LaunchError, shortened
from .execution.program import Program
from .machine.dependence import EarlySpace
from .machine.device import Machine
from .machine.launch import Launch
from .machine.state import Statistics
from .text.instructions import Source
from .text.parse import parse
from .units import tma
from .units.warps import Warps

_SWIZZLES = {0: "none", 32: "32B", 64: "64B", 128: "128B"}


def _launch(*arguments: object) -> Launch:
    return Launch(Warps, *arguments)


launcher: ContextVar[Callable[..., Launch]] = ContextVar("launcher", default=_launch)  # `tools.profile` sets another


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
            found = self._programs[name] = Program(function, self.source.files)
        return found


@lru_cache(maxsize=64)
def load(ptx_text: str) -> Module:
    """The module of a PTX text, parsed once per text. Raises PtxSyntaxError."""
    return Module(parse(ptx_text))


class Device(Machine):
    """An emulated device of an architecture such as "120a".

    Args:
        seed: decides the schedule of warps and of asynchronous operations.
        lazy: asynchronous operations are carried out late, at points that the seed decides; otherwise when they are
            issued.
        checks: all of `CHECKS`, none, or the names of some. Bounds, alignment and barriers are checked always.
    """

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
        self.check_target(module.source.target)
        shapes = [tuple(int(n) for n in (*shape, 1, 1)[:3]) for shape in (grid, block, cluster)]
        program = module.program(entry)
        launch = launcher.get()(self, module.source, program, *shapes, int(shared_bytes), bytes(parameters))
        before = self._unfinished if programmatic else []
        launch.early_space = EarlySpace(self.space, before) if before else self.space
        statistics = launch.run()
        if not launch.allows_dependents:
            self._unfinished = []
        else:
            self._unfinished = [*self.space.regions, *([] if launch.waits_before else before)]
        return statistics
