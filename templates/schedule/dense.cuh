// The rows of one matrix.
#pragma once
#include "schedule/tile.cuh"

namespace schedule {

struct Dense {
    static constexpr int kMaxBatches = 1, num_batches = 1;
    static constexpr bool kHasPadding = false, kDividesK = false;

    int num_rows;

    __device__ __forceinline__ int row(int) const { return 0; }
    __device__ __forceinline__ int count(int) const { return num_rows; }
    __device__ __forceinline__ int scale_row(int) const { return 0; }
    __device__ __forceinline__ static void settle(Tile&) {}
};

}  // namespace schedule
