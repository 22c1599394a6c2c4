// wgmma with both operands in shared memory (PTX ISA 9.0, section 9.7.15.5).
#pragma once
#include <stdint.h>

#include "number/element.cuh"
#include "ptx/wgmma.cuh"

namespace wgmma {

template <class Element, int kN>
struct Shape {};

// d[64 x kN] (+)= a[64 x 32 bytes] . b[kN x 32 bytes]^T in fp32, both in rows of 128 bytes of K, or of M or N (kAMnMajor,
// kBMnMajor; 16-bit types alone). d is distributed as in mma_f16(). With accumulate false, d is overwritten.
#define WGMMA_SHARED(element, n, instruction, values, a_number, b_number, p_number, majors, ...)                    \
    template <bool kAMnMajor, bool kBMnMajor>                                                                       \
    __device__ __forceinline__ void mma_shared(Shape<element, n>, float* d, uint64_t a, uint64_t b,                 \
                                               bool accumulate) {                                                   \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p_number                                                   \
                     ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n instruction " {" WGMMA_R##values "}, " a_number   \
                     ", " b_number ", p, 1, 1" majors ";\n}\n"                                                      \
                     : WGMMA_D##values                                                                              \
                     : "l"(a), "l"(b), "r"(static_cast<int>(accumulate))__VA_ARGS__);                               \
    }
#define WGMMA_SHARED_MAJORS , "n"(kAMnMajor), "n"(kBMnMajor)
#define WGMMA_SHARED_ALL(n, values, a_number, b_number, p_number, a_major, b_major)                                 \
    WGMMA_SHARED(number::e4m3, n, "k32.f32.e4m3.e4m3", values, a_number, b_number, p_number, "", )                  \
    WGMMA_SHARED(number::bf16, n, "k16.f32.bf16.bf16", values, a_number, b_number, p_number,                        \
                 ", " a_major ", " b_major, WGMMA_SHARED_MAJORS)
WGMMA_SHARED_ALL(8, 4, "%4", "%5", "%6", "%7", "%8")
WGMMA_SHARED_ALL(16, 8, "%8", "%9", "%10", "%11", "%12")
WGMMA_SHARED_ALL(32, 16, "%16", "%17", "%18", "%19", "%20")
WGMMA_SHARED_ALL(48, 24, "%24", "%25", "%26", "%27", "%28")
WGMMA_SHARED_ALL(64, 32, "%32", "%33", "%34", "%35", "%36")
WGMMA_SHARED_ALL(96, 48, "%48", "%49", "%50", "%51", "%52")
WGMMA_SHARED_ALL(128, 64, "%64", "%65", "%66", "%67", "%68")
WGMMA_SHARED_ALL(144, 72, "%72", "%73", "%74", "%75", "%76")
WGMMA_SHARED_ALL(176, 88, "%88", "%89", "%90", "%91", "%92")
WGMMA_SHARED_ALL(192, 96, "%96", "%97", "%98", "%99", "%100")
WGMMA_SHARED_ALL(256, 128, "%128", "%129", "%130", "%131", "%132")
#undef WGMMA_SHARED_ALL
#undef WGMMA_SHARED_MAJORS
#undef WGMMA_SHARED

}  // namespace wgmma
