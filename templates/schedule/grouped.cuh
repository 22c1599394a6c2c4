// Persistent schedule of a grouped GEMM: which (batch, row tile, column tile) a CTA computes next.
//
// `Rows` says which rows a batch has, as known on the device only:
//     static constexpr int kMaxBatches;  int num_batches;
//     int count(int batch) const, row(int batch) const, scale_row(int batch) const;
// Every CTA scans the counts once, in parallel, into a prefix of row tiles in shared memory; the batch of a tile is
// then found by binary search. Empty batches own no tile, so they cost nothing.
//
// Order: batch, column tile, row tile (fastest). CTAs that run at the same time thus share one weight tile, which is
// read from memory once; the activations of one batch stay in L2. Row tiles start at another one in each column, or a
// CTA could get the last one, which is short, every time, and another never.
#pragma once
#include <stdint.h>

#include "number/integer.cuh"
#include "schedule/scan.cuh"
#include "schedule/tile.cuh"

namespace schedule {

template <class Rows, int BLOCK_M, int BLOCK_N>
class Grouped {
public:
    struct Storage {
        int tiles_before[Rows::kMaxBatches + 1];  // row tiles of the batches before
        int warp_totals[scan::kMaxWarps];
    };

    // Every thread of the CTA calls it; CTA barriers are inside.
    template <int kNumThreads>
    __device__ __forceinline__ static void prepare(Storage& storage, const Rows& rows) {
        scan::over_batches<kNumThreads>(storage.tiles_before, storage.warp_totals, rows.num_batches,
                                        [&](int batch) { return ceil_div(rows.count(batch), BLOCK_M); });
    }

    __device__ __forceinline__ Grouped(const Storage& storage, const Rows& rows, int num_columns, int depth)
        : storage_(storage),
          rows_(rows),
          column_tiles_(ceil_div(num_columns, BLOCK_N)),
          depth_(depth),
          next_(blockIdx.x) {}

    // The CTA's next tile; false when there is none left.
    __device__ __forceinline__ bool next(Tile& tile) {
        const int index = next_;
        if (index >= storage_.tiles_before[rows_.num_batches] * column_tiles_) return false;
        next_ += gridDim.x;
        const int batch = scan::find(storage_.tiles_before, rows_.num_batches, index, column_tiles_);
        const int first = storage_.tiles_before[batch], row_tiles = storage_.tiles_before[batch + 1] - first;
        const int local = index - first * column_tiles_, column_tile = local / row_tiles;
        tile.batch = batch;
        const int row = (local + column_tile) % row_tiles * BLOCK_M;  // within the batch
        tile.row = rows_.row(batch) + row;
        tile.num_rows = min(BLOCK_M, rows_.count(batch) - row);
        tile.column = column_tile * BLOCK_N;
        tile.scale_row = rows_.scale_row(batch) + row;
        tile.k_begin = 0;
        tile.k_end = depth_;
        return true;
    }

private:
    const Storage& storage_;
    const Rows& rows_;
    int column_tiles_, depth_, next_;
};

}  // namespace schedule
