"""The error tree of the emulated device."""

from __future__ import annotations

NAME = 80  # characters of a kernel's name that messages show: those of C++ templates fill pages


def shortened(name: str) -> str:
    return name if len(name) <= NAME else name[: NAME - 3] + "..."


class IllegalInstruction(Exception):
    """An instruction form, descriptor or operand that is illegal in the PTX ISA, or that the emulator does not
    implement.

    The message names the field, the value found and the values allowed. The caller adds kernel, PTX line, CTA and warp.
    `check` names the one in `emulator.CHECKS` that found it, if it can be left out.
    """

    def __init__(self, message: str, check: str = ""):
        super().__init__(message)
        self.check = check


class EmulatorError(Exception):
    """Base of every error of the emulated device."""


class PtxSyntaxError(EmulatorError):
    """PTX text that cannot be parsed."""


class LaunchError(EmulatorError):
    """A launch whose geometry, parameters or entry point do not fit the module."""


class EmulatorFault(EmulatorError):
    """A fault of a running kernel, located at an instruction.

    `kernel`, `line` (of the PTX), `text` (the instruction), `source` (CUDA file and line where -lineinfo gives it),
    `cta`, `warp`, `lane` and `address` are filled in as far as they are known. `check` names the one in `CHECKS` that
    found it, if it can be left out.
    """

    check = ""

    def __init__(
        self, message: str, *, address: int | None = None, warp: int | None = None, lane: int | None = None,
        check: str = "",
    ):  # fmt: skip
        super().__init__(message)
        self.check = check or self.check
        self.message, self.address, self.warp, self.lane = message, address, warp, lane
        self.kernel = self.text = self.source = ""
        self.line: int | None = None
        self.cta: tuple[int, int, int] | None = None

    def __str__(self) -> str:
        where = [f"kernel {shortened(self.kernel)}"] if self.kernel else []
        if self.line is not None:
            where.append(f"PTX line {self.line}: {self.text}")
        if self.source:
            where.append(self.source)
        if self.cta is not None:
            where.append(f"CTA {self.cta}")
        where += [f"{name} {value}" for name, value in (("warp", self.warp), ("lane", self.lane)) if value is not None]
        if self.address is not None:
            where.append(f"address {self.address:#x}")
        if self.check:
            where.append(f"check {self.check}")
        return self.message + (f" [{', '.join(where)}]" if where else "")


class UnsupportedInstruction(EmulatorFault):
    """An opcode, modifier or type that the emulator does not know, or that the ISA does not allow."""


class MemoryFault(EmulatorFault):
    """An access out of bounds, misaligned, to read-only memory, or of the wrong state space."""


class DependenceFault(MemoryFault):
    """An access before griddepcontrol.wait to memory that a grid before this one may still write."""


class UninitializedRead(EmulatorFault):
    """A read of shared or tensor memory that nothing has written, or whose asynchronous write is still in flight."""

    check = "unwritten"


class BarrierFault(EmulatorFault):
    """Misuse of an mbarrier or of a CTA barrier."""


class DivergenceFault(EmulatorFault):
    """Threads of a warp that an aligned instruction needs together are at different places."""


class DeadlockFault(EmulatorFault):
    """No thread can make progress; the message lists what each warp waits for and the state of every barrier."""


class TrapFault(EmulatorFault):
    """The kernel executed trap, brkpt or a call of a failed assertion."""
