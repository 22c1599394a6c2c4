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


def block_scaled(selectors: str) -> str:
    """An mxf8f6f4 product of ones, with scale factors of random powers of two, into {out}; %h0 to %h3 select."""
    return module(
        f"""ld.param.u64 %d0, [p1]; mad.wide.u32 %d0, %tid, 16, %d0; ld.global.v4.u32 {{%r10,%r11,%r12,%r13}}, [%d0];
        cvt.u16.u32 %h0, %r12; shr.u16 %h1, %h0, 4; and.b16 %h0, %h0, 15;
        cvt.u16.u32 %h2, %r13; shr.u16 %h3, %h2, 4; and.b16 %h2, %h2, 15;
        mov.b32 %r1, 0x38383838; mov.b32 %r2, 0;
        mma.sync.aligned.kind::mxf8f6f4.block_scale.scale_vec::1X.m16n8k32.row.col.f32.e4m3.e4m3.f32.ue8m0
            {{%r4,%r5,%r6,%r7}}, {{%r1,%r1,%r1,%r1}}, {{%r1,%r1}}, {{%r2,%r2,%r2,%r2}}, {{%r10}}, {selectors};
        ld.param.u64 %out, [p0]; mad.wide.u32 %out, %tid, 16, %out; st.global.v4.u32 [%out], {{%r4,%r5,%r6,%r7}};""",
        2,
        "sm_120a",
    )


@pytest.mark.parametrize("uniform", [True, False])
def test_selectors_in_registers(uniform: bool, rng: np.random.Generator) -> None:
    """Byte and thread selectors of a block-scaled mma may be registers; each lane gets the product of its own."""
    scales = rng.integers(120, 135, (32, 8), dtype=np.uint8).view(np.uint32)
    choice = rng.integers(0, (4, 2, 4, 4), (1 if uniform else 32, 4))
    packed = choice[:, [0, 2]] + 16 * choice[:, [1, 3]]
    words = np.concatenate([scales, np.broadcast_to(packed, (32, 2))], 1).astype(np.uint32)
    out = np.zeros((32, 4), np.float32)
    launch(block_scaled("{%h0,%h1}, {%r11}, {%h2,%h3}"), [out, words], arch="120a")
    codes = scales.view(np.uint8).reshape(32, 2, 4).astype(float) - 127
    for lane, (byte_a, thread_a, byte_b, thread_b) in enumerate(np.broadcast_to(choice, (32, 4))):
        for i in range(4):
            column = 2 * (lane % 4) + i % 2
            a = codes[lane // 4 * 4 + 2 * thread_a + i // 2, 0, byte_a]
            b = codes[column * 4 + thread_b, 1, byte_b]
            assert out[lane, i] == 32 * 2.0 ** (a + b)


def test_selectors_that_do_not_exist() -> None:
    """Table 37: another thread than a quad has is undefined, in a register as in a constant."""
    words = np.zeros((32, 4), np.uint32)
    words[:, 2] = 2 << 4
    with pytest.raises(emulator.UnsupportedInstruction, match="thread-id-a 2 .allowed 0..1"):
        launch(block_scaled("{%h0,%h1}, {%r11}, {%h2,%h3}"), [np.zeros((32, 4), np.float32), words], arch="120a")
