// Prefix sums over the threads of a CTA and over the batches (experts) of a call, and the search in them.
#pragma once
#include <stdint.h>

namespace scan {

constexpr int kMaxBatches = 1024;
constexpr int kMaxWarps = 32;

template <typename T>
struct Sums {
    T before;  // of the threads before this one
    T total;   // of all threads
};

// Every thread of a CTA of kNumThreads calls it; a CTA barrier is inside, and another one must follow before `totals`,
// one of each warp, is used again.
template <int kNumThreads, typename T>
__device__ __forceinline__ Sums<T> over_threads(T value, T* totals) {
    static_assert(kNumThreads % 32 == 0 && kNumThreads / 32 <= kMaxWarps, "the scan works on whole warps");
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    T inclusive = value;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const T below = __shfl_up_sync(0xFFFFFFFF, inclusive, distance);
        if (lane >= distance) inclusive += below;
    }
    if (lane == 31) totals[warp] = inclusive;
    __syncthreads();
    Sums<T> sums{inclusive - value, 0};
#pragma unroll 4  // all at once would take registers of the whole kernel
    for (int w = 0; w < kNumThreads / 32; ++w) {
        if (w < warp) sums.before += totals[w];
        sums.total += totals[w];
    }
    return sums;
}

// before[e] = count(0) + .. + count(e - 1), for e up to num_batches. Every thread of the CTA calls it; CTA barriers are
// inside, the last one after all is written.
template <int kNumThreads, typename Count>
__device__ __forceinline__ void over_batches(int* before, int* totals, int num_batches, const Count& count) {
    int carry = 0;
    for (int base = 0; base < num_batches; base += kNumThreads) {
        const int batch = base + threadIdx.x;
        const Sums<int> sums = over_threads<kNumThreads>(batch < num_batches ? count(batch) : 0, totals);
        if (batch < num_batches) before[batch] = carry + sums.before;
        carry += sums.total;
        __syncthreads();  // before totals is written again
    }
    if (threadIdx.x == 0) before[num_batches] = carry;
    __syncthreads();
}

// The batch in which `index` lies, unit * before[0] <= index < unit * before[num_batches]: the last one that starts at
// or before it, so one that is not empty.
__device__ __forceinline__ int find(const int* before, int num_batches, int index, int unit = 1) {
    int low = 0, high = num_batches;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (before[middle] * unit <= index) low = middle;
        else high = middle;
    }
    return low;
}

// A number of rows that came from memory: what is not as it should be cannot lead out of the buffers.
__device__ __forceinline__ int clamp_rows(int rows, int most) { return max(0, min(rows, most)); }

}  // namespace scan
