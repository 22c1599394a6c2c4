// Which expert a row belongs to: the first row of every expert in shared memory, found by binary search.
#pragma once
#include <stdint.h>

namespace experts {

constexpr int kMaxExperts = 1024;

struct SharedStorage {
    int first_row[kMaxExperts + 1];  // of each expert, then the end of the last one
    int warp_totals[32];
};

// Takes packed rows as expert_offsets has them. Every thread of the CTA calls it; a CTA barrier is inside. Rows are
// clamped to [0, num_rows], so that offsets which are not what they should be cannot lead out of the buffers.
__device__ __forceinline__ void load(SharedStorage& storage, const int* expert_offsets, int num_experts,
                                     int num_rows) {
    for (int e = threadIdx.x; e <= num_experts; e += blockDim.x)
        storage.first_row[e] = max(0, min(expert_offsets[e], num_rows));
    __syncthreads();
}

// Packs the first counts[e] rows of each expert, clamped to [0, max_count], one after the other. As above.
__device__ __forceinline__ void pack(SharedStorage& storage, const int* counts, int num_experts, int max_count) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int carry = 0;
    for (int base = 0; base < num_experts; base += blockDim.x) {
        const int expert = base + threadIdx.x;
        const int count = expert < num_experts ? max(0, min(counts[expert], max_count)) : 0;
        int inclusive = count;
        for (int distance = 1; distance < 32; distance *= 2) {
            const int below = __shfl_up_sync(0xFFFFFFFF, inclusive, distance);
            if (lane >= distance) inclusive += below;
        }
        if (lane == 31) storage.warp_totals[warp] = inclusive;
        __syncthreads();
        int before = carry;
        for (int w = 0; w < blockDim.x / 32; ++w) {
            const int total = storage.warp_totals[w];
            if (w < warp) before += total;
            carry += total;
        }
        if (expert < num_experts) storage.first_row[expert] = before + inclusive - count;
        __syncthreads();  // before warp_totals is written again
    }
    if (threadIdx.x == 0) storage.first_row[num_experts] = carry;
    __syncthreads();
}

// The expert of a row, first_row[0] <= row < first_row[num_experts]: the last one that starts at or before it.
__device__ __forceinline__ int find(const SharedStorage& storage, int num_experts, int row) {
    int low = 0, high = num_experts;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (storage.first_row[middle] <= row) low = middle;
        else high = middle;
    }
    return low;
}

}  // namespace experts
