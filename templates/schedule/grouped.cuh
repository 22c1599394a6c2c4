// Persistent schedule of a grouped GEMM: which (batch, row tile, column tile) a CTA computes next.
//
// `Rows` says which rows a batch has, as known on the device only:
//     static constexpr int kMaxBatches;  int num_batches;  static constexpr bool kHasPadding, kDividesK;
//     int count(int batch) const, row(int batch) const, scale_row(int batch) const;
//     void settle(Tile& tile) const: what it knows of the tile beyond that, of rows which are padding.
// Every CTA scans the counts once, in parallel, into a prefix of row tiles in shared memory; the batch of a tile is
// then found by binary search. Empty batches own no tile, so they cost nothing.
//
// Order: batch, swath of row tiles, column tile, row tile (fastest). CTAs that run at the same time thus share a few
// weight tiles, which are read from memory once; the activations of a swath stay in L2. Row tiles start at another one
// in each column, or a CTA could get the last one, which is short, every time, and another never.
#pragma once
#include <stdint.h>

#include "number/integer.cuh"
#include "schedule/scan.cuh"
#include "schedule/tile.cuh"

namespace schedule {

// kSplits: CTAs of a cluster, which compute the same tiles, a share of K each: whole stages, which divide kStageDepth.
template <class Rows, int BLOCK_M, int BLOCK_N, int kSplits_ = 1, int kStageDepth = 128>
class Grouped {
    static constexpr unsigned kSwathTiles = 16;
    static constexpr bool kHasOneBatch = Rows::kMaxBatches == 1;  // then nothing is in shared memory

public:
    static constexpr int kSplits = kSplits_;

    struct Storage {
        int tiles_before[Rows::kMaxBatches + 1];  // row tiles of the batches before
        int warp_totals[scan::kMaxWarps];
    };

    // Every thread of the CTA calls it; CTA barriers are inside.
    template <int kNumThreads>
    __device__ __forceinline__ static void prepare(Storage& storage, const Rows& rows) {
        if constexpr (Rows::kMaxBatches == 1) {
            __syncthreads();
        } else {
            scan::over_batches<kNumThreads>(storage.tiles_before, storage.warp_totals, rows.num_batches,
                                            [&](int batch) { return ceil_div(rows.count(batch), BLOCK_M); });
        }
    }

    __device__ __forceinline__ Grouped(const Storage& storage, const Rows& rows, int num_columns, int depth)
        : storage_(storage),
          rows_(rows),
          column_tiles_(ceil_div(num_columns, BLOCK_N)),
          depth_(depth),
          next_(blockIdx.x / kSplits) {}

    // The CTA's next tile; false when there is none left.
    __device__ __forceinline__ bool next(Tile& tile) {
        const int index = next_;
        if (index >= tiles_before(rows_.num_batches) * column_tiles_) return false;
        next_ += gridDim.x / kSplits;
        const int batch =
            kHasOneBatch ? 0 : scan::find(storage_.tiles_before, rows_.num_batches, index, column_tiles_);
        const int first = tiles_before(batch), row_tiles = tiles_before(batch + 1) - first;
        const unsigned place = index - first * column_tiles_;
        unsigned column_tile = place, row = 0;  // within the batch; divisions, if any, are on the way to the first load
        if (row_tiles > 1) {
            const unsigned swath =
                row_tiles > kSwathTiles ? place / (kSwathTiles * column_tiles_) * kSwathTiles : 0;
            const unsigned width = min(kSwathTiles, row_tiles - swath), local = place - swath * column_tiles_;
            column_tile = local / width;
            row = (swath + (local + column_tile) % width) * BLOCK_M;
        }
        tile.batch = batch;
        tile.row = rows_.row(batch) + row;
        tile.num_rows = tile.num_stored = min(unsigned{BLOCK_M}, rows_.count(batch) - row);
        tile.column = column_tile * BLOCK_N;
        tile.scale_row = rows_.scale_row(batch) + row;
        tile.k_begin = 0;
        tile.k_end = depth_;
        rows_.settle(tile);
        if constexpr (kSplits > 1) take_share(tile);
        return true;
    }

private:
    __device__ __forceinline__ static void take_share(Tile& tile) {
        const int share = ceil_div(tile.k_end - tile.k_begin, kStageDepth * kSplits) * kStageDepth;
        tile.k_begin = min(tile.k_end, tile.k_begin + static_cast<int>(blockIdx.x % kSplits) * share);
        tile.k_end = min(tile.k_end, tile.k_begin + share);
    }

    // Row tiles of the batches before this one.
    __device__ __forceinline__ int tiles_before(int batch) const {
        return kHasOneBatch ? batch * ceil_div(rows_.count(0), BLOCK_M) : storage_.tiles_before[batch];
    }

    const Storage& storage_;
    const Rows& rows_;
    int column_tiles_, depth_, next_;
};

}  // namespace schedule
