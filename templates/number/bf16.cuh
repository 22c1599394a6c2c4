// E4M3 times a power of two as bf16: exact where the product is a bf16, so between 2^-133 and 2^128. What is larger is
// infinite, a bit below 2^-133 is rounded off, and NaN stays NaN.
#pragma once
#include <stdint.h>

#include "number/fp8.cuh"
#include "number/halves.cuh"
#include "number/output.cuh"

namespace bf16 {

// Eight elements to four pairs, the first in the lowest bits.
__device__ __forceinline__ void of_e4m3(uint32_t* pairs, uint2 elements, float power) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint32_t word = i < 2 ? elements.x : elements.y;
        const float2 values = halves::widen_f16x2(fp8::halves_of_e4m3(word >> i % 2 * 16));
        pairs[i] = output::pack<output::bf16>(values.x * power, values.y * power);
    }
}

}  // namespace bf16
