"""Launch ahead-of-time compiled CUDA kernels on buffers of any framework.

    import loader
    loader.launch("grouped_fp4", a=a, b=b, ..., out=out)

Needs the CUDA driver and the standard library. Importing it opens nothing: the driver and the packs are opened by the
first call that needs them. docs/loader.md is the guide.
"""

from . import errors
from .api import (
    ArtifactInfo,
    BufferSpec,
    Explanation,
    KernelInfo,
    Launch,
    Loaded,
    PackInfo,
    Plan,
    Trust,
    Unloaded,
    Verified,
    buffers,
    check,
    explain,
    kernels,
    launch,
    on_launch,
    outputs,
    packs,
    plan,
    preload,
    reload,
    unload,
    verify,
    workspace_bytes,
)
from .errors import *  # noqa: F403
from .errors import __all__ as _error_names

__version__ = "0.1.0"

__all__ = ["ArtifactInfo", "BufferSpec", "Explanation", "KernelInfo", "Launch", "Loaded", "PackInfo", "Plan", "Trust",
           "Unloaded", "Verified", "__version__", "buffers", "check", "errors", "explain", "kernels", "launch",
           "on_launch", "outputs", "packs", "plan", "preload", "reload", "unload", "verify", "workspace_bytes",
           *_error_names]
