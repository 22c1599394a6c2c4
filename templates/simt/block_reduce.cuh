// One value of those of all threads of a CTA.
#pragma once
#include <stdint.h>

#include "number/minmax.cuh"

// In every thread, combined in the order of pairs of lanes, then of warps. Every thread of the CTA calls it, once in a
// kernel; a CTA barrier is inside.
template <int kNumThreads, typename Combine>
__device__ __forceinline__ float block_reduce(float value, const Combine& combine) {
    static_assert(kNumThreads % 32 == 0 && kNumThreads <= 1024, "whole warps, whose results fit one warp");
    __shared__ float warp_results[kNumThreads / 32];
    for (int distance = 16; distance > 0; distance /= 2)
        value = combine(value, __shfl_xor_sync(0xFFFFFFFF, value, distance));
    if (threadIdx.x % 32 == 0) warp_results[threadIdx.x / 32] = value;
    __syncthreads();
    value = warp_results[0];
#pragma unroll
    for (int warp = 1; warp < kNumThreads / 32; ++warp) value = combine(value, warp_results[warp]);
    return value;
}

// The largest; NaN where one is.
template <int kNumThreads>
__device__ __forceinline__ float block_max(float value) {
    return block_reduce<kNumThreads>(value, [](float a, float b) { return max_nan(a, b); });
}

// The sum, each addition rounded; the same bits in every launch.
template <int kNumThreads>
__device__ __forceinline__ float block_sum(float value) {
    return block_reduce<kNumThreads>(value, [](float a, float b) { return __fadd_rn(a, b); });
}
