// NVFP4 or MXFP4 weights in fragment order (docs/weights.md) to pairs of bf16, or NVFP4 to f16, exactly.
//
// A word has eight weights of a row, those that a lane needs of two steps of 16 along K: four pairs, as wgmma takes them
// in registers. Where bf16 has its sign, the last two bits of its exponent and its first of the mantissa, in bits 15 and
// 8..6, E2M1 is its value times 2^-126, subnormals included. Pairs lie so in the word that each of the four is one
// logical operation on it and what it becomes by shifts: two of the pairs are the exclusive or of two places. f16 has
// the same bits in 15 and 11..9, so it takes the magnitudes from elsewhere than the signs.
#pragma once
#include <stdint.h>

#include <type_traits>

#include "number/element.cuh"
#include "number/fp4.cuh"
#include "number/halves.cuh"
#include "number/output.cuh"

namespace fp4 {

// The pairs of a word, their first at step 0, k 2l, and then 2l + 8, and the same of step 1; each `kUp` bits further up,
// among other bits.
template <int kUp>
__device__ __forceinline__ void place_pairs(uint32_t word, uint32_t (&pairs)[4]) {
    const uint32_t turned = __funnelshift_r(word, word, 6 - kUp);
    pairs[0] = word << kUp;
    pairs[1] = __funnelshift_r(word, word, 4 - kUp);
    pairs[2] = word << (4 + kUp) ^ turned;
    pairs[3] = word << (6 + kUp) ^ turned;
}

// Both halves the low one, or the high one. Moves of halves, unlike PRMT, become part of the product's operand.
__device__ __forceinline__ uint32_t both_low(uint32_t pair) {
    uint32_t both;
    asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\nmov.b32 %0, {l, l};\n}\n" : "=r"(both) : "r"(pair));
    return both;
}
__device__ __forceinline__ uint32_t both_high(uint32_t pair) {
    uint32_t both;
    asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\nmov.b32 %0, {h, h};\n}\n" : "=r"(both) : "r"(pair));
    return both;
}

// By the type of tokens: pairs(), the four of a word; factors(), of the scales of 32 along K, in the lowest bytes, what
// makes of such a pair the weights over kDescale, for each of two steps; multiply(). Here of NVFP4: a weight with its
// scale has at most six significant bits.
template <class Element>
struct Fragments;

struct BlocksOf16 {
    static constexpr int SCALE_K = 16;  // of a scale
    static constexpr float kDescale = 0x1p7f;
};

template <>
struct Fragments<number::bf16> : BlocksOf16 {
    __device__ __forceinline__ static void pairs(uint32_t word, uint32_t (&found)[4]) {
        place_pairs<0>(word, found);
#pragma unroll
        for (uint32_t& pair : found) pair &= 0x81C081C0u;
    }
    __device__ __forceinline__ static uint32_t factors(uint32_t two_bytes) {
        const float2 scales = halves::widen_f16x2(scales_to_half2(two_bytes));
        constexpr float kFactor = 0x1p119f;  // 448 times this is less than 2^128
        return output::pack<output::bf16>(scales.x * kFactor, scales.y * kFactor);
    }
    __device__ __forceinline__ static uint32_t multiply(uint32_t a, uint32_t b) {
        uint32_t product;
        asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
        return product;
    }
};

template <>
struct Fragments<number::f16> : BlocksOf16 {
    __device__ __forceinline__ static void pairs(uint32_t word, uint32_t (&found)[4]) {
        uint32_t magnitudes[4];
        place_pairs<3>(word, magnitudes);
        place_pairs<0>(word, found);
#pragma unroll
        for (int i = 0; i < 4; ++i) found[i] = (magnitudes[i] & 0x0E000E00u) | (found[i] & 0x80008000u);
    }
    __device__ __forceinline__ static uint32_t factors(uint32_t two_bytes) {
        constexpr uint32_t kTwice128 = 0x58005800;  // 448 times 128 is less than 65504
        return fp4::multiply(scales_to_half2(two_bytes), kTwice128);
    }
    __device__ __forceinline__ static uint32_t multiply(uint32_t a, uint32_t b) { return fp4::multiply(a, b); }
};

// The same of MXFP4, to bf16 alone: f16 has too few exponents. Those of bf16 reach from scales of 2^-100 to 2^33. Of a
// smaller one a weight is rounded to a multiple of 2^-101, and a larger one is NaN, so that it shows.
template <class Element>
struct MxFragments : Fragments<Element> {
    static_assert(std::is_same_v<Element, number::bf16>, "2^e is exact in bf16 alone");
    static constexpr int SCALE_K = 32;
    static constexpr float kDescale = 0x1p32f;

    __device__ __forceinline__ static uint32_t factors(uint32_t scale) {
        constexpr uint32_t kBias = 94, kLargest = 254 - kBias;  // pairs are 2^-126 of E2M1
        const uint32_t byte = scale & 0xFF;
        return byte > kLargest ? 0x7FFF7FFFu : (byte + kBias) * 0x00800080u;
    }
};

}  // namespace fp4
