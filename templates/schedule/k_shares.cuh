// Batches that are shares of K of one matrix: blocks of it, of which none has more than one more than another.
#pragma once
#include <stdint.h>

#include "schedule/scan.cuh"
#include "schedule/tile.cuh"

namespace schedule {

template <int BLOCK_K>
struct KShares {
    static constexpr int kMaxBatches = scan::kMaxBatches;
    static constexpr bool kHasPadding = false, kDividesK = true;

    int num_rows, depth, num_batches;  // depth: whole blocks

    __device__ __forceinline__ static int row(int) { return 0; }
    __device__ __forceinline__ int count(int) const { return num_rows; }
    __device__ __forceinline__ static int scale_row(int) { return 0; }
    __device__ __forceinline__ void settle(Tile& tile) const {
        tile.k_begin = begin(tile.batch);
        tile.k_end = begin(tile.batch + 1);
    }

private:
    __device__ __forceinline__ int begin(int share) const {
        return int(int64_t(depth / BLOCK_K) * share / num_batches) * BLOCK_K;
    }
};

}  // namespace schedule
