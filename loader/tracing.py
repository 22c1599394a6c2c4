"""Calls inside functions that torch.compile traces: the graph breaks there, and nothing of the loader is traced.

torch is never imported here. Where it is in use, its compiler looks at every Python frame below a function that it
compiles; it is told to leave those of a call alone, as it would trace through addresses.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

COMPILER = "torch._dynamo"  # in sys.modules where something is compiled
REASON = "the loader launches kernels and cannot be traced; torch.ops.block_scaled.<kernel> of integrations.ops can"

Function = TypeVar("Function", bound=Callable[..., Any])


def breaks_graph(function: Function) -> Function:
    """torch.compile breaks its graph at ``function``, or says ``REASON`` where there must be one graph."""
    function._torchdynamo_disable = True
    function._torchdynamo_disable_msg = REASON
    return function


@breaks_graph
def watched() -> bool:
    """Whether the compiler, which is in use, looks at the frames of this thread."""
    return sys.modules["torch"]._C._dynamo.eval_frame.get_eval_frame_callback() is not None


def untraced(function: Function) -> Function:
    """``breaks_graph``, and what the function calls is left alone. For calls that need not be quick."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if COMPILER in sys.modules and watched():
            return leave_alone(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return breaks_graph(call)


def leave_alone(function: Function) -> Function:
    """``function`` with no frame looked at, neither its own nor one below it."""
    return sys.modules["torch"].compiler.disable(function)
