// The output type of a kernel: rounding of fp32 accumulators, and packing of neighbours into one register.
#pragma once
#include <stdint.h>

#include "number/halves.cuh"

namespace output {

// The types by their names in kernels.yaml.
using bf16 = __nv_bfloat16;
using f16 = __half;
using f32 = float;

// One fp32 value rounded to nearest even.
template <typename T>
__device__ __forceinline__ T convert(float value);

template <>
__device__ __forceinline__ float convert<float>(float value) {
    return value;
}

template <>
__device__ __forceinline__ __nv_bfloat16 convert<__nv_bfloat16>(float value) {
    return halves::to_bf16(value);
}

template <>
__device__ __forceinline__ __half convert<__half>(float value) {
    return halves::to_f16(value);
}

// Two neighbouring fp32 values rounded to nearest even as one 32-bit register, `low` in the low half.
template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high);

template <>
__device__ __forceinline__ uint32_t pack<__nv_bfloat16>(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

template <>
__device__ __forceinline__ uint32_t pack<__half>(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// Two neighbours, rounded, in one access.
template <typename T>
__device__ __forceinline__ void store_pair(T* place, float low, float high) {
    if constexpr (sizeof(T) == 4) *reinterpret_cast<float2*>(place) = make_float2(low, high);
    else *reinterpret_cast<uint32_t*>(place) = pack<T>(low, high);
}

}  // namespace output
