// Which sums a thread has where rows of a take the rows of the instruction: those of columns by fours, and behind them
// sums of the squares of its rows.
#pragma once
namespace layout {

// wgmma and mma.sync: a warp has 16 rows. Lane 4 g + l has columns 2 l and 2 l + 1 of each 8, first of row g, then of row
// g + 8; and of either row a share of the squares.
template <int BLOCK_N>
struct RowSlots {
    static constexpr int kNumWarps = 8, kWarpsN = 1, kFours = BLOCK_N / 8;
    using Accumulators = float[1][kFours + 1][4];

    __device__ __forceinline__ static constexpr int first_token(int warp, int row) {
        return warp * 16 + row;
    }
};

// tcgen05: a lane has a row.
template <int BLOCK_N>
struct RowLanes {
    static constexpr int kNumWarps = 4, kWarpsN = 1, kFours = BLOCK_N / 4;
    using Accumulators = float[1][kFours + 1][4];

    __device__ __forceinline__ static constexpr int first_token(int warp, int row) {
        return warp * 32 + row;
    }
};

}  // namespace layout
