// out = sums and square_sum = sums of squares, in fp32, of each share of K on its own.
#pragma once
#include <stdint.h>

#include "layout/row_slots.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

struct SquaresParams {
    float *out, *square_sum;
    int num_rows, num_columns;

    // Of a row of the tile, among those of all shares.
    __device__ __forceinline__ int64_t place(const schedule::Tile& tile, int row) const {
        return static_cast<int64_t>(tile.batch) * num_rows + tile.row + row;
    }
};

template <class Slots>
struct StoreSquares;

template <int BLOCK_N>
struct StoreSquares<layout::RowSlots<BLOCK_N>> {
    using Slots = layout::RowSlots<BLOCK_N>;
    using Params = SquaresParams;
    struct Storage {};

    __device__ __forceinline__ static void finish(Storage&, const typename Slots::Accumulators& accumulators,
                                                  const schedule::Tile& tile, const Params& params) {
        const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, l = threadIdx.x % 4;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float square_sum = accumulators[0][Slots::kFours][half];
            square_sum += __shfl_xor_sync(0xFFFFFFFF, square_sum, 1);
            square_sum += __shfl_xor_sync(0xFFFFFFFF, square_sum, 2);
            const int row = Slots::first_token(warp, g + 8 * half);
            if (row >= tile.num_rows) continue;
            const int64_t place = params.place(tile, row);
            if (tile.column == 0 && l == 0) params.square_sum[place] = square_sum;
#pragma unroll
            for (int i = 0; i < Slots::kFours; ++i) {
                const int column = tile.column + 8 * i + 2 * l;
                const float* const pair = &accumulators[0][i][2 * half];
                if (column < params.num_columns)
                    *reinterpret_cast<float2*>(params.out + place * params.num_columns + column) =
                        make_float2(pair[0], pair[1]);
            }
        }
    }
};

template <int BLOCK_N>
struct StoreSquares<layout::RowLanes<BLOCK_N>> {
    using Slots = layout::RowLanes<BLOCK_N>;
    using Params = SquaresParams;
    struct Storage {};

    __device__ __forceinline__ static void finish(Storage&, const typename Slots::Accumulators& accumulators,
                                                  const schedule::Tile& tile, const Params& params) {
        const int row = Slots::first_token(threadIdx.x / 32, threadIdx.x % 32);
        if (row >= tile.num_rows) return;
        const int64_t place = params.place(tile, row);
        if (tile.column == 0) params.square_sum[place] = accumulators[0][Slots::kFours][0];
#pragma unroll
        for (int i = 0; i < Slots::kFours; ++i) {
            const int column = tile.column + 4 * i;
            const float* const four = accumulators[0][i];
            if (column < params.num_columns)
                *reinterpret_cast<float4*>(params.out + place * params.num_columns + column) =
                    make_float4(four[0], four[1], four[2], four[3]);
        }
    }
};

}  // namespace epilogue
