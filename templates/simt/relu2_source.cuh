// The squared ReLU of an MoE layer without a gate as what a quantisation reads: a weight a row.
#pragma once
#include <stdint.h>

#include "number/minmax.cuh"
#include "number/swiglu.cuh"
#include "simt/quantize_row.cuh"

namespace quantize {

// max(x, 0)^2 * row_weight, rounded to `type` first; x is [.., columns]. A NaN stays one.
template <typename T>
struct Relu2 {
    struct Raw {
        Block<T> x;
        float weight;
    };

    const T* x;
    const float* row_weight;
    int columns;
    int type;

    __device__ __forceinline__ Raw load(const Row& row, int block) const {
        return {quantize::load(x + int64_t(row.source) * columns + block * kValues), row_weight[row.source]};
    }
    __device__ __forceinline__ void values(float (&values)[kValues], const Raw& raw) const {
        widen(values, raw.x);
#pragma unroll
        for (float& value : values) {
            const float positive = max_nan(value, 0.0f);
            value = swiglu::round_to(__fmul_rn(__fmul_rn(positive, positive), raw.weight), type);
        }
    }
};

}  // namespace quantize
