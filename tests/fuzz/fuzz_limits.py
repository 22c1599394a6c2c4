"""What an input may not do, whatever a reader answers: take over a second, grow the process, or reach out of its store.

Time is that of the processor, so a busy machine finds nothing more than an idle one.
"""

from __future__ import annotations

import atexit
import difflib  # noqa: F401 (the loader imports it late, and its named tuple is made by exec)
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

SECONDS = 1.0
BYTES = 256 << 20

# Only what a reader has no business to do; `open` is judged by its path.
_EVENTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir", "os.rmdir",
           "os.chmod", "os.link", "os.symlink", "os.truncate", "subprocess.", "socket.", "shutil.", "ctypes.dlopen",
           "urllib.", "pty.", "webbrowser.", "pickle.")
_watching = False


class Finding(BaseException):
    """No ``Exception``, so that no reader can take it for one of its own."""


@cache
def store() -> Path:
    """A directory of this process for files that readers open, with ways out of it that none may take."""
    directory = Path(tempfile.mkdtemp(prefix="fuzz", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)) / "store"
    atexit.register(shutil.rmtree, directory.parent)
    (directory / "k").mkdir(parents=True)
    (directory.parent / "secret").write_bytes(b"not of the store")
    (directory / "out").symlink_to("../secret")
    (directory / "up").symlink_to("..")
    (directory / "loop").symlink_to("loop")
    os.mkfifo(directory / "pipe")
    return directory


def _alarm(signum: int, frame: FrameType | None) -> None:
    raise Finding(f"over {SECONDS} s of processor time")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event == "open" and not _is_allowed(arguments[0], arguments[1]):
        raise Finding(f"opens {arguments[0]!r}")
    if event == "exec" and not arguments[0].co_filename.startswith(("<ptx", "<frozen", sys.prefix, sys.base_prefix)):
        raise Finding(f"executes {arguments[0].co_filename}")
    if event.startswith(_EVENTS):
        raise Finding(f"{event} {arguments!r}")


def _is_allowed(path: Any, mode: str | None) -> bool:
    """A descriptor, a file of the store, or a module of Python's that is imported late."""
    if isinstance(path, int):
        return True
    real = os.path.realpath(os.fsdecode(path))
    return real.startswith(f"{store()}{os.sep}") or (mode in (None, "r", "rb") and real.endswith((".py", ".pyc")))


def install() -> None:
    """Watch this process: no hook can be taken away again."""
    store()
    sys.addaudithook(_audit)
    signal.signal(signal.SIGPROF, _alarm)


def bound_memory() -> None:
    """Make more address space than an input may need a MemoryError; what is mapped now does not count."""
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + BYTES, resource.RLIM_INFINITY))


@contextmanager
def watched() -> Iterator[None]:
    """One input."""
    global _watching
    _watching = True
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        _watching = False
