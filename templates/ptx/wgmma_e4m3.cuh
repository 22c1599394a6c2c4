// wgmma of E4M3 with its rows in registers (PTX ISA 9.0, section 9.7.15.5).
#pragma once
#include <stdint.h>

#include "ptx/wgmma.cuh"

namespace wgmma {

// d[64 x kN] = a[64 x 32] . b[kN x 32]^T: a in registers, four elements in each as in section 9.7.15.5.1.1, b K-major in
// shared memory. d is distributed as in mma_f16().
template <int kN>
__device__ __forceinline__ void mma_e4m3(float* d, const uint32_t (&a)[4], uint64_t b);

#define WGMMA_E4M3(n, values, a_numbers, b_number)                                                                  \
    template <>                                                                                                     \
    __device__ __forceinline__ void mma_e4m3<n>(float* d, const uint32_t (&a)[4], uint64_t b) {                     \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k32.f32.e4m3.e4m3 {" WGMMA_R##values "}, {"            \
                     a_numbers "}, " b_number ", 0, 1, 1;\n"                                                        \
                     : WGMMA_D##values                                                                              \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                         \
    }
WGMMA_E4M3(16, 8, "%8, %9, %10, %11", "%12")
WGMMA_E4M3(32, 16, "%16, %17, %18, %19", "%20")
WGMMA_E4M3(64, 32, "%32, %33, %34, %35", "%36")
WGMMA_E4M3(128, 64, "%64, %65, %66, %67", "%68")
#undef WGMMA_E4M3

}  // namespace wgmma
