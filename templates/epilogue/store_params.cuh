// What the store of every generation takes: out = alpha * sums + bias.
#pragma once

namespace epilogue {

template <class Out>
struct StoreParams {
    const float *alpha, *bias;  // of each batch; bias of each column, too, or null
    Out* out;
    int num_columns;
};

}  // namespace epilogue
