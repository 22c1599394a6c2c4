// wgmma of bf16 with its rows in registers (PTX ISA 9.0, section 9.7.15.5).
#pragma once
#include <stdint.h>

#include "ptx/wgmma.cuh"

namespace wgmma {

// As mma_f16(), of bf16.
template <int kN>
__device__ __forceinline__ void mma_bf16(float* d, const uint32_t (&a)[4], uint64_t b, bool accumulate);

#define WGMMA_BF16(...) WGMMA_OF_REGISTERS(mma_bf16, "k16.f32.bf16.bf16", ", 0", __VA_ARGS__)
WGMMA_BF16(32, 16, "%16, %17, %18, %19", "%20", "%21")
WGMMA_BF16(128, 64, "%64, %65, %66, %67", "%68", "%69")
#undef WGMMA_BF16

}  // namespace wgmma
