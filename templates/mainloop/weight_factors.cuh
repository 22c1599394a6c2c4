// Scales of weights in blocks of 128 rows to factors of the type of tokens, two of a row for each 32 of K.
#pragma once
#include <stdint.h>

#include "layout/scale_layout.cuh"

namespace mainloop {

// A word of four scales, each for kScaleK of K, of which `left` are there: behind K they may be anything, and become 0.
template <int kScaleK>
__device__ __forceinline__ uint32_t existing_scales(int left) {
    return left >= 4 * kScaleK ? ~0u : left <= 0 ? 0 : (1u << left / kScaleK * 8) - 1;
}

// A warp. Decode: fp4::Fragments. A lane has four rows of each block, 32 apart, which lie side by side in scales.
template <class Decode, int kAtoms, int kWords>
__device__ __forceinline__ void write_factors(uint4* factors, const uint4 (&scales)[kAtoms][kWords][32], int left) {
    constexpr int SCALE_K = Decode::SCALE_K, BYTES = 32 / SCALE_K;  // of a factor's two steps
    static_assert(kWords * 4 == 4 * BYTES, "a row has four factors of two steps");
    const int lane = threadIdx.x % 32;
    uint32_t there[kWords];
#pragma unroll
    for (int w = 0; w < kWords; ++w) there[w] = existing_scales<SCALE_K>(left - w * 4 * SCALE_K);
#pragma unroll 1
    for (int atom = 0; atom < kAtoms; ++atom) {
        uint32_t words[kWords][4];
#pragma unroll
        for (int w = 0; w < kWords; ++w) {
            const uint4 of_rows = scales[atom][w][lane];
            words[w][0] = of_rows.x, words[w][1] = of_rows.y, words[w][2] = of_rows.z, words[w][3] = of_rows.w;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint32_t of_row[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int byte = j * BYTES;
                of_row[j] = Decode::factors((words[byte / 4][i] & there[byte / 4]) >> byte % 4 * 8);
            }
            factors[atom * scale_layout::ATOM_ROWS + i * 32 + lane] =
                make_uint4(of_row[0], of_row[1], of_row[2], of_row[3]);
        }
    }
}

}  // namespace mainloop
