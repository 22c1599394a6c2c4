// Batches that are matrices of as many rows each, wherever they lie: a tile's row is that in its matrix.
#pragma once
#include "schedule/scan.cuh"
#include "schedule/tile.cuh"

namespace schedule {

struct Matrices {
    static constexpr int kMaxBatches = scan::kMaxBatches;
    static constexpr bool kHasPadding = false, kDividesK = false;

    int num_rows, num_batches;
    int scales_of_batch;  // from the scales of a batch to those of the next

    __device__ __forceinline__ static int row(int) { return 0; }
    __device__ __forceinline__ int count(int) const { return num_rows; }
    __device__ __forceinline__ int scale_row(int batch) const { return batch * scales_of_batch; }
    __device__ __forceinline__ static void settle(Tile&) {}
};

}  // namespace schedule
