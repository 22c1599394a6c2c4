// Scale groups that are spread over the lanes of a warp: their maxima, and their packed elements.
#pragma once
#include <stdint.h>

#include "number/minmax.cuh"
#include "number/mx.cuh"
#include "number/nvfp4.cuh"
#include "number/operands.cuh"

namespace swiglu {

// Where a scale group is spread over lanes, what these share, the maximum and later the packed bytes, is exchanged in
// halves: at each step a lane keeps every other token and hands the rest to its partner, so that in the end one lane
// holds one whole group, of which it computes the scale and stores it all.
//
// How the values of a call lie in a warp: kTokens tokens, of each one group in kLanes lanes that are kStride apart, in
// the order of the lanes. Tokens are neighbours, or pairs of neighbours that are kPairStep tokens apart.
template <int kBlock, int kTokens_, int kLanes_, int kStride_, int kPairStep_ = 2>
struct Layout {
    static constexpr int kTokens = kTokens_, kLanes = kLanes_, kStride = kStride_, kPairStep = kPairStep_;
    static constexpr int kElements = kBlock / kLanes;  // neighbours of a token, of one lane
    static_assert(kTokens <= kLanes, "a lane holds one token in the end");

    __device__ __forceinline__ static int lane() { return threadIdx.x / kStride % kLanes; }
    __device__ __forceinline__ static constexpr int token(int i) { return i / 2 * kPairStep + i % 2; }
};

namespace detail {

template <int kDistance>
__device__ __forceinline__ bool is_upper() {
    return threadIdx.x & kDistance;
}

// Maximum over all lanes of a group, of token lane() % kTokens.
template <typename L, int kDistance = L::kStride, int kCount>
__device__ __forceinline__ float maximum(const float (&values)[kCount]) {
    if constexpr (kDistance == L::kStride * L::kLanes) {
        return values[0];
    } else {
        constexpr int kKept = kCount > 1 ? kCount / 2 : 1;
        float kept[kKept];
#pragma unroll
        for (int i = 0; i < kKept; ++i) {
            const float even = values[kCount > 1 ? 2 * i : 0], odd = values[kCount > 1 ? 2 * i + 1 : 0];
            const float mine = is_upper<kDistance>() ? odd : even, other = is_upper<kDistance>() ? even : odd;
            kept[i] = max_nan(mine, __shfl_xor_sync(0xFFFFFFFF, other, kDistance));
        }
        return maximum<L, 2 * kDistance>(kept);
    }
}

// 64 bits of packed elements of neighbouring lanes, of token lane() % kTokens; kBits of each token are in this lane.
template <typename L, int kBits, int kDistance = L::kStride, int kCount>
__device__ __forceinline__ uint2 join(const uint32_t (&codes)[kCount]) {
    constexpr int kKept = kCount > 1 ? kCount / 2 : 1;
    uint32_t low[kKept], high[kKept];
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
        const uint32_t even = codes[kCount > 1 ? 2 * i : 0], odd = codes[kCount > 1 ? 2 * i + 1 : 0];
        const uint32_t mine = is_upper<kDistance>() ? odd : even, other = is_upper<kDistance>() ? even : odd;
        const uint32_t received = __shfl_xor_sync(0xFFFFFFFF, other, kDistance);
        low[i] = is_upper<kDistance>() ? received : mine;
        high[i] = is_upper<kDistance>() ? mine : received;
    }
    if constexpr (kBits == 32) {
        return make_uint2(low[0], high[0]);
    } else {
#pragma unroll
        for (int i = 0; i < kKept; ++i) low[i] |= high[i] << kBits;
        return join<L, 2 * kBits, 2 * kDistance>(low);
    }
}

// Packs the E4M3 of each token; element i of a lane is its neighbour i ^ order.
template <typename L>
__device__ __forceinline__ void pack_bytes(uint32_t (&codes)[L::kTokens],
                                           const float (&values)[L::kTokens][L::kElements], uint32_t order) {
    static_assert(L::kElements == 4, "a word of a token");
    const uint32_t places = 0x3210 ^ order * 0x1111;
#pragma unroll
    for (int t = 0; t < L::kTokens; ++t) {
        const float(&v)[4] = values[t];
        codes[t] = __byte_perm(mx::Result<operands::Format::E4M3>::pack_bytes(v[0], v[1], v[2], v[3]), 0, places);
    }
}

// Packs the E2M1 of each token; element i of a lane is its neighbour i ^ order.
template <typename L>
__device__ __forceinline__ void pack(uint32_t (&codes)[L::kTokens], const float (&values)[L::kTokens][L::kElements],
                                     uint32_t order) {
    constexpr int kPerWord = 8 / L::kElements;
#pragma unroll
    for (int first = 0; first < L::kTokens; first += kPerWord) {
        float eight[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int token = first + i / L::kElements;
            eight[i] = token < L::kTokens ? values[token % L::kTokens][i % L::kElements] : 0;
        }
        uint32_t packed = nvfp4::pack_e2m1(eight);
        if (L::kElements > 1 && order & 1) packed = packed >> 4 & 0x0F0F0F0F | (packed & 0x0F0F0F0F) << 4;
        if (L::kElements > 2 && order & 2) packed = __byte_perm(packed, 0, 0x2301);
#pragma unroll
        for (int i = 0; i < kPerWord; ++i)
            if (first + i < L::kTokens)
                codes[first + i] = packed >> i * 4 * L::kElements & (1u << 4 * L::kElements) - 1;
    }
}

}  // namespace detail

}  // namespace swiglu
