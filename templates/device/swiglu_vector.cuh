// SwiGLU of several values a thread, with the bits of swiglu.cuh. What that decides for each value, an IEEE quotient
// whether its operands are extreme and a rounding its type, is decided for all at once here, so the work on different
// values overlaps: for epilogues with a few warps a multiprocessor, which latency would bind.
#pragma once
#include <stdint.h>

#include "device/nvfp4.cuh"
#include "device/output.cuh"
#include "device/swiglu.cuh"

namespace swiglu {

template <int kCount>
__device__ __forceinline__ void round_to(float (&values)[kCount], Type type) {
    static_assert(kCount % 2 == 0, "conversions take pairs");
    if (type == kBf16) {
#pragma unroll
        for (int i = 0; i < kCount; i += 2) {
            const uint32_t pair = output::pack<output::bf16>(values[i], values[i + 1]);
            values[i] = __uint_as_float(pair << 16), values[i + 1] = __uint_as_float(pair & 0xFFFF0000);
        }
    } else if (type == kF16) {
#pragma unroll
        for (int i = 0; i < kCount; i += 2) {
            const uint32_t pair = output::pack<output::f16>(values[i], values[i + 1]);
            const float2 wide = __half22float2(*reinterpret_cast<const __half2*>(&pair));
            values[i] = wide.x, values[i + 1] = wide.y;
        }
    }
}

// values[i] / denominators[i], the denominators at least 1. The steps are those of __fdiv_rn: from magnitudes between
// 2^-64 and 2^64 they lead to the nearest quotient. Where a value is not, __fdiv_rn itself divides.
template <int kCount>
__device__ __forceinline__ void divide(float (&values)[kCount], const float (&denominators)[kCount]) {
    constexpr float kSmallest = 0x1p-64f, kLargest = 0x1p64f;
    float quotients[kCount], smallest = kLargest, largest = kSmallest;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        const float value = values[i], denominator = denominators[i];
        smallest = fminf(smallest, fabsf(value));
        largest = fmaxf(largest, fmaxf(fabsf(value), denominator));
        const float guess = nvfp4::reciprocal_approximate(denominator);
        const float reciprocal = __fmaf_rn(guess, __fmaf_rn(-denominator, guess, 1.0f), guess);
        const float quotient = __fmul_rn(value, reciprocal);
        quotients[i] = __fmaf_rn(reciprocal, __fmaf_rn(-denominator, quotient, value), quotient);
    }
    if (smallest < kSmallest || largest > kLargest) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) quotients[i] = __fdiv_rn(values[i], denominators[i]);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = quotients[i];
}

// gates[i] becomes apply(gates[i], ups[i], parameters).
template <int kCount>
__device__ __forceinline__ void apply(float (&gates)[kCount], const float (&ups)[kCount],
                                      const Parameters& parameters) {
    float denominators[kCount], factors[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        const Terms t = terms(gates[i], ups[i], parameters);
        gates[i] = t.gate, denominators[i] = t.denominator, factors[i] = t.factor;
    }
    divide(gates, denominators);
#pragma unroll
    for (int i = 0; i < kCount; ++i) gates[i] = __fmul_rn(gates[i], factors[i]);
}

}  // namespace swiglu
