// Element types to float32 and back, rounding to nearest even.
#pragma once
#include <cuda_fp16.h>

namespace convert {

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }

template <typename T>
__device__ T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) { return value; }
template <>
__device__ inline __half from_float<__half>(float value) { return __float2half_rn(value); }

}  // namespace convert
