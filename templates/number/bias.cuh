// What a GEMM makes of a sum: alpha * sum + bias, each rounded on its own.
#pragma once
#include <stdint.h>

namespace bias {

// In the place of a bias that is not there: no sum changes by it, -0 neither.
constexpr float kNone = -0.0f;

__device__ __forceinline__ float apply(float alpha, float sum, float bias) {
    return __fadd_rn(__fmul_rn(alpha, sum), bias);
}

// Past L1, as what a grid of an earlier launch wrote. biases: null if there are none.
__device__ __forceinline__ float load(const float* biases, int64_t index, bool exists) {
    return biases != nullptr && exists ? __ldcg(biases + index) : kNone;
}

// Of a gate, at an even index, and its up.
__device__ __forceinline__ float2 load_pair(const float* biases, int64_t index, bool exists) {
    return biases != nullptr && exists ? __ldcg(reinterpret_cast<const float2*>(biases + index))
                                       : make_float2(kNone, kNone);
}

}  // namespace bias
