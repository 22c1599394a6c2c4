// wgmma of tf32 with its rows in registers (PTX ISA 9.0, section 9.7.15.5).
#pragma once
#include <stdint.h>

#include "ptx/wgmma.cuh"

namespace wgmma {

// d[64 x kN] (+)= a[64 x 8] . b[kN x 8]^T: a in registers, an element in each as in section 9.7.15.5.1.1, b K-major in
// shared memory; the low 13 bits of both do not count. d is distributed as in mma_f16().
template <int kN>
__device__ __forceinline__ void mma_tf32(float* d, const uint32_t (&a)[4], uint64_t b, bool accumulate);

#define WGMMA_TF32(...) WGMMA_OF_REGISTERS(mma_tf32, "k8.f32.tf32.tf32", "", __VA_ARGS__)
WGMMA_TF32(32, 16, "%16, %17, %18, %19", "%20", "%21")
WGMMA_TF32(64, 32, "%32, %33, %34, %35", "%36", "%37")
WGMMA_TF32(128, 64, "%64, %65, %66, %67", "%68", "%69")
#undef WGMMA_TF32

}  // namespace wgmma
