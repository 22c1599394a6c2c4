// Rows of a GEMM in whichever way the call has them, told apart when the kernel runs: only the thread that walks the
// schedule looks, so one kernel serves all calls.
#pragma once
#include <stdint.h>

#include "number/integer.cuh"
#include "schedule/scan.cuh"
#include "schedule/tile.cuh"

namespace schedule {

// What `groups` holds. Padding is what lies between the rows of two batches; its rows of out become zeros.
enum RowKind {
    kDense,    // nothing: one batch
    kOffsets,  // first row of each batch, then the end of the last one
    kEnds,     // end of each batch; the next one starts at the next multiple of kRowAlignment
    kLabels,   // the batch of each row, negative in padding: a batch starts at a multiple of kRowAlignment
    kMasked,   // valid rows of each batch, which has num_rows; nothing where all of them are
};
constexpr int kRowAlignment = 128;

template <int BLOCK_M>
struct AnyRows {
    static constexpr int kMaxBatches = scan::kMaxBatches;
    static constexpr bool kHasPadding = true, kDividesK = false;
    static_assert(kRowAlignment % BLOCK_M == 0, "a tile has rows of one batch");

    int kind;
    const int* groups;
    int num_rows, num_groups;  // of a; of masked rows, those of a batch
    int scales_of_group;       // masked: from the scales of a batch to those of the next
    int num_batches = kind == kLabels ? 1 : num_groups;  // in the order of tiles

    __device__ __forceinline__ int group(int batch) const { return scan::clamp_rows(__ldcg(groups + batch), num_rows); }

    __device__ __forceinline__ int row(int batch) const {
        if (kind == kOffsets) return group(batch);
        if (kind == kEnds) return batch == 0 ? 0 : aligned(group(batch - 1));
        return kind == kMasked ? batch * num_rows : 0;
    }
    // With the padding behind.
    __device__ __forceinline__ int count(int batch) const {
        if (kind == kOffsets) return max(0, group(batch + 1) - row(batch));
        if (kind == kEnds) return max(0, aligned(group(batch)) - row(batch));
        return kind == kMasked && groups != nullptr ? group(batch) : num_rows;
    }
    __device__ __forceinline__ int scale_row(int batch) const {
        return kind == kMasked ? batch * scales_of_group : row(batch);
    }
    __device__ __forceinline__ void settle(Tile& tile) const {
        if (kind == kEnds) {
            tile.num_rows = max(0, min(tile.num_rows, group(tile.batch) - tile.row));
        } else if (kind == kLabels) {
            const int label = __ldcg(groups + tile.row);
            const bool exists = label >= 0 && label < num_groups;
            tile.batch = exists ? label : 0;
            tile.num_rows = exists ? labelled(tile.row, tile.num_rows, label) : 0;
        }
        if (tile.num_rows == 0) tile.k_end = tile.k_begin;
    }

private:
    __device__ __forceinline__ int aligned(int row) const {
        return min(ceil_div(row, kRowAlignment) * kRowAlignment, num_rows);
    }
    // Rows with the label, from `row` on, of `most`: they are in front of the padding.
    __device__ __forceinline__ int labelled(int row, int most, int label) const {
        int low = 1, high = most;  // the answer is among them
        if (__ldcg(groups + row + most - 1) == label) return most;
        while (low < high) {
            const int middle = (low + high + 1) / 2;
            if (__ldcg(groups + row + middle - 1) == label) low = middle;
            else high = middle - 1;
        }
        return low;
    }
};

}  // namespace schedule
