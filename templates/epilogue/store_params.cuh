// What the store of every generation takes: out = alpha * sums + bias. Without alpha that is 1.
#pragma once

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

    __device__ __forceinline__ int stride() const { return num_columns + num_columns / heads.width * heads.gap; }

    __device__ __forceinline__ float factor(int batch) const { return alpha == nullptr ? 1 : alpha[batch]; }
};

}  // namespace epilogue
