"""Small kernels for the emulator's tests: instructions between loads and stores, written as PTX."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import numpy as np

import emulator

_REGISTER = {1: "u16", 2: "u16", 4: "u32", 8: "u64"}
_DECLARATIONS = """
    .reg .pred %p<8>; .reg .pred %q<8>;
    .reg .b16 %h<16>;
    .reg .b32 %r<64>;
    .reg .b64 %d<32>;
    .reg .b128 %w<4>;
    .reg .b32 %tid, %lane; .reg .b64 %out, %offset, %in<8>;
"""


def module(body: str, parameters: int = 1, target: str = "sm_90a", shared: int = 0, name: str = "kernel") -> str:
    """A kernel of 64-bit parameters p0, p1, ... around `body`; %tid and %lane are set."""
    listed = ", ".join(f".param .u64 p{i}" for i in range(parameters))
    variable = f".shared .align 1024 .b8 buffer[{shared}];" if shared else ""
    return f"""
.version 9.0
.target {target}
.address_size 64
.visible .entry {name}({listed}) {{
    {_DECLARATIONS}
    {variable}
    mov.u32 %tid, %tid.x;
    mov.u32 %lane, %laneid;
    {body}
    ret;
}}
"""


def launch(
    text: str,
    buffers: Sequence[np.ndarray],
    threads: int = 32,
    grid: int = 1,
    cluster: int = 1,
    *,
    arch: str = "90a",
    seed: int = 0,
    lazy: bool = True,
    checks: bool | Iterable[str] = True,
    extra: bytes = b"",
    shared: int = 0,
) -> emulator.Statistics:
    """Runs the only kernel of a module on writable buffers, whose addresses are its first parameters."""
    device = emulator.Device(arch, seed, lazy, checks)
    for index, buffer in enumerate(buffers):
        device.map_buffer(buffer.ctypes.data, buffer.nbytes, True, f"buffer {index}")
    loaded = emulator.load(text)
    parameters = struct.pack(f"<{len(buffers)}Q", *(buffer.ctypes.data for buffer in buffers)) + extra
    (name,) = loaded.entries
    return device.launch(loaded, name, (grid, 1, 1), (threads, 1, 1), (cluster, 1, 1), shared, parameters)


def evaluate(instructions: str, operands: Sequence[np.ndarray], result: type | str) -> np.ndarray:
    """One value of type `result` a thread, of instructions that read %a, %b, ... and write %z.

    Operands and results of 1 and 2 bytes are in 16-bit registers.
    """
    kind = np.dtype(result)
    count = len(operands[0])
    names = "abcdefgh"
    lines = []
    for index, operand in enumerate(operands):
        size = operand.dtype.itemsize
        lines.append(f".reg .b{max(16, 8 * size)} %{names[index]};")
        lines.append(f"ld.param.u64 %in{index}, [p{index}];")
        lines.append(f"mad.wide.u32 %in{index}, %tid, {size}, %in{index};")
        lines.append(f"ld.global.u{8 * size} %{names[index]}, [%in{index}];")
    size = kind.itemsize
    lines.append(f".reg .b{max(16, 8 * size)} %z;")
    lines.append(instructions)
    lines.append(f"ld.param.u64 %out, [p{len(operands)}];")
    lines.append(f"mad.wide.u32 %out, %tid, {size}, %out;")
    lines.append(f"st.global.u{8 * size} [%out], %z;")
    out = np.zeros(count, kind)
    threads = min(count, 1024)
    if count > threads:
        parts = [slice(i, i + threads) for i in range(0, count, threads)]
        return np.concatenate([evaluate(instructions, [o[p] for o in operands], result) for p in parts])
    launch(module("\n".join(lines), len(operands) + 1), [*operands, out], threads)
    return out
