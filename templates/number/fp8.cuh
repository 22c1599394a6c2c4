// Quantisation to E4M3 with an fp32 scale for a block: the value of an element is E4M3 * scale.
//
// The scale is amax / 448, at least that of kSmallestAmax, so that zeros have one, too; or the next power of two at or
// above it, which saturates nothing. Elements are multiplied by the reciprocal of the scale, as DeepGEMM does it; every
// operation is rounded on its own.
#pragma once
#include <cuda_fp8.h>
#include <float.h>
#include <stdint.h>

#include "number/minmax.cuh"

namespace fp8 {

constexpr int kBlock = 128;  // elements along K that share one scale
constexpr float kLargest = 448, kSmallestAmax = 1e-10f;

enum ScaleRounding : int { kNone, kPowerOfTwo };

struct BlockScale {
    float value, multiplier;  // of the elements, before they are rounded
};

// The power of two at or above a scale, which is no subnormal; infinity and NaN stay.
__device__ __forceinline__ float power_at_or_above(float scale) {
    const uint32_t power = (__float_as_uint(scale) + 0x007FFFFF) & 0x7F800000;
    return scale <= FLT_MAX ? __uint_as_float(power) : scale;
}

// Of a block with the largest magnitude `amax`; NaN where that is.
__device__ __forceinline__ BlockScale block_scale(float amax, ScaleRounding rounding) {
    const float exact = __fdiv_rn(max_nan(amax, kSmallestAmax), kLargest);
    const float value = rounding == kPowerOfTwo ? power_at_or_above(exact) : exact;
    return {value, __fdiv_rn(1.0f, value)};
}

// Two neighbours to E4M3, to nearest even and saturated, the first in the low byte; NaN stays NaN.
__device__ __forceinline__ uint16_t pack_e4m3(float first, float second) {
    return __nv_cvt_float2_to_fp8x2(make_float2(first, second), __NV_SATFINITE, __NV_E4M3);
}

}  // namespace fp8
