// Rows of routed tokens as what a quantisation goes through: which token a row is, and what weight it has.
#pragma once
#include <stdint.h>

#include "number/output.cuh"
#include "simt/expert_rows.cuh"
#include "simt/quantize_row.cuh"

namespace quantize {

// Packed rows whose values are those of their token.
struct RoutedRows {
    PackedRows packed;
    const int* slot_of_row;
    int R, TOPK;

    __device__ __forceinline__ int begin() const { return packed.begin(); }
    __device__ __forceinline__ int end() const { return packed.end(); }

    // Clamped, so that slots which are not what they should be cannot lead out of the buffers.
    __device__ __forceinline__ int slot(int row) const { return max(0, min(slot_of_row[row], R - 1)); }

    __device__ __forceinline__ Row locate(int row) const {
        Row located = packed.locate(row);
        located.source = slot(row) / TOPK;
        return located;
    }
};

// The values of a token, weighted before they are quantised: weight and product are rounded to the type of x.
template <typename X>
struct Tokens {
    struct Raw {
        Block<X> values;
        float weight;
    };

    Matrix<X> x;
    const float* topk_weights;  // null: all are 1
    const RoutedRows& rows;

    __device__ __forceinline__ Raw load(const Row& row, int block) const {
        return {x.load(row, block), topk_weights == nullptr ? 1.0f : topk_weights[rows.slot(row.out)]};
    }
    __device__ __forceinline__ void values(float (&values)[kValues], const Raw& raw) const {
        x.values(values, raw.values);
        if (topk_weights == nullptr) return;
        const float weight = static_cast<float>(output::convert<X>(raw.weight));
#pragma unroll
        for (float& value : values) value = static_cast<float>(output::convert<X>(__fmul_rn(value, weight)));
    }
};

__device__ __forceinline__ void weigh(float* row_weight, const RoutedRows& rows, const float* topk_weights,
                                      bool in_activation) {
    for (int row = rows.begin() + blockIdx.x * blockDim.x + threadIdx.x; row < rows.end();
         row += gridDim.x * blockDim.x)
        row_weight[row] = in_activation ? topk_weights[rows.slot(row)] : 1.0f;
}

}  // namespace quantize
