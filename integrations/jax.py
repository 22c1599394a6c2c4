"""Kernels and composites inside ``jax.jit``: calls that XLA makes on its own stream, with results that it allots.

    import integrations.jax as kernels
    out = kernels.call("nvfp4_quantize", x=x, global_scale=scale, ..., S=256, global_scale_kind="encode")["out"]

A call is one custom call of XLA's typed FFI. All that a launch needs besides addresses goes along as text, so that an
exported program runs in any process that has imported this module and finds the packs. On the CPU the kernels run on
the emulated device; on CUDA devices they are loaded when a program is compiled, and may be captured into a command
buffer.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import loader
from .borrowed_buffer import BorrowedBuffer
from .xla_frame import INSTANTIATE, CallFrame, FrameBuffer, Handler

TARGET = "block_scaled_launch"
WORKSPACE = loader.composite.WORKSPACE
# What the caller cannot know or give.
REFUSED = {"prefetch": "XLA decides what is launched before", WORKSPACE.name: "XLA allots it"}

# Dtypes that JAX and the manifest call by other names. What numpy lacks is bytes.
_WORDS = {
    "float32": "f32", "float16": "f16", "bfloat16": "bf16", "int32": "i32", "int64": "i64", "uint8": "u8", "int8": "u8",
    "float8_e4m3fn": "e4m3", "float8_e8m0fnu": "ue8m0",
}  # fmt: skip
_RESULT_TYPES = {"f32": jnp.float32, "f16": jnp.float16, "bf16": jnp.bfloat16, "i32": jnp.int32, "i64": jnp.int64}


# At trace time


def call(name: str, /, *, outputs: Mapping[str, Any] | None = None, **given: Any) -> dict[str, jax.Array]:
    """Run a kernel or a composite; what it writes, by argument.

    ``given``: buffers, scalars and dimensions by name, as ``loader.outputs`` takes them; buffers are arrays, or traced,
    scalars and dimensions are not. ``outputs``: a dtype, or a ``jax.ShapeDtypeStruct``, for results that may have
    several or whose shape follows from nothing else. A result for which ``given`` has an array starts as a copy of it,
    which XLA saves where nobody needs the array any more; others start with any values, and so stay what a kernel
    leaves alone. Results in FP4 and FP8 are bytes if ``outputs`` does not say otherwise.

    Raises a ``LoaderError`` while tracing; what only a launch can find is an error of XLA with the same message.
    """
    for refused in REFUSED.keys() & given.keys():
        raise loader.UnknownArgumentError(
            f"{name}: {refused} cannot be given inside JAX: {REFUSED[refused]}", kernel=name, argument=refused,
            expected="nothing", got=given[refused])  # fmt: skip
    outputs = {key: value if isinstance(value, jax.ShapeDtypeStruct) else jnp.dtype(value)
               for key, value in (outputs or {}).items()}  # fmt: skip
    given = {key: value for key, value in given.items() if value is not None}
    called, given = loader.api.call_of(name, None, None, None, None, given)
    family = called.family
    directions = {argument.name: argument.direction for argument in family.arguments}
    arrays = {key: value for key, value in given.items() if key in directions}
    _check_outputs(family, directions, arrays, outputs)

    known = {key: _spec(jax.typeof(array)) for key, array in arrays.items()}
    asked = {key: _spec(value) if isinstance(value, jax.ShapeDtypeStruct) else _word(value)
             for key, value in outputs.items()}  # fmt: skip
    specs = loader.buffer_specs.buffers(called, (), {**given, **known, **asked})
    written = loader.buffer_specs.written(family, specs)
    results = {key: _result(family, key, spec, arrays.get(key), outputs.get(key)) for key, spec in written.items()}
    launch = {
        "kernel": family.name,
        "operands": list(arrays),
        "results": list(results),
        "dtypes": {key: specs[key].dtype for key in specs},
        "scalars": {scalar.name: given[scalar.name] if scalar.choices
                    else loader.signature.scalar_value(family.name, scalar, given[scalar.name])
                    for scalar in family.scalars if scalar.name in given},
    }  # fmt: skip
    places = {key: place for place, key in enumerate(results)}
    aliases = {index: places[key] for index, key in enumerate(arrays) if key in places}
    run = jax.ffi.ffi_call(TARGET, list(results.values()), vmap_method="sequential", input_output_aliases=aliases)
    values = run(*arrays.values(), launch=json.dumps(launch))
    return {key: value for key, value in zip(results, values, strict=True) if key != WORKSPACE.name}


def _check_outputs(family: loader.manifest.Family, directions: Mapping[str, str], arrays: Mapping[str, Any],
                   outputs: Mapping[str, Any]) -> None:  # fmt: skip
    """What may be read as well as written is given, or asked for; ``outputs`` names what is written and not given."""
    open_ones = [key for key, direction in directions.items() if direction != "in" and key not in arrays]
    for key in outputs:
        if key not in open_ones:
            raise loader.UnknownArgumentError(
                f"{family.name}: outputs has {key!r}; results without an array are {', '.join(open_ones)}",
                kernel=family.name, argument=key, expected=open_ones, got=key)  # fmt: skip
    for key in open_ones:
        if directions[key] == "inout" and key not in outputs:
            raise loader.MissingArgumentError(
                f"{family.name}: {key} may be read, too; give the array that it starts as, or say in outputs what it "
                "is where this call only writes it", kernel=family.name, argument=key, expected="an array",
                got=None)  # fmt: skip


def _word(dtype: Any) -> str:
    """The manifest's word for a dtype; JAX's own where there is none, which the loader then refuses."""
    return _WORDS.get(dtype.name, dtype.name)


def _spec(like: Any) -> loader.BufferSpec:
    return loader.BufferSpec(tuple(like.shape), (_word(like.dtype),))


def _result(family: loader.manifest.Family, key: str, spec: loader.BufferSpec, start: Any,
            asked: Any) -> jax.ShapeDtypeStruct:  # fmt: skip
    """What XLA allots for a result."""
    if len(spec.dtypes) != 1:
        raise loader.DtypeError(
            f"{family.name}: {key} may be {' or '.join(spec.dtypes)}; outputs says which, as in {{{key!r}: "
            "jax.numpy.bfloat16}", kernel=family.name, argument=key, expected="one dtype", got=spec.dtypes)  # fmt: skip
    if key == WORKSPACE.name:  # XLA aligns less than a workspace needs
        return jax.ShapeDtypeStruct((spec.nbytes + WORKSPACE.alignment,), jnp.uint8)
    like = asked if start is None else jax.typeof(start)
    if like is None:
        dtype = _RESULT_TYPES.get(spec.dtype, jnp.uint8)
    else:
        dtype = like if isinstance(like, jnp.dtype) else like.dtype
    return jax.ShapeDtypeStruct(spec.shape, dtype)


# When XLA calls


class _Launch(NamedTuple):
    """A call as its text says. operands, results: names in order; a result of both is the buffer of the call."""

    kernel: str
    operands: list[str]
    results: list[str]
    dtypes: dict[str, str]
    scalars: dict[str, Any]


@functools.lru_cache(maxsize=4096)
def _read(text: bytes) -> _Launch:
    return _Launch(**json.loads(text))


def _launch(frame: CallFrame, device: tuple[int, int], stream: int | None) -> None:
    launch = _read(frame.text("launch"))
    buffers = dict(zip(launch.operands, frame.operands(), strict=True))
    buffers |= zip(launch.results, frame.results(), strict=True)
    if WORKSPACE.name in buffers:
        buffers[WORKSPACE.name] = _aligned(buffers[WORKSPACE.name])
    given = {name: BorrowedBuffer(*buffer, launch.dtypes[name], device) for name, buffer in buffers.items()}
    loader.launch(launch.kernel, **given, **launch.scalars, stream=stream)


def _aligned(workspace: FrameBuffer) -> FrameBuffer:
    """The part of a workspace that starts where it has to."""
    (size,) = workspace.shape
    return FrameBuffer(-(-workspace.pointer // WORKSPACE.alignment) * WORKSPACE.alignment,
                       (size - WORKSPACE.alignment,))  # fmt: skip


def _on_cpu(frame: CallFrame) -> None:
    _launch(frame, (loader.dlpack.CPU, 0), None)


def _on_cuda(frame: CallFrame) -> None:
    if frame.stage == INSTANTIATE:  # no module may be loaded later, while a command buffer is captured
        devices = [device.local_hardware_id for device in jax.local_devices(backend="cuda")]
        loader.preload(_read(frame.text("launch")).kernel, device=devices)
    else:
        _launch(frame, (loader.dlpack.CUDA, frame.ordinal()), frame.stream())


for platform, function, stages in (("cpu", _on_cpu, ("execute",)), ("CUDA", _on_cuda, ("instantiate", "execute"))):
    capsule = Handler(function, loader.ArgumentError).capsule
    jax.ffi.register_ffi_target(TARGET, dict.fromkeys(stages, capsule), platform=platform)
