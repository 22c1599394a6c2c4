"""Files that are written whole or not at all."""

from __future__ import annotations

import os
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
