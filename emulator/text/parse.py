"""PTX text to instructions with resolved registers, labels and symbols (PTX ISA 9.0, sections 4 to 6 and 11).

Parsing knows no arithmetic. Nested scopes `{}` get registers and labels of their own, as inline assembly needs.
"""

from __future__ import annotations

import re
import struct

from ..checks.faults import PtxSyntaxError
from .instructions import (
    WIDTHS,
    Address,
    Function,
    Imm,
    Instruction,
    Negated,
    Pair,
    Reg,
    Scope,
    Sink,
    Source,
    Special,
    Symbol,
    Variable,
    Vector,
)

_COMMENT = re.compile(r"//[^\n]*|/\*.*?(?:\*/|\Z)", re.S)
_SPACE = re.compile(r"\s*")
_LABEL = re.compile(r"([A-Za-z_$%][\w$]*)\s*:(?!:)")
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)[^\n]*\n")
_GUARD = re.compile(r"@(!?)\s*([\w$%]+)\s*")
_OPCODE = re.compile(r"[\w.:]*")
_INTEGER = re.compile(r"^-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")
_FLOAT = re.compile(r"^0([fF])([0-9a-fA-F]{8})$|^0([dD])([0-9a-fA-F]{16})$")
_SPECIAL = re.compile(r"^%[a-z_]\w*(\.[xyzw])?$")
_NAME = re.compile(r"^[A-Za-z_$%][\w$]*$")
_DIRECTIVES = (
    "maxntid", "reqntid", "minnctapersm", "maxnctapersm", "maxnreg", "reqnctapercluster", "explicitcluster",
    "maxclusterrank", "blocksareclusters", "noreturn",
)  # fmt: skip

# What a module may have, several times what the largest kernels do: more would fill memory and explain nothing.
MAX_STATEMENTS = 100_000  # instructions, variables, scopes and entry points
MAX_REGISTERS = 100_000
MAX_DEPTH = 100  # of scopes in each other
MAX_VARIABLE = 64 << 20  # bytes
MAX_ALIGNMENT = 1 << 12


def parse(text: str) -> Source:
    """Parses a PTX module. Raises PtxSyntaxError with the line."""
    parser = _Parser(text)
    try:
        return parser.module()
    except (ValueError, OverflowError) as error:  # a number that is none, or that does not fit
        raise parser.fail(str(error)) from None


def integer(text: str) -> int:
    value = _integer(text)
    if value.bit_length() > 64:
        raise ValueError(f"an integer has at most 64 bits, got {value.bit_length()}")
    return value


def _integer(text: str) -> int:
    digits = text.rstrip("U")
    sign, digits = (-1, digits[1:]) if digits.startswith("-") else (1, digits)
    if len(digits) > 1 and digits[0] == "0" and digits.isdigit():
        return sign * int(digits, 8)
    return sign * int(digits, 0)


