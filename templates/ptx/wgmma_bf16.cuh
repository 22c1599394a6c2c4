// wgmma of bf16 with its rows in registers (PTX ISA 9.0, section 9.7.15.5).
#pragma once
#include <stdint.h>

#include "ptx/wgmma.cuh"

namespace wgmma {

// As mma_f16(), of bf16.
template <int kN>
__device__ __forceinline__ void mma_bf16(float* d, const uint32_t (&a)[4], uint64_t b, bool accumulate);

#define WGMMA_BF16(...) WGMMA_OF_REGISTERS(mma_bf16, "k16.f32.bf16.bf16", ", 0", __VA_ARGS__)
WGMMA_BF16(8, 4, "%4, %5, %6, %7", "%8", "%9")
WGMMA_BF16(16, 8, "%8, %9, %10, %11", "%12", "%13")
WGMMA_BF16(32, 16, "%16, %17, %18, %19", "%20", "%21")
WGMMA_BF16(48, 24, "%24, %25, %26, %27", "%28", "%29")
WGMMA_BF16(64, 32, "%32, %33, %34, %35", "%36", "%37")
WGMMA_BF16(80, 40, "%40, %41, %42, %43", "%44", "%45")
WGMMA_BF16(96, 48, "%48, %49, %50, %51", "%52", "%53")
WGMMA_BF16(128, 64, "%64, %65, %66, %67", "%68", "%69")
WGMMA_BF16(192, 96, "%96, %97, %98, %99", "%100", "%101")
WGMMA_BF16(256, 128, "%128, %129, %130, %131", "%132", "%133")
#undef WGMMA_BF16

}  // namespace wgmma
