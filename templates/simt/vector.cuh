// Neighbouring values that are loaded and stored at once.
#pragma once
#include "number/output.cuh"

template <typename T, int kVector>
struct alignas(kVector * sizeof(T)) Vector {
    T values[kVector];
};

// Each rounded to nearest even.
template <typename Out, int kVector>
__device__ __forceinline__ Vector<Out, kVector> round_all(const float (&sums)[kVector]) {
    Vector<Out, kVector> rounded;
#pragma unroll
    for (int i = 0; i < kVector; ++i) rounded.values[i] = output::convert<Out>(sums[i]);
    return rounded;
}
