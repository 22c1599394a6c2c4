// Batches that share the rows of one matrix and differ in K: gradients of grouped weights.
#pragma once
#include "schedule/scan.cuh"
#include "schedule/tile.cuh"

namespace schedule {

struct KGroups {
    static constexpr int kMaxBatches = scan::kMaxBatches;
    static constexpr bool kHasPadding = false, kDividesK = true;

    const int* k_offsets;  // first k of each batch, then the end of the last one
    int num_rows, depth, num_batches;

    __device__ __forceinline__ int row(int batch) const { return batch * num_rows; }  // of out
    __device__ __forceinline__ int count(int) const { return num_rows; }
    __device__ __forceinline__ static int scale_row(int) { return 0; }  // of a, too
    __device__ __forceinline__ void settle(Tile& tile) const {
        tile.k_begin = scan::clamp_rows(__ldcg(k_offsets + tile.batch), depth);
        tile.k_end = scan::clamp_rows(__ldcg(k_offsets + tile.batch + 1), depth);
    }
};

}  // namespace schedule
