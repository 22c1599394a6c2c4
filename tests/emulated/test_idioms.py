"""PTX as other compilers and libraries write it: what is legal runs, what is not emulated is refused by its line."""

from __future__ import annotations

import numpy as np
import pytest
from ptx import launch, module

import emulator

OUT = "ld.param.u64 %out, [p0]; mad.wide.u32 %out, %tid, 4, %out; st.global.b32 [%out], %r0;"
REFUSED = {
    "sparse f16": (
        "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%r1,%r2,%r3,%r4}, {%r5,%r5,%r5,%r5},"
        " {%r5,%r5,%r5,%r5}, {%r5,%r5,%r5,%r5}, %r5, 0x0;",
        "a modifier is unknown",
    ),
    "sparse block-scaled": (
        "mma.sp::ordered_metadata.sync.aligned.kind::mxf4nvf4.block_scale.scale_vec::4X.m16n8k128.row.col.f32.e2m1"
        ".e2m1.f32.ue4m3 {%r1,%r2,%r3,%r4}, {%r5,%r5,%r5,%r5}, {%r5,%r5,%r5,%r5}, {%r5,%r5,%r5,%r5}, %r5, 0x0, {%r5},"
        " {0,0}, {%r5}, {0,0};",
        "a modifier is unknown",
    ),
    "too few operands": ("add.u32 %r0, %r1;", "operands"),
    "too many operands": ("shfl.sync.idx.b32 %r0, %r1, 0, 31, -1, 7;", "operands"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_its_line(name: str) -> None:
    """An instruction that is not emulated, or has operands that it cannot have, is an error with its PTX line."""
    body, what = REFUSED[name]
    with pytest.raises(emulator.UnsupportedInstruction, match=what) as caught:
        launch(module(body, 0, "sm_120a"), [], arch="120a")
    assert caught.value.line is not None and f"PTX line {caught.value.line}: {caught.value.text}" in str(caught.value)


def test_no_space_after_the_opcode() -> None:
    """An opcode ends where a character follows that it cannot hold."""
    out = np.zeros(32, np.uint32)
    launch(module("mov.b64{%r1,%r2}, 0x700000005; add.u32%r0, %r1, %r2;" + OUT), [out])
    assert (out == 12).all()