class _Parser:
    def __init__(self, text: str):
        self.text = _COMMENT.sub(_blank, text)
        self.counted, self.lines = 0, 1  # a position, and the line that it is on
        self.statements = 0
        self.position = 0
        self.target = ""
        self.entries: dict[str, Function] = {}
        self.variables: dict[str, Variable] = {}
        self.files: dict[int, str] = {}

    def line(self, position: int) -> int:
        if position < self.counted:
            self.counted, self.lines = 0, 1
        self.lines += self.text.count("\n", self.counted, position)
        self.counted = position
        return self.lines

    def fail(self, message: str, position: int | None = None) -> PtxSyntaxError:
        position = self.position if position is None else position
        line = self.text[position : position + 80].split("\n")[0]
        return PtxSyntaxError(f"PTX line {self.line(position)}: {message[:200]}: {line!r}")

    def count(self) -> None:
        self.statements += 1
        if self.statements > MAX_STATEMENTS:
            raise self.fail(f"over {MAX_STATEMENTS} statements")

    def skip_space(self) -> bool:
        self.position = _SPACE.match(self.text, self.position).end()
        return self.position < len(self.text)

    def until(self, stop: str) -> str:
        end = self.text.find(stop, self.position)
        if end < 0:
            raise self.fail(f"no {stop!r} after this")
        found = self.text[self.position : end]
        self.position = end + len(stop)
        return found

    def braces(self) -> str:
        """The text between the next `{` and the `}` that closes it."""
        start = self.text.find("{", self.position)
        if start < 0:
            raise self.fail("no '{' after this")
        depth = 0
        for match in re.compile(r'[{}]|"[^"]*"').finditer(self.text, start):
            depth += {"{": 1, "}": -1}.get(match[0], 0)
            if not depth:
                self.position = match.end()
                return self.text[start + 1 : match.start()]
        raise self.fail("unbalanced braces", start)

    def parentheses(self) -> str:
        """The text between the `(` here and the `)` that closes it."""
        start, depth = self.position, 0
        for match in re.compile(r"[()]").finditer(self.text, start):
            depth += {"(": 1, ")": -1}[match[0]]
            if not depth:
                self.position = match.end()
                return self.text[start + 1 : match.start()]
        raise self.fail("unbalanced parentheses", start)

    # Module scope

    def module(self) -> Source:
        while self.skip_space():
            head = re.compile(r"\.(\w+)").match(self.text, self.position)
            if head is None:
                raise self.fail("expected a directive")
            match head[1]:
                case "version" | "address_size":
                    self.until("\n")
                case "target":
                    self.position = head.end()
                    self.target = self.until("\n").strip().split(",")[0]
                case "file":
                    match_file = re.compile(r'\.file\s+(\d+)\s+"([^"]*)"[^\n]*').match(self.text, self.position)
                    if match_file is None:
                        raise self.fail("malformed .file")
                    self.files[int(match_file[1])] = match_file[2]
                    self.position = match_file.end()
                case "section":
                    self.braces()
                case "loc":
                    self.until("\n")
                case "pragma":
                    self.until(";")
                case _:
                    self.declaration()
        return Source(self.target, self.entries, self.variables, self.files)

    def declaration(self) -> None:
        head = re.compile(r"(\s*\.(visible|extern|weak|common))*\s*\.(entry|func|alias|\w+)").match(
            self.text, self.position
        )
        if head is None:
            raise self.fail("unknown declaration")
        if head[3] == "entry":
            self.position = head.end()
            self.entry()
        elif head[3] == "func":
            stop = re.compile(r"[;{]").search(self.text, self.position)
            if stop is None:
                raise self.fail("unterminated .func")
            if stop[0] == "{":
                self.braces()  # a device function; a call of it is refused when it is executed
            else:
                self.position = stop.end()
        elif head[3] == "alias":
            self.until(";")
        else:
            start = self.position
            statement = self.until(";")
            for variable in self.variable(statement, start):
                self.variables[variable.name] = variable

    def variable(self, statement: str, start: int) -> list[Variable]:
        statement = " ".join(statement.split())
        match = re.match(r"((?:\.[\w:]+(?:\s+\d+)?\s*)+)([^.\s].*)$", statement)
        if match is None:
            raise self.fail("malformed variable", start)
        words = re.findall(r"\.(\w+(?:::\w+)?)(?:\s+(\d+))?", match[1])
        space = next((w for w, _ in words if w.split("::")[0] in ("shared", "local", "global", "const", "param")), None)
        kind = next((w for w, _ in words if w in WIDTHS), None)
        if space is None or kind is None:
            raise self.fail("unknown variable declaration", start)
        width = WIDTHS[kind] * next((int(w[1]) for w, _ in words if w in ("v2", "v4")), 1)
        align = next((int(n) for w, n in words if w == "align" and n), width)
        if not 1 <= align <= MAX_ALIGNMENT or align & (align - 1):
            raise self.fail(f"alignment {align}, expected a power of two up to {MAX_ALIGNMENT}", start)
        found = []
        for part in _split(match[2]):
            self.count()
            name, _, init = part.partition("=")
            name = name.strip()
            bracket = name.find("[")
            counts = re.findall(r"\[\s*(\d*)\s*\]", name)
            name = name if bracket < 0 else name[:bracket].strip()
            data, references = _initializer(init, width) if init.strip() else (b"", ())
            count = 1
            for item in counts:
                count *= int(item) if item else 0
            size = max(width * count, len(data))
            if size > MAX_VARIABLE:
                raise self.fail(f"a variable of over {MAX_VARIABLE} bytes", start)
            found.append(
                Variable(name, space.split("::")[0], size, align, dynamic="" in counts and not data, data=data,
                         references=references)
            )  # fmt: skip
        return found

    def entry(self) -> None:
        self.count()
        self.skip_space()
        match_name = re.compile(r"[\w$]+").match(self.text, self.position)
        if match_name is None:
            raise self.fail("an entry without a name")
        name = match_name[0]
        self.position = match_name.end()
        self.skip_space()
        parameters: list[Variable] = []
        if self.text.startswith("(", self.position):
            start = self.position + 1
            for part in _split(self.parentheses()):
                part = re.sub(r"\.ptr(\s*\.(global|shared|const|local|generic))?(\s*\.align\s+\d+)?", " ", part)
                parameters += self.variable(part, start)
        offsets, offset = {}, 0
        for parameter in parameters:
            offset = -(-offset // parameter.align) * parameter.align
            offsets[parameter.name] = offset
            offset += parameter.size
        function = Function(name, parameters, offsets, offset)
        while self.skip_space() and self.text[self.position] != "{":
            match = re.compile(r"\.(\w+)([^.{;]*)").match(self.text, self.position)
            if match and match[1] == "pragma":
                self.until(";")
                continue
            if match is None or match[1] not in _DIRECTIVES:
                if self.text[self.position] == ";":
                    self.position += 1
                    return
                raise self.fail("unknown performance directive")
            function.directives[match[1]] = tuple(int(n) for n in re.findall(r"\d+", match[2]))
            self.position = match.end()
        self.body(function)
        self.entries[name] = function

    # Function scope

    def body(self, function: Function) -> None:
        text, scope, depth = self.text, None, 0
        location: tuple[int, int] | None = None
        size = len(text)
        while True:
            self.position = position = _SPACE.match(text, self.position).end()
            if position >= size:
                raise self.fail(f"entry {function.name} has no end")
            character = text[position]
            if character == "{":
                self.count()
                if depth == MAX_DEPTH:
                    raise self.fail(f"scopes lie over {MAX_DEPTH} deep in each other")
                scope, depth = Scope(scope), depth + 1
                self.position += 1
                continue
            if character == "}":
                scope, depth = scope.parent, depth - 1
                self.position += 1
                if not depth:
                    return
                continue
            if character == ";":
                self.position += 1
                continue
            if character == ".":
                if match := _LOC.match(text, position):
                    location = (int(match[1]), int(match[2]))
                    self.position = match.end()
                    continue
                self.directive(function, scope, self.until(";"), position)
                continue
            if match := _LABEL.match(text, position):
                self.position = match.end()
                following = _SPACE.match(text, self.position).end()
                if text.startswith((".branchtargets", ".callprototype", ".calltargets"), following):
                    self.position = following
                    statement = self.until(";")
                    if statement.startswith(".branchtargets"):
                        scope.tables[match[1]] = tuple(s.strip() for s in statement[14:].split(","))
                    continue
                if match[1] in scope.labels:
                    raise self.fail(f"label {match[1]} is defined twice", position)
                scope.labels[match[1]] = len(function.instructions)
                continue
            self.count()
            statement = self.until(";")
            function.instructions.append(self.instruction(scope, statement, position, location))

    def directive(self, function: Function, scope: Scope, statement: str, start: int) -> None:
        if statement.startswith(".reg"):
            match = re.match(r"\.reg\s*((?:\.\w+\s*)+)\s*(.*)$", statement, re.S)
            if match is None:
                raise self.fail("malformed .reg", start)
            kinds = re.findall(r"\.(\w+)", match[1])
            if len(kinds) != 1 or kinds[0] not in WIDTHS:
                raise self.fail("unknown register type", start)
            for item in match[2].split(","):
                item = item.strip()
                first = len(function.registers)
                if family := re.match(r"^([\w$%]+)<(\d+)>$", item):
                    count = int(family[2])
                    if first + count > MAX_REGISTERS:
                        raise self.fail(f"over {MAX_REGISTERS} registers", start)
                    scope.families[family[1]] = (kinds[0], count, first)
                    function.registers += [kinds[0]] * count
                    function.register_names += [f"{family[1]}{n}" for n in range(count)]
                else:
                    scope.registers[item] = Reg(first, kinds[0])
                    function.registers.append(kinds[0])
                    function.register_names.append(item)
        elif statement.startswith((".pragma", ".param")):
            return
        elif statement.startswith((".shared", ".local", ".global", ".const")):
            for variable in self.variable(statement, start):
                function.variables[variable.name] = variable
        else:
            raise self.fail("unknown directive", start)

    def instruction(self, scope: Scope, statement: str, position: int, location: tuple[int, int] | None) -> Instruction:
        text = " ".join(statement.split())
        guard = None
        rest = text
        if match := _GUARD.match(text):
            register = scope.register(match[2])
            if register is None:
                raise self.fail(f"unknown predicate {match[2]}", position)
            guard = (register, match[1] == "!")
            rest = text[match.end() :]
        opcode = _OPCODE.match(rest)[0]
        arguments, parts = rest[len(opcode) :], opcode.split(".")
        if parts[0] == "call":
            operands: tuple = ()
        else:
            cache = scope.cache
            found = []
            for item in _split(arguments):
                operand = cache.get(item)
                if operand is None:
                    try:
                        operand = cache[item] = self.operand(scope, item)
                    except ValueError as error:
                        raise self.fail(str(error), position) from None
                found.append(operand)
            operands = tuple(found)
        return Instruction(parts[0], tuple(parts[1:]), operands, guard, self.line(position), text, location, scope)

    def operand(self, scope: Scope, text: str) -> object:
        if not text:
            raise ValueError("an operand is missing")
        if (register := scope.register(text)) is not None:
            return register
        if _INTEGER.match(text):
            return Imm(integer(text), "int")
        first = text[0]
        if first == "{":
            return Vector(self.items(scope, text))
        if first == "[":
            if not text.endswith("]"):
                raise ValueError(f"cannot read address {text!r}")
            return self.address(scope, text[1:-1].strip())
        if text == "_":
            return Sink()
        if first == "!":
            register = scope.register(text[1:].strip())
            if register is None:
                raise ValueError(f"unknown register {text}")
            return Negated(register)
        if "|" in text:
            one, _, two = text.partition("|")
            return Pair(self.inner(scope, one.strip()), self.inner(scope, two.strip()))
        if match := _FLOAT.match(text):
            return Imm(int(match[2] or match[4], 16), "f32" if match[1] else "f64")
        if re.match(r"^-?\d+\.\d*([eE][-+]?\d+)?$", text):
            return Imm(struct.unpack("<Q", struct.pack("<d", float(text)))[0], "f64")
        if first == "%" and _SPECIAL.match(text):
            return Special(text[1:])
        if match := re.match(r"^([\w$%]+)\s*\+\s*(-?\w+)$", text):
            return Symbol(match[1], integer(match[2]))
        if text == "WARP_SZ":
            return Imm(32, "int")
        if _NAME.match(text):
            return Symbol(text)
        if match := re.match(r"^\(?\s*(-?\w+)\s*\)?$", text):
            return Imm(integer(match[1]), "int")
        raise ValueError(f"cannot read operand {text!r}")

    def inner(self, scope: Scope, text: str) -> object:
        """An operand that is part of one: brackets and pairs hold no other ones."""
        if text.startswith(("{", "[")) or "|" in text:
            raise ValueError(f"cannot read operand {text!r} in another one")
        return self.operand(scope, text)

    def items(self, scope: Scope, text: str) -> tuple:
        """The operands between braces."""
        if not text.startswith("{") or not text.endswith("}"):
            raise ValueError(f"cannot read vector {text!r}")
        return tuple(self.inner(scope, item) for item in _split(text[1:-1]))

    def address(self, scope: Scope, text: str) -> Address:
        parts = _split(text)
        if not parts:
            raise ValueError("an address is missing")
        coordinates: tuple = ()
        if len(parts) > 1:
            if len(parts) > 2:
                # clusterlaunchcontrol and tcgen05 take one address only; anything else is not PTX
                raise ValueError(f"cannot read address [{text}]")
            coordinates = self.items(scope, parts[1])
        base = parts[0]
        if match := re.match(r"^(.+?)\s*\+\s*(-?\w+)$", base):
            inner = self.inner(scope, match[1].strip())
            offset = integer(match[2])
        else:
            inner, offset = self.inner(scope, base), 0
        if isinstance(inner, Symbol):
            return Address(Symbol(inner.name, inner.offset + offset), 0, coordinates)
        return Address(inner, offset, coordinates)


def _blank(comment: re.Match[str]) -> str:
    """As many lines and columns of nothing."""
    return " " * len(comment[0]) if "\n" not in comment[0] else re.sub(r"[^\n]", " ", comment[0])


def _split(text: str) -> list[str]:
    """Splits at the commas that are in no bracket."""
    if "{" not in text and "[" not in text and "(" not in text:
        return [part.strip() for part in text.split(",")] if text.strip() else []
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and not depth:
            parts.append(text[start:position].strip())
            start = position + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]


def _initializer(text: str, width: int) -> tuple[bytes, tuple[tuple[int, str], ...]]:
    """Bytes of `{1, 2, symbol, 0f3F800000}` and the places where the address of a symbol belongs."""
    data = bytearray()
    references = []
    for item in _split(text.replace("{", " ").replace("}", " ")):
        if match := re.match(r"^(?:generic\()?\s*([A-Za-z_$][\w$]*)\s*\)?(?:\s*\+\s*(\d+))?$", item):
            references.append((len(data), match[1]))
            data += int(match[2] or 0).to_bytes(width, "little")
        elif match := _FLOAT.match(item):
            data += int(match[2] or match[4], 16).to_bytes(width, "little")
        else:
            data += (integer(item) & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    return bytes(data), tuple(references)
