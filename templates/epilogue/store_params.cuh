// What the store of every generation takes: out = alpha * sums + bias. Without alpha that is 1.
#pragma once
#include <stdint.h>

#include "number/bias.cuh"

namespace epilogue {

// Columns of out may be those of heads, `width` each, of which `gap` more lie in out from `left` on, which stay as they
// are.
struct HeadSplit {
    int width = 1, left = 0, gap = 0;

    __device__ __forceinline__ int place(int column) const {
        return gap == 0 ? column : column + (column + width - left) / width * gap;
    }
};

template <class Out>
struct StoreParams {
    const float *alpha, *bias;  // of each batch; bias of each column, too, or null
    Out* out;
    int num_columns;
    bool accumulate = false;  // out is added to
    HeadSplit heads = {};
    int row_gap = 0;      // elements between two rows
    int batch_pitch = 0;  // where each batch counts its rows: elements from one to the next

    __device__ __forceinline__ int stride() const {
        return num_columns + num_columns / heads.width * heads.gap + row_gap;
    }
    // What rows are counted from.
    __device__ __forceinline__ Out* out_of(int batch) const { return out + int64_t(batch) * batch_pitch; }

    __device__ __forceinline__ float factor(int batch) const { return alpha == nullptr ? 1 : alpha[batch]; }
    __device__ __forceinline__ const float* bias_of(int batch) const {
        return bias == nullptr ? nullptr : bias + int64_t(batch) * num_columns;
    }

    // Of the sums of a column and the next, with the bias of their batch; before: what out has, where it is added to.
    __device__ __forceinline__ float2 add(float2 sums, float alpha, const float* bias, int column,
                                          const Out* before) const {
        const float2 biases = bias::load_pair(bias, column, column < num_columns);
        float2 result = make_float2(bias::apply(alpha, sums.x, biases.x), bias::apply(alpha, sums.y, biases.y));
        if (accumulate) {
            result.x += static_cast<float>(before[0]);
            result.y += static_cast<float>(before[1]);
        }
        return result;
    }
};

}  // namespace epilogue
