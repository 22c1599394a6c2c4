// Rows of a grouped GEMM that are packed, sorted by batch.
#pragma once
#include "schedule/scan.cuh"
#include "schedule/tile.cuh"

namespace schedule {

// Read past L1: an earlier grid may have written them, and this one not waited for any yet.
struct Offsets {
    static constexpr int kMaxBatches = scan::kMaxBatches;
    static constexpr bool kHasPadding = false, kDividesK = false;

    const int* expert_offsets;  // first row of each batch, then the end of the last one
    const int* scale_offsets;   // the same of its scales
    int num_rows, num_batches;

    __device__ __forceinline__ int row(int batch) const {
        return scan::clamp_rows(__ldcg(expert_offsets + batch), num_rows);
    }
    __device__ __forceinline__ int count(int batch) const {
        return max(0, scan::clamp_rows(__ldcg(expert_offsets + batch + 1), num_rows) - row(batch));
    }
    __device__ __forceinline__ int scale_row(int batch) const { return __ldcg(scale_offsets + batch); }
    __device__ __forceinline__ static void settle(Tile&) {}
};

}  // namespace schedule
