// NVFP4 in shared memory to halves: tokens to shared memory as wgmma reads them, weights to its registers.
//
// The order of k inside a group of 128 is free as long as both operands agree: lane l of a quad takes the 16-byte chunk
// l (elements 32l .. 32l+31), which makes every load of packed weights a full 16-byte vector.
#pragma once
#include <stdint.h>

#include "layout/scale_layout.cuh"
#include "number/fp4.cuh"

namespace dequant {

constexpr int GROUP_K = 128;        // one 16-byte chunk of packed elements a lane of a quad
constexpr int PANEL_K = 64;         // half of it: a 128-byte row of halves, four k steps of wgmma
constexpr int TOKENS_PER_JOB = 16;  // of a warp

// Offset of 16-byte chunk `chunk` of row `row` in a tile of packed rows, under the swizzle of its row length.
template <int kRowBytes>
__device__ __forceinline__ int packed_offset(int row, int chunk) {
    static_assert(kRowBytes == 64 || kRowBytes == 128, "a packed row is one swizzle span");
    return row * kRowBytes + ((chunk ^ (kRowBytes == 128 ? row & 7 : row >> 1 & 3)) << 4);
}

// Dequantises one job: 16 tokens x GROUP_K, to two panels of kTokens rows of halves with the 128-byte swizzle. A lane
// holds one token and one half of each of its four chunks: two words, which fill a whole row of that panel. The first
// eight lanes are eight tokens, which the swizzle keeps apart.
//
// packed: the first of the group's four chunks is `chunk`. scales: of the group's first 64 elements; kScaleBytes
// further on those of the next 64. scale_row: of the tile's first token, counted from where `scales` starts.
template <int kTokens, int kRowBytes, int kScaleBytes, int kAtomStride>
__device__ __forceinline__ void tokens(uint8_t* panels, const uint8_t* packed, int chunk, const uint8_t* scales,
                                       int scale_row, int job, int remaining_k) {
    const int lane = threadIdx.x % 32;
    const int half = lane / 8 % 2;
    const int token = job * TOKENS_PER_JOB + lane / 16 * 8 + lane % 8;
    if (kTokens % TOKENS_PER_JOB != 0 && token >= kTokens) return;

    // Chunk c holds scale blocks 2c and 2c + 1: with `half` this lane needs bytes half and 2 + half of two words.
    const int row = scale_row + token;
    scales += row / scale_layout::ATOM_ROWS * kAtomStride + scale_layout::word(row) * 4;
    uint32_t scale[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint32_t four = *reinterpret_cast<const uint32_t*>(scales + i * kScaleBytes);
        const uint32_t two = fp4::scales_to_half2(__byte_perm(four, 0, half ? 0x4431 : 0x4420));
        scale[2 * i] = fp4::broadcast_low(two);
        scale[2 * i + 1] = fp4::broadcast_high(two);
    }
    uint2 words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        words[i] = *reinterpret_cast<const uint2*>(packed + packed_offset<kRowBytes>(token, chunk + i) + half * 8);
        if (i * 32 >= remaining_k) scale[i] = 0;  // padding of the scale blocks may hold NaN
    }
    uint8_t* panel_row = panels + half * (kTokens * PANEL_K * 2) + token * 128;
#pragma unroll
    for (int word = 0; word < 2; ++word) {
        uint32_t h[4][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            fp4::expand(word ? words[i].y : words[i].x, h[i]);
#pragma unroll
            for (int j = 0; j < 4; ++j) h[i][j] = fp4::multiply(h[i][j], scale[i]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // a word feeds two k steps, each two chunks of 16 bytes
            *reinterpret_cast<uint4*>(panel_row + (((word * 4 + i) ^ (token & 7)) << 4)) =
                make_uint4(h[0][i], h[1][i], h[2][i], h[3][i]);
        }
    }
}

// Dequantises kWords words of both rows of a lane, from `first` of four on: two k steps each.
template <int kWords>
__device__ __forceinline__ void weights(uint32_t (&fragments)[2 * kWords][4], const uint4 (&packed)[2],
                                        const uint32_t (&scale)[2], int first) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const uint32_t words[4] = {packed[row].x, packed[row].y, packed[row].z, packed[row].w};
        const uint32_t s = first < 2 ? fp4::broadcast_low(scale[row]) : fp4::broadcast_high(scale[row]);
#pragma unroll
        for (int word = 0; word < kWords; ++word) {
            uint32_t h[4];
            fp4::expand(words[first + word], h);
#pragma unroll
            for (int i = 0; i < 4; ++i) fragments[2 * word + i / 2][row + i % 2 * 2] = fp4::multiply(h[i], s);
        }
    }
}

}  // namespace dequant
