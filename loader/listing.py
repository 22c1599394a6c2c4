"""The PTX of an artifact, unpacked: xz, or gzip where a pack of an earlier schema has it."""

from __future__ import annotations

import zlib
from typing import Any

from .errors import IntegrityError, MissingPackageError
from .manifest import MAX_PTX_BYTES
from .registry import Candidate

# For the dictionary, which the build gives 8 MiB.
_MAX_UNPACKING_BYTES = 32 << 20


def ptx_text(candidate: Candidate) -> str:
    """The PTX of an artifact, its stored file verified first; ``IntegrityError`` where it is not what it is named."""
    file = candidate.artifact.ptx.file
    kind, stream, damaged = _unpacker(file)
    try:
        text = stream.decompress(candidate.pack.read(candidate.artifact.ptx), MAX_PTX_BYTES)
        if stream.eof and not stream.unused_data:
            return str(text, "utf-8")
        why = "it is cut off, too long, or something follows it"
    except (damaged, UnicodeDecodeError) as error:
        why = str(error)
    raise IntegrityError(f"{file} in pack {candidate.pack.directory} is no {kind} of PTX: {why}",
                         pack=candidate.pack.directory, file=file, expected=kind, got=why)


def _unpacker(file: str) -> tuple[str, Any, type[Exception]]:
    """Of a file by its name: what it is, what unpacks it, and the error of what is damaged."""
    if file.endswith(".gz"):
        return "gzip", zlib.decompressobj(wbits=31), zlib.error
    try:
        import lzma  # which some Pythons lack, and a launch on a device does without
    except ImportError as error:
        raise MissingPackageError(f"PTX in xz needs the module lzma, which this Python lacks ({error})",
                                  missing="lzma", extra=None) from error
    return "xz", lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_UNPACKING_BYTES), lzma.LZMAError
