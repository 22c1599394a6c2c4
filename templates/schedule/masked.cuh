// Rows of a grouped GEMM whose batches are matrices of equal size, of which the first rows are valid.
#pragma once
#include "layout/scale_layout.cuh"
#include "number/integer.cuh"
#include "schedule/scan.cuh"
#include "schedule/tile.cuh"

namespace schedule {

struct Masked {
    static constexpr int kMaxBatches = scan::kMaxBatches;
    static constexpr bool kHasPadding = false, kDividesK = false;

    const int* mask;  // valid rows of each batch
    int max_rows, num_batches;

    __device__ __forceinline__ int row(int batch) const { return batch * max_rows; }
    __device__ __forceinline__ int count(int batch) const { return scan::clamp_rows(__ldcg(mask + batch), max_rows); }
    __device__ __forceinline__ int scale_row(int batch) const {
        return batch * (ceil_div(max_rows, scale_layout::ATOM_ROWS) * scale_layout::ATOM_ROWS);
    }
    __device__ __forceinline__ static void settle(Tile&) {}
};

}  // namespace schedule
