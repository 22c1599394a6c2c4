// The rows of experts that a quantisation goes through: packed, or the valid ones of a matrix each.
#pragma once
#include <stdint.h>

#include "schedule/scan.cuh"
#include "simt/quantize_row.cuh"

namespace experts {

struct SharedStorage {
    int first_row[scan::kMaxBatches + 1];  // of each expert, then the end of the last one
    int warp_totals[scan::kMaxWarps];
};

// Takes packed rows as expert_offsets has them. Every thread of the CTA calls it; a CTA barrier is inside.
template <int kNumThreads>
__device__ __forceinline__ void load(SharedStorage& storage, const int* expert_offsets, int num_experts,
                                     int num_rows) {
    for (int e = threadIdx.x; e <= num_experts; e += kNumThreads)
        storage.first_row[e] = scan::clamp_rows(expert_offsets[e], num_rows);
    __syncthreads();
}

// Packs the first counts[e] rows of each expert, clamped to [0, max_count], one after the other. As above.
template <int kNumThreads>
__device__ __forceinline__ void pack(SharedStorage& storage, const int* counts, int num_experts, int max_count) {
    scan::over_batches<kNumThreads>(storage.first_row, storage.warp_totals, num_experts,
                                    [&](int expert) { return scan::clamp_rows(counts[expert], max_count); });
}

}  // namespace experts

namespace quantize {

// Packed rows, after experts::load. The scales of an expert start at row scale_offsets[e]; null: they are packed, too.
struct PackedRows {
    const experts::SharedStorage& storage;
    const int* scale_offsets;
    int num_experts;

    __device__ __forceinline__ int begin() const { return storage.first_row[0]; }
    __device__ __forceinline__ int end() const { return storage.first_row[num_experts]; }
    __device__ __forceinline__ Row locate(int row) const {
        const int expert = scan::find(storage.first_row, num_experts, row);
        if (scale_offsets == nullptr) return {row, row, row, expert};
        return {row, row, scale_offsets[expert] + row - storage.first_row[expert], expert};
    }
};

// The first rows of each matrix of [E, max_rows, ..], after experts::pack. Scales of each take `scale_rows`.
struct MaskedRows {
    const experts::SharedStorage& storage;
    int num_experts, max_rows, scale_rows;

    __device__ __forceinline__ int begin() const { return 0; }
    __device__ __forceinline__ int end() const { return storage.first_row[num_experts]; }
    __device__ __forceinline__ Row locate(int row) const {
        const int expert = scan::find(storage.first_row, num_experts, row), within = row - storage.first_row[expert];
        const int stored = expert * max_rows + within;
        return {stored, stored, expert * scale_rows + within, expert};
    }
};

}  // namespace quantize
