"""Several cubins as one ELF image with nothing but their code, for nvdisasm, which takes far longer to start than to
print a kernel."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, address, offset, size, link, info, alignment, entry size
_SYMBOL = struct.Struct("<IBBHQQ")  # name, info, other, section, value, size
_PROGBITS, _SYMTAB, _STRTAB = 1, 2, 3
_GLOBAL_FUNCTION, _ENTRY = 0x12, 0x10
_REGISTERS = 0xFF000000  # of the info of a section of code; the rest is the number of its symbol
_FIRST = 3  # section of code, behind the null one, the names and the symbols


def symbol_of(cubin: bytes) -> str:
    """The name of its one kernel."""
    return next(name.removeprefix(".text.") for name, _, _ in _sections(cubin) if name.startswith(".text."))


def code_of(cubins: Sequence[bytes]) -> bytes:
    """One image with the code of cubins of one arch, of a kernel each: sections ``.text.0``, ``.text.1`` and so on."""
    parts = [next((info, content) for name, info, content in _sections(cubin) if name.startswith(".text."))
             for cubin in cubins]  # fmt: skip
    names, symbols = b"\0", [bytes(_SYMBOL.size)]
    for index, (_, content) in enumerate(parts):
        symbols.append(_SYMBOL.pack(len(names), _GLOBAL_FUNCTION, _ENTRY, _FIRST + index, 0, len(content)))
        names += b"%d\0" % index
    sections = [(".strtab", _STRTAB, 0, 0, 0, names), (".symtab", _SYMTAB, 1, 1, _SYMBOL.size, b"".join(symbols))]
    sections += [(f".text.{index}", _PROGBITS, 2, info & _REGISTERS | index + 1, 0, content)
                 for index, (info, content) in enumerate(parts)]  # fmt: skip
    labels = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in sections) + b".shstrtab\0"
    sections.append((".shstrtab", _STRTAB, 0, 0, 0, labels))
    body, table = b"", bytes(_SECTION.size)
    for name, kind, link, info, size, content in sections:
        body += bytes(-(_HEADER.size + len(body)) % 128)
        place, flags = labels.index(name.encode() + b"\0"), 6 if kind == _PROGBITS else 0  # loaded and run
        table += _SECTION.pack(place, kind, flags, 0, _HEADER.size + len(body), len(content), link, info, 128, size)
        body += content
    magic, kind, machine, version, *_, flags = _HEADER.unpack_from(cubins[0])[:8]
    header = _HEADER.pack(magic, kind, machine, version, 0, 0, _HEADER.size + len(body), flags, _HEADER.size, 0, 0,
                          _SECTION.size, len(sections) + 1, len(sections))  # fmt: skip
    return header + body + table


def _sections(cubin: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Name, info and content of each section."""
    *_, offset, _, _, _, _, _, count, last = _HEADER.unpack_from(cubin)
    table = [_SECTION.unpack_from(cubin, offset + index * _SECTION.size) for index in range(count)]
    labels = table[last][4]
    for name, _, _, _, start, size, _, info, _, _ in table:
        end = cubin.index(b"\0", labels + name)
        yield cubin[labels + name : end].decode(), info, cubin[start : start + size]
