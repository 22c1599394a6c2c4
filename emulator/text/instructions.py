"""What PTX text is made of: instructions and their operands, variables, scopes, entry points, modules."""

from __future__ import annotations

from dataclasses import dataclass, field

WIDTHS = {
    "pred": 0, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2, "b32": 4, "u32": 4,
    "s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8, "f32x2": 8, "b128": 16,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reg:
    index: int
    type: str


@dataclass(frozen=True, slots=True)
class Imm:
    """A constant: `kind` is "int", "f32" or "f64"; floats are held as their bits."""

    value: int
    kind: str


@dataclass(frozen=True, slots=True)
class Special:
    name: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """Address of a variable or parameter plus an offset; a label where the instruction branches."""

    name: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Vector:
    items: tuple


@dataclass(frozen=True, slots=True)
class Address:
    """`[base + offset]`, or `[base, {coordinates}]` of a tensor."""

    base: object
    offset: int = 0
    coordinates: tuple = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """`d|p`: a result and its predicate."""

    first: object
    second: object


@dataclass(frozen=True, slots=True)
class Negated:
    register: Reg


@dataclass(frozen=True, slots=True)
class Sink:
    """`_`: a result that is thrown away."""


@dataclass(slots=True)
class Instruction:
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple
    guard: tuple[Reg, bool] | None  # predicate register, negated
    line: int
    text: str
    source: tuple[int, int] | None  # file number and line of the CUDA source
    scope: Scope

    @property
    def name(self) -> str:
        return ".".join((self.opcode, *self.modifiers))

    @property
    def form(self) -> str:
        """The first modifier, empty where there is none."""
        return self.modifiers[0] if self.modifiers else ""


@dataclass(slots=True)
class Variable:
    name: str
    space: str  # shared, local, global, const, param
    size: int
    align: int
    dynamic: bool = False
    data: bytes = b""
    references: tuple[tuple[int, str], ...] = ()  # byte offset -> symbol whose address is stored there


_DIGITS = "0123456789"


def _numbered(name: str) -> tuple[str, int]:
    """`%r10` as `%r` and 10; the number has no zero in front."""
    stem = name.rstrip(_DIGITS)
    number = name[len(stem) :].lstrip("0") or name[-1:]
    return (name[: len(name) - len(number)], int(number)) if 0 < len(number) < 10 and number[0] in _DIGITS else ("", -1)


class Scope:
    def __init__(self, parent: Scope | None):
        self.parent = parent
        self.registers: dict[str, Reg] = {}
        self.families: dict[str, tuple[str, int, int]] = {}  # %r<10> as prefix -> type, count, first index
        self.labels: dict[str, int] = {}
        self.tables: dict[str, tuple[str, ...]] = {}  # .branchtargets
        self.cache: dict[str, object] = {}

    def register(self, name: str) -> Reg | None:
        scope: Scope | None = self
        while scope is not None:
            if (found := scope.registers.get(name)) is not None:
                return found
            if scope.families:
                prefix, number = _numbered(name)
                family = scope.families.get(prefix)
                if family is not None and number < family[1]:
                    found = scope.registers[name] = Reg(family[2] + number, family[0])
                    return found
            scope = scope.parent
        return None

    def label(self, name: str) -> int | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.labels:
                return scope.labels[name]
            scope = scope.parent
        return None

    def table(self, name: str) -> tuple[str, ...] | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.tables:
                return scope.tables[name]
            scope = scope.parent
        return None


@dataclass
class Function:
    """An entry point. `registers` holds the declared type of every register by index."""

    name: str
    parameters: list[Variable]
    offsets: dict[str, int]
    parameter_bytes: int
    instructions: list[Instruction] = field(default_factory=list)
    registers: list[str] = field(default_factory=list)
    register_names: list[str] = field(default_factory=list)
    variables: dict[str, Variable] = field(default_factory=dict)
    directives: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass
class Source:
    """A parsed module: its entry points, the functions that are only declared, and the module's variables."""

    target: str
    entries: dict[str, Function]
    variables: dict[str, Variable]
    files: dict[int, str]
