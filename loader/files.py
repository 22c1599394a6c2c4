"""Files that are written whole or not at all, and read up to a limit."""

from __future__ import annotations

import errno
import os
import stat
import threading
from contextlib import suppress


def replace(path: str, content: bytes) -> None:
    """Put a file in place in one step: a crash leaves the old bytes or the new ones. Until then they lie beside it."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def read(path: str, limit: int) -> bytes:
    """At most ``limit + 1`` bytes of a regular file; ``OSError`` where it is none."""
    with open(path, "rb", opener=without_waiting) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", path)
        return stream.read(limit + 1)


def without_waiting(path: str, flags: int) -> int:
    """Open without waiting for the other end of a pipe that stands where a file should."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
