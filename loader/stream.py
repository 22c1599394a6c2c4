"""Which CUDA stream a launch goes to.

Given: an integer handle, an object with ``__cuda_stream__`` (cuda.core), ``cuda_stream`` (torch) or ``ptr`` (CuPy).
Not given: the current stream of the producer of the first buffer that can tell, else the legacy default stream.
Handles: 0 and 1 are the legacy default stream, 2 the per-thread default stream, others are addresses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from . import dlpack, driver
from .errors import StreamError

LEGACY_DEFAULT = 0


def handle(stream: Any) -> int:
    """The handle of a stream that the caller gave; ``StreamError`` if it is none."""
    kind = type(stream)
    if kind is int:
        value = stream
    elif hasattr(kind, "__cuda_stream__"):
        try:
            _, value = stream.__cuda_stream__()
        except Exception as error:
            raise _no_stream(stream, f"__cuda_stream__ failed: {error}") from error
    else:
        value = getattr(stream, "cuda_stream", None)
        value = getattr(stream, "ptr", None) if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise _no_stream(stream, "a stream is a handle, or has __cuda_stream__, cuda_stream or ptr")
    return int(value)


def _no_stream(stream: Any, why: str) -> StreamError:
    return StreamError(f"stream: {stream!r} is no CUDA stream: {why}", argument="stream", expected="a CUDA stream",
                       got=stream)


# Producers without the exchange API whose current stream is known; asked only where the module is in use already.
_CURRENT_OF_MODULE: dict[str, Callable[[Any, int], int]] = {
    "cupy": lambda cupy, device: cupy.cuda.get_current_stream(device).ptr,
    "torch": lambda torch, device: torch.cuda.current_stream(device).cuda_stream,
}


def current(values: Iterable[Any], device: int) -> int:
    """The current stream of the first producer that can tell, on CUDA device ``device``."""
    if driver.forked:  # before a producer touches CUDA in a forked child
        raise driver.fork_error()
    for value in values:
        kind = type(value)
        api = dlpack.exchange(kind)
        if api is not None:
            return api.stream(device)
        module = kind.__module__.partition(".")[0]
        ask = _CURRENT_OF_MODULE.get(module)
        if ask is not None and module in sys.modules:
            return ask(sys.modules[module], device)
    return LEGACY_DEFAULT
