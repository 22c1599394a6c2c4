"""What the environment asks to see of launches: lines of a log, a file for each problem, ranges of NVTX.

``LOADER_LOG``, ``LOADER_TRACE_DIR``, ``LOADER_UNMEASURED_DIR`` and ``LOADER_NVTX`` are read where a call is made first,
and anew after ``reload``.
All is done before the launch, so that what a crash leaves behind has the launch that crashed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from typing import Any

from . import observe
from .errors import MissingPackageError, SettingError
from .manifest import Family
from .observe import Launch, Watcher

LOG_VARIABLE = "LOADER_LOG"
TRACE_VARIABLE = "LOADER_TRACE_DIR"
UNMEASURED_VARIABLE = "LOADER_UNMEASURED_DIR"
NVTX_VARIABLE = "LOADER_NVTX"

# Problems that are known to be written; then they are written again.
MAX_WRITTEN = 1 << 16

_lock = threading.Lock()
_in_force: tuple[str, ...] = ()
_removals: list[Callable[[], None]] = []


def from_environment() -> None:
    """Watch as the environment says now, and no longer as it said before.

    ``SettingError`` for a value that means nothing, ``MissingPackageError`` without ``nvtx``; then nothing changes.
    """
    global _in_force, _removals
    asked = tuple([os.environ.get(name, "") for name in _MAKERS])
    if asked == _in_force:
        return
    with _lock:
        made = [make(value) for value, make in zip(asked, _MAKERS.values(), strict=True) if value]
        for remove in _removals:
            remove()
        _removals = [observe.add(watcher) for watcher in made]
        _in_force = asked


def _once(write: Callable[[Launch, Family], object], key: Callable[[Launch], Hashable]) -> Watcher:
    """A watcher that writes what it is told first of each ``key``."""
    written: set[Hashable] = set()

    def before(launch: Launch, family: Family) -> None:
        which = key(launch)
        if which not in written:
            write(launch, family)
            if len(written) >= MAX_WRITTEN:
                written.clear()
            written.add(which)

    return Watcher(before)


# The log


def _chosen(launch: Launch) -> str:
    """What runs, why, and for which problem."""
    within = f" in {launch.composite}" if launch.composite else ""
    place = "emulated" if launch.device is None else f"cuda:{launch.device}"
    problem = ", ".join(f"{name} = {value}" for name, value in launch.problem.items())
    dtypes = ", ".join(f"{name} {operand.dtype}" for name, operand in launch.buffers.items())
    return (f"{launch.kernel}/{launch.variant}{within} for sm_{launch.arch} on {place}, {launch.reason}: {problem}; "
            f"{dtypes}")


def _launched(launch: Launch) -> str:
    stream = "" if launch.stream is None else f", stream {launch.stream:#x}"
    return f"{_chosen(launch)}; grid {launch.grid}{stream}"


def _dumped(launch: Launch) -> str:
    lines = [f"  {name}: {dtype} {list(shape)}, strides {list(strides)}, at {pointer:#x}"
             for name, (dtype, shape, strides, pointer) in launch.buffers.items()]
    return "\n".join([_launched(launch), *lines, f"  parameters: {launch.parameters.hex()}"])


_WORDS = {"select": _chosen, "launch": _launched, "dump": _dumped}


def _log(word: str) -> Watcher:
    if word not in _WORDS:
        raise _unknown(LOG_VARIABLE, f"one of {', '.join(_WORDS)}", word)
    import logging  # too slow for everybody's import

    logger = logging.getLogger(__package__)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.hasHandlers():  # nobody has said where lines go, and somebody asked for them
        logger.addHandler(logging.StreamHandler())
    text = _WORDS[word]
    if text is _chosen:
        return _once(lambda launch, family: logger.info("%s", text(launch)), text)
    return Watcher(lambda launch, family: logger.info("%s", text(launch)))


# Files


def _traces(directory: str) -> Watcher:
    from .definition import write  # which nobody else needs

    directory = _made(directory, TRACE_VARIABLE)
    return _once(lambda launch, family: write(directory, launch, family), _problem)


def _unmeasured(directory: str) -> Watcher:
    from .problems import UNMEASURED, write

    directory = _made(directory, UNMEASURED_VARIABLE)
    once = _once(lambda launch, family: write(directory, launch, family), _choice)
    return Watcher(lambda launch, family: launch.reason in UNMEASURED and once.before(launch, family))


def _made(directory: str, variable: str) -> str:
    directory = os.path.abspath(directory)
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise SettingError(f"{variable}: {directory} is no directory and cannot become one: {error}",
                           variable=variable, expected="a directory", got=directory) from error
    return directory


def _problem(launch: Launch) -> Hashable:
    return launch.kernel, tuple(launch.buffers), tuple([operand[:2] for operand in launch.buffers.values()])


def _choice(launch: Launch) -> Hashable:
    """What selection may depend on: also numbers and words, but no floats."""
    return _problem(launch), tuple([value for value in launch.problem.values() if type(value) is not float])


# Ranges


def _ranges(word: str) -> Watcher:
    if word != "1":
        raise _unknown(NVTX_VARIABLE, "1", word)
    try:
        import nvtx
    except ImportError as error:
        raise MissingPackageError(f"{NVTX_VARIABLE} needs the package nvtx, which cannot be imported ({error})",
                                  missing="nvtx", extra=None) from error

    def begin(launch: Launch, family: Family) -> None:
        within = f"{launch.composite}: " if launch.composite else ""
        nvtx.push_range(f"{within}{launch.kernel}/{launch.variant}", domain=__package__)

    return Watcher(begin, lambda: nvtx.pop_range(domain=__package__))


def _unknown(variable: str, expected: str, got: str) -> SettingError:
    return SettingError(f"{variable} must be {expected}, got {got!r}", variable=variable, expected=expected, got=got)


_MAKERS: dict[str, Callable[[str], Any]] = {LOG_VARIABLE: _log, TRACE_VARIABLE: _traces,
                                            UNMEASURED_VARIABLE: _unmeasured, NVTX_VARIABLE: _ranges}
