// What the store of every generation takes: out = alpha * sums + bias. Without alpha that is 1.
#pragma once

namespace epilogue {

template <class Out>
struct StoreParams {
    const float *alpha, *bias;  // of each batch; bias of each column, too, or null
    Out* out;
    int num_columns;
    bool accumulate = false;  // out is added to

    __device__ __forceinline__ float factor(int batch) const { return alpha == nullptr ? 1 : alpha[batch]; }
};

}  // namespace epilogue
