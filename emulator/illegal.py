"""The error for an instruction whose qualifiers, operands or descriptors the PTX ISA does not allow."""


class IllegalInstruction(Exception):
    """An instruction form, descriptor or operand that is illegal in the PTX ISA, or that the emulator does not
    implement.

    The message names the field, the value found and the values allowed. The caller adds kernel, PTX line, CTA and warp.
    `check` names the one in `emulator.CHECKS` that found it, if it can be left out.
    """

    def __init__(self, message: str, check: str = ""):
        super().__init__(message)
        self.check = check
