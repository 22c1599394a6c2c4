"""What kernels in use do and the emulator once refused: a Hopper GPU's answer to each, from many CTAs at once."""

from __future__ import annotations

import numpy as np

from hopper.case import Case, Row, module, random_words

CTAS = 256

_PROLOGUE = """
    .shared .align 1024 .b8 buffer[1024]; .shared .align 8 .b8 barrier[16];
    .reg .b32 %base, %bar, %mine, %cta, %gid, %warp, %a, %b, %c, %d, %e, %f; .reg .pred %other, %follower;
    mov.u32 %base, buffer; mov.u32 %bar, barrier; mov.u32 %cta, %ctaid.x; mov.u32 %gid, %ntid.x;
    mad.lo.u32 %gid, %cta, %gid, %me; shr.u32 %warp, %me, 5;
    setp.ne.u32 %other, %warp, 0; setp.ne.u32 %follower, %lane, 0;
    ld.param.u64 %in0, [p0]; ld.param.u64 %out, [p1]; mad.wide.u32 %at, %gid, 4, %in0; ld.global.b32 %a, [%at];
    mad.wide.u32 %at, %gid, 4, %out; mad.lo.u32 %mine, %lane, 4, %base;
    setp.ne.u32 %p0, %me, 0; @!%p0 mbarrier.init.shared::cta.b64 [%bar], 1;
    @!%p0 mbarrier.init.shared::cta.b64 [%bar + 8], 1;"""

_STORE_AND_EXIT = """
    st.shared.b32 [%mine], %a; fence.proxy.async.shared::cta; bar.warp.sync -1; @%p0 bra END;
    cp.async.bulk.global.shared::cta.bulk_group [%at], [%base], 128; cp.async.bulk.commit_group;
    END:"""

_IN_PLACE = """
    mad.lo.u32 %mine, %lane, 16, %base; not.b32 %b, %a; add.u32 %c, %a, %me; xor.b32 %d, %a, 0x5A5A5A5A;
    st.shared.v4.b32 [%mine], {%a, %b, %c, %d}; bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%a, %b, %c, %d}, [%mine];
    add.u32 %a, %a, %b; xor.b32 %c, %c, %d; stmatrix.sync.aligned.m8n8.x4.shared.b16 [%mine], {%a, %b, %c, %d};
    bar.warp.sync -1; ld.shared.v4.b32 {%a, %b, %c, %d}, [%mine];
    mad.lo.u32 %a, %a, 3, %b; mad.lo.u32 %a, %a, 5, %c; mad.lo.u32 %a, %a, 7, %d; st.global.b32 [%at], %a;"""

_PEEK = """
    bar.sync 0; @%other bra OTHER;
    mbarrier.try_wait.parity.shared::cta.b64 %p1, [%bar + 8], 0; // only once
    @!%follower mbarrier.arrive.shared::cta.b64 _, [%bar];
    AGAIN: mbarrier.try_wait.parity.shared::cta.b64 %p1, [%bar + 8], 0; @!%p1 bra AGAIN;
    bra END;
    OTHER: mbarrier.try_wait.parity.shared::cta.b64 %p1, [%bar], 0; @!%p1 bra OTHER;
    @!%follower mbarrier.arrive.shared::cta.b64 _, [%bar + 8];
    END: st.global.b32 [%at], %a;"""

_ONE_ARRIVES = """
    and.b32 %a, %a, 0x83FF83FF; or.b32 %a, %a, 0x38003800; // moderate numbers
    @!%other st.shared.b32 [%mine], %a; bar.sync 0; mov.b32 %e, 0; mov.b32 %b, %a; @%other bra OTHER;
    ld.shared.b32 %f, [%mine];
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%b, %c, %d, %e}, {%f, %f, %f, %f}, {%f, %f}, {%e, %e, %e, %e};
    @!%follower mbarrier.arrive.shared::cta.b64 _, [%bar]; bra END;
    OTHER: mbarrier.try_wait.parity.shared::cta.b64 %p1, [%bar], 0; @!%p1 bra OTHER;
    st.shared.b32 [%mine], %lane;
    END: st.global.b32 [%at], %b;"""


def _case(name: str, body: str, block: int, without: tuple[str, ...] = ()) -> Case:
    words = random_words(name, CTAS * block)
    row = Row(f"{CTAS} CTAs of {block} threads", 0, len(words))
    text = module(_PROLOGUE + body, 2)
    output = np.zeros(words.nbytes, np.uint8)
    return Case(name, text, (words,), output, (row,), CTAS, block, without=without)


def cases() -> list[Case]:
    return [
        _case("exit_with_a_bulk_store_outstanding", _STORE_AND_EXIT, 32, ("exit",)),
        _case("ldmatrix_then_stmatrix_in_place", _IN_PLACE, 32),
        _case("try_wait_as_a_peek", _PEEK, 64),
        _case("one_lane_arrives_after_mma", _ONE_ARRIVES, 64),
    ]
