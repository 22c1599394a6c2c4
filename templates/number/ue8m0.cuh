// UE8M0, a power of two as a byte: 2^(byte - 127); 0xFF is NaN.
#pragma once
#include <stdint.h>

namespace ue8m0 {

// Of an fp32 scale, from its bits: the exponent as it lies in them, 0 for 0. What is not 0 and no normal power of two
// has no byte, and becomes NaN, so that it shows in what it multiplies.
__device__ __forceinline__ uint32_t of_power(uint32_t bits) { return bits & 0x807FFFFF ? 0xFF : bits >> 23; }

// Of the byte of a word. 2^-127 is no normal number.
__device__ __forceinline__ float value(uint32_t word, int byte) {
    const uint32_t exponent = word >> byte * 8 & 0xFF;
    return __uint_as_float(exponent << 23 | (exponent == 0 || exponent == 0xFF ? 1 << 22 : 0));
}

}  // namespace ue8m0
