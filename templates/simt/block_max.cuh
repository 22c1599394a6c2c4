// The largest of the values of all threads of a CTA; NaN where one is.
#pragma once
#include <stdint.h>

#include "number/minmax.cuh"

// In thread 0; others get no result. Every thread of the CTA calls it; a CTA barrier is inside.
template <int kNumThreads>
__device__ __forceinline__ float block_max(float value) {
    static_assert(kNumThreads % 32 == 0 && kNumThreads <= 1024, "whole warps, whose results fit one warp");
    __shared__ float warp_results[kNumThreads / 32];
    for (int distance = 16; distance > 0; distance /= 2)
        value = max_nan(value, __shfl_xor_sync(0xFFFFFFFF, value, distance));
    if (threadIdx.x % 32 == 0) warp_results[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x == 0)
#pragma unroll
        for (int warp = 1; warp < kNumThreads / 32; ++warp) value = max_nan(value, warp_results[warp]);
    return value;
}
