// Scales of weights in blocks of 128 rows to factors of the type of tokens, eight of a row for 128 of K.
#pragma once
#include <stdint.h>

#include "layout/scale_layout.cuh"

namespace mainloop {

constexpr int FACTOR_K = 16, FACTOR_WORD_K = 64;  // of a scale, and of a word of four

// A word of four scales where `left` of K are there; behind K they may be anything, and become 0.
__device__ __forceinline__ uint32_t existing_scales(int left) {
    return left >= FACTOR_WORD_K ? ~0u : left <= 0 ? 0 : (1u << left / FACTOR_K * 8) - 1;
}

// A warp. Decode: fp4::Fragments. A lane has four rows of each block, 32 apart, which lie side by side in scales.
template <class Decode, int kAtoms>
__device__ __forceinline__ void write_factors(uint4* factors, const uint4 (&scales)[kAtoms][2][32], int left) {
    const int lane = threadIdx.x % 32;
    const uint32_t first_there = existing_scales(left), second_there = existing_scales(left - FACTOR_WORD_K);
#pragma unroll 1
    for (int atom = 0; atom < kAtoms; ++atom) {
        const uint4 first = scales[atom][0][lane], second = scales[atom][1][lane];
        const uint32_t words[4][2] = {{first.x, second.x}, {first.y, second.y}, {first.z, second.z}, {first.w, second.w}};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const uint32_t low = words[i][0] & first_there, high = words[i][1] & second_there;
            factors[atom * scale_layout::ATOM_ROWS + i * 32 + lane] = make_uint4(
                Decode::factors(low), Decode::factors(low >> 16), Decode::factors(high), Decode::factors(high >> 16));
        }
    }
}

}  // namespace mainloop
