// The rows of one matrix, each tile of which is multiplied in shares of K: the call asks for so many, and has the sums
// of each. Blocks of 64 are dealt out evenly, and the first shares have one more where some are left.
#pragma once
#include "number/integer.cuh"
#include "schedule/dense.cuh"
#include "schedule/tile.cuh"

namespace schedule {

// A tile's batch is its share. The schedule is one of columns that are a tile wide: those of the first share come first.
template <int BLOCK_N>
struct ColumnShares : Dense {
    static constexpr int kBlock = 64;
    static constexpr bool kDividesK = true;  // a share may be empty

    int num_columns, num_shares;

    __device__ __forceinline__ int column_tiles() const { return ceil_div(num_columns, BLOCK_N) * num_shares; }

    __device__ __forceinline__ void settle(Tile& tile) const {
        const unsigned tiles = ceil_div(num_columns, BLOCK_N), index = tile.column, share = index / tiles;
        const unsigned blocks = tile.k_end / kBlock, least = blocks / num_shares, left = blocks % num_shares;
        tile.batch = share;
        tile.column = index % tiles * BLOCK_N;
        tile.k_begin = (share * least + min(share, left)) * kBlock;
        tile.k_end = tile.k_begin + (least + (share < left)) * kBlock;
    }
};

}  // namespace schedule
