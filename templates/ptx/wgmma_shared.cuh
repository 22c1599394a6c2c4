// wgmma with both operands in shared memory (PTX ISA 9.0, section 9.7.15.5).
#pragma once
#include <stdint.h>

#include "number/element.cuh"
#include "ptx/wgmma.cuh"

namespace wgmma {

// d[64 x kN] (+)= a[64 x 32 bytes] . b[kN x 32 bytes]^T in fp32: both K-major in rows of 128 bytes. d is distributed as
// in mma_f16(). With accumulate false, d is overwritten.
template <class Element, int kN>
__device__ __forceinline__ void mma_shared(float* d, uint64_t a, uint64_t b, bool accumulate);

#define WGMMA_SHARED(element, n, instruction, values, a_number, b_number, p_number, transposed)                    \
    template <>                                                                                                     \
    __device__ __forceinline__ void mma_shared<element, n>(float* d, uint64_t a, uint64_t b, bool accumulate) {     \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p_number                                                   \
                     ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n instruction " {" WGMMA_R##values "}, " a_number   \
                     ", " b_number ", p, 1, 1" transposed ";\n}\n"                                                  \
                     : WGMMA_D##values                                                                              \
                     : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                          \
    }
#define WGMMA_SHARED_ALL(n, values, a_number, b_number, p_number)                                                   \
    WGMMA_SHARED(number::e4m3, n, "k32.f32.e4m3.e4m3", values, a_number, b_number, p_number, "")                    \
    WGMMA_SHARED(number::bf16, n, "k16.f32.bf16.bf16", values, a_number, b_number, p_number, ", 0, 0")
WGMMA_SHARED_ALL(8, 4, "%4", "%5", "%6")
WGMMA_SHARED_ALL(16, 8, "%8", "%9", "%10")
WGMMA_SHARED_ALL(32, 16, "%16", "%17", "%18")
WGMMA_SHARED_ALL(48, 24, "%24", "%25", "%26")
WGMMA_SHARED_ALL(64, 32, "%32", "%33", "%34")
WGMMA_SHARED_ALL(96, 48, "%48", "%49", "%50")
WGMMA_SHARED_ALL(128, 64, "%64", "%65", "%66")
WGMMA_SHARED_ALL(192, 96, "%96", "%97", "%98")
WGMMA_SHARED_ALL(256, 128, "%128", "%129", "%130")
#undef WGMMA_SHARED_ALL
#undef WGMMA_SHARED

}  // namespace wgmma
