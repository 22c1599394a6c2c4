// Quantisation to E4M3 with an fp32 scale for a block: the value of an element is E4M3 * scale.
//
// The scale is amax / 448, at least that of kSmallestAmax, so that zeros have one, too; or the next power of two at or
// above it, which saturates nothing. Elements are multiplied by the reciprocal of the scale, as DeepGEMM does it; every
// operation is rounded on its own.
#pragma once
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

// Two neighbours to E4M3, to nearest even and saturated, the first in the low byte; NaN stays NaN. The pair is one value
// on the way: what the compiler makes of loops around it depends on that.
static __device__ __inline__ uint16_t pack_e4m3(const float2 pair) {
    uint16_t packed;
    asm("{cvt.rn.satfinite.e4m3x2.f32 %0, %2, %1;}\n" : "=h"(packed) : "f"(pair.x), "f"(pair.y));
    return packed;
}
__device__ __forceinline__ uint16_t pack_e4m3(float first, float second) {
    return pack_e4m3(make_float2(first, second));
}

// One value likewise.
static __device__ __inline__ uint8_t to_e4m3(float value) {
    uint16_t packed;
    asm("{cvt.rn.satfinite.e4m3x2.f32 %0, %2, %1;}\n" : "=h"(packed) : "f"(value), "f"(0.0f));
    return packed;
}

// Two E4M3 to two f16, exactly, the first in the low half.
__device__ __forceinline__ uint32_t halves_of_e4m3(uint16_t both) {
    uint32_t pair;
    asm("{cvt.rn.f16x2.e4m3x2 %0, %1;}\n" : "=r"(pair) : "h"(both));
    return pair;
}

// One E4M3 to fp32.
__device__ __forceinline__ float value_of_e4m3(uint8_t element) {
    float value;
    asm("{cvt.f32.f16 %0, %1;}\n" : "=f"(value) : "h"(static_cast<uint16_t>(halves_of_e4m3(element))));
    return value;
}

}  // namespace fp8
