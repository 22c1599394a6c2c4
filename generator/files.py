"""Writing files so that a crash at any moment leaves the old bytes or the new ones, and their digests."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def sha256(content: bytes) -> str:
    """The digest in hex."""
    return hashlib.sha256(content).hexdigest()


def write_synced(path: Path, content: bytes) -> None:
    """Write, and wait until the bytes are on disk, so that a rename never publishes a file that a crash empties.

    An ``OSError`` names the file; one of a full disk does not by itself.
    """
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def replace(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step; until then they lie beside it as ``.<name>.tmp``."""
    temporary = path.with_name(f".{path.name}.tmp")
    write_synced(temporary, content)
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
