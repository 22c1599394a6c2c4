// wgmma of E5M2 by E4M3 with its rows in registers (PTX ISA 9.0, section 9.7.15.5).
#pragma once
#include <stdint.h>

#include "ptx/wgmma.cuh"

namespace wgmma {

// d[64 x kN] (+)= a[64 x 32] . b[kN x 32]^T: a in registers, four elements in each as in section 9.7.15.5.1.1, b K-major
// in shared memory. d is distributed as in mma_f16().
template <int kN>
__device__ __forceinline__ void mma_e5m2(float* d, const uint32_t (&a)[4], uint64_t b, bool accumulate);

#define WGMMA_E5M2(...) WGMMA_OF_REGISTERS(mma_e5m2, "k32.f32.e5m2.e4m3", "", __VA_ARGS__)
WGMMA_E5M2(8, 4, "%4, %5, %6, %7", "%8", "%9")
WGMMA_E5M2(16, 8, "%8, %9, %10, %11", "%12", "%13")
WGMMA_E5M2(32, 16, "%16, %17, %18, %19", "%20", "%21")
WGMMA_E5M2(64, 32, "%32, %33, %34, %35", "%36", "%37")
WGMMA_E5M2(128, 64, "%64, %65, %66, %67", "%68", "%69")
#undef WGMMA_E5M2

}  // namespace wgmma
