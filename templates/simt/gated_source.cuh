// The activation of an MoE layer as what a quantisation reads: gate and up side by side in a row, a weight a row.
#pragma once
#include <stdint.h>

#include "number/swiglu.cuh"
#include "simt/quantize_row.cuh"

namespace quantize {

// swiglu(gate, up) * row_weight, rounded to `type` first. x is [.., 2 * columns], gate in the first half of a row.
template <typename T>
struct Gated {
    struct Raw {
        Block<T> gate, up;
        float weight;
    };

    const T* x;
    const float* row_weight;  // null: all are 1
    int columns;
    swiglu::Parameters parameters;
    int type;

    __device__ __forceinline__ Raw load(const Row& row, int block) const {
        const T* gate = x + int64_t(row.source) * 2 * columns + block * kValues;
        return {quantize::load(gate), quantize::load(gate + columns), row_weight ? row_weight[row.source] : 1.0f};
    }
    __device__ __forceinline__ void values(float (&values)[kValues], const Raw& raw) const {
        float up[kValues];
        widen(values, raw.gate);
        widen(up, raw.up);
        swiglu::apply(values, up, parameters);
#pragma unroll
        for (float& value : values) value = swiglu::round_to(__fmul_rn(value, raw.weight), type);
    }
};

}  // namespace quantize
