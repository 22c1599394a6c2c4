// The rows of experts that a quantisation goes through: packed, or the valid ones of a matrix each.
#pragma once
#include <stdint.h>

#include "device/experts.cuh"
#include "device/integer.cuh"
#include "device/quantize_row.cuh"
#include "device/scale_layout.cuh"

namespace quantize {

// Packed rows, after experts::load. The scales of an expert start at row scale_offsets[e].
struct PackedRows {
    const experts::SharedStorage& storage;
    const int* scale_offsets;
    int num_experts;

    __device__ __forceinline__ int begin() const { return storage.first_row[0]; }
    __device__ __forceinline__ int end() const { return storage.first_row[num_experts]; }
    __device__ __forceinline__ Row locate(int row) const {
        const int expert = experts::find(storage, num_experts, row);
        return {row, row, scale_offsets[expert] + row - storage.first_row[expert], expert};
    }
};

// The first rows of each matrix of [E, max_rows, ..], after experts::pack. Scales are padded to whole atoms.
struct MaskedRows {
    const experts::SharedStorage& storage;
    int num_experts, max_rows;

    __device__ __forceinline__ int begin() const { return 0; }
    __device__ __forceinline__ int end() const { return storage.first_row[num_experts]; }
    __device__ __forceinline__ Row locate(int row) const {
        const int expert = experts::find(storage, num_experts, row), within = row - storage.first_row[expert];
        const int stored = expert * max_rows + within;
        const int scale_rows = ceil_div(max_rows, scale_layout::ATOM_ROWS) * scale_layout::ATOM_ROWS;
        return {stored, stored, expert * scale_rows + within, expert};
    }
};

}  // namespace quantize
