// What fp32 scales become: how many are a word, and which. A scale that is not there, 0, becomes zeros.
#pragma once
#include <stdint.h>

#include "number/ue8m0.cuh"
#include "simt/quad.cuh"

namespace scales {

// A word each, as it is.
struct Words {
    static constexpr int kPerWord = 1;

    __device__ __forceinline__ static uint32_t gather(uint32_t bits) { return bits; }
};

// The exponents of powers of two, four a word, from four neighbouring lanes; all lanes of the warp call it.
struct Exponents {
    static constexpr int kPerWord = 4;

    __device__ __forceinline__ static uint32_t gather(uint32_t bits) { return gather_quad(ue8m0::of_power(bits)); }
};

}  // namespace scales
