// How a thread of sm_12x reads the fragments of mma.sync from a stage: from rows of K, or, of what is MN-major,
// transposed from panels of BLOCK_K rows (mainloop/sources.cuh).
//
// first(): where a lane reads within a stage, row `row` of matrix `matrix` of its ldmatrix; load(): the fragments of a
// step along K, of weight tile t or of token tile j, two of these at a time, of which j is the second. The swizzle is
// linear, so a step or a tile is one more exclusive or.
#pragma once
#include <stdint.h>

#include "ptx/ldmatrix.cuh"
#include "ptx/mbarrier.cuh"

namespace mainloop {

template <class Slots, class Operands, int BLOCK_K, bool kMnMajor = Operands::WEIGHTS_MN_MAJOR>
struct WeightFragments {
    static constexpr int ROW_BYTES = Operands::byte(BLOCK_K);

    __device__ __forceinline__ static uint32_t first(const typename Slots::Place& place, uint32_t row,
                                                     uint32_t matrix) {
        return ldmatrix::swizzled<ROW_BYTES>(place.warp_n * Slots::WARP_N | Slots::row(row, matrix % 2),
                                             matrix / 2 * 16);
    }
    __device__ __forceinline__ static void load(uint32_t (&weights)[4], const void* stage, uint32_t first, int step,
                                                int t) {
        const uint32_t address = mbarrier::shared_address(stage) +
                                 (first ^ ldmatrix::swizzled<ROW_BYTES>(2 * t, step * Operands::STEP_BYTES));
        if constexpr (Operands::UNPACKED_WEIGHTS) ldmatrix::x4_of_e2m1(weights, address);
        else ldmatrix::x4(weights, address);
    }
};

template <class Slots, class Operands, int BLOCK_K, bool kMnMajor = Operands::TOKENS_MN_MAJOR>
struct TokenFragments {
    static constexpr int ROW_BYTES = Operands::byte(BLOCK_K);

    __device__ __forceinline__ static uint32_t first(const typename Slots::Place& place, uint32_t row,
                                                     uint32_t matrix) {
        return ldmatrix::swizzled<ROW_BYTES>(
            (Slots::kTokenTiles > 1 ? place.lane / 16 * Slots::kTokenStep : 0) + Slots::first_token(place.warp_m, row),
            matrix % 2 * 16);
    }
    template <class Rows>
    __device__ __forceinline__ static uint32_t address(const Rows& rows, uint32_t first, int step, int j) {
        return mbarrier::shared_address(rows[j / 2 * 2 * Slots::kTokenStep]) + (first ^ step * Operands::STEP_BYTES);
    }
    __device__ __forceinline__ static void load(uint32_t (&before)[2], uint32_t (&tokens)[2], uint32_t address) {
        if constexpr (Operands::UNPACKED_TOKENS) ldmatrix::x4_of_e2m1(before, tokens, address);
        else ldmatrix::x4(before, tokens, address);
    }
    __device__ __forceinline__ static void load(uint32_t (&tokens)[2], uint32_t address) {
        if constexpr (Operands::UNPACKED_TOKENS) ldmatrix::x2_of_e2m1(tokens, address);
        else ldmatrix::x2(tokens, address);
    }
};

// Where element mn of row k lies in panels of rows of 128 bytes.
template <class Operands, int BLOCK_K>
struct Panels {
    static constexpr int kBytes = Operands::STEP_BYTES / Operands::STEP_K;  // of an element

    __device__ __forceinline__ static constexpr uint32_t place(uint32_t k, uint32_t mn) {
        return mn * kBytes / 128 * (128 * BLOCK_K) + ldmatrix::swizzled<128>(k, mn * kBytes % 128);
    }
};

template <class Slots, class Operands, int BLOCK_K>
struct WeightFragments<Slots, Operands, BLOCK_K, true> {
    using Panel = Panels<Operands, BLOCK_K>;

    __device__ __forceinline__ static uint32_t first(const typename Slots::Place& place, uint32_t row,
                                                     uint32_t matrix) {
        const uint32_t weight = place.warp_n * Slots::WARP_N;
        if constexpr (Panel::kBytes == 1) return Panel::place(place.lane, weight);
        return Panel::place(matrix / 2 * 8 + row, weight + matrix % 2 * 8);
    }
    __device__ __forceinline__ static void load(uint32_t (&weights)[4], const void* stage, uint32_t first, int step,
                                                int t) {
        const uint32_t address =
            mbarrier::shared_address(stage) + (first ^ Panel::place(step * Operands::STEP_K, t * Slots::MMA_M));
        if constexpr (Panel::kBytes == 1)
            ldmatrix::x2_transposed_bytes(weights[0], weights[1], weights[2], weights[3], address);
        else
            ldmatrix::x4_transposed(weights[0], weights[1], weights[2], weights[3], address);
    }
};

template <class Slots, class Operands, int BLOCK_K>
struct TokenFragments<Slots, Operands, BLOCK_K, true> {
    using Panel = Panels<Operands, BLOCK_K>;
    static_assert(Slots::kTokenTiles % 2 == 0, "a panel has 128 bytes of tokens");
    static_assert(Slots::kTokenStep == 32, "two token tiles are 32 apart, and the next two 64");

    __device__ __forceinline__ static uint32_t first(const typename Slots::Place& place, uint32_t row,
                                                     uint32_t matrix) {
        const uint32_t token = Slots::first_token(place.warp_m, 0);
        if constexpr (Panel::kBytes == 1) return Panel::place(matrix / 2 * 16 + row_of_pairs(row, matrix % 2), token);
        return Panel::place(matrix % 2 * 8 + row, token + matrix / 2 * 32);
    }
    __device__ __forceinline__ static uint32_t address(const void* stage, uint32_t first, int step, int j) {
        return mbarrier::shared_address(stage) + (first ^ Panel::place(step * Operands::STEP_K, j / 2 * 64));
    }
    __device__ __forceinline__ static void load(uint32_t (&before)[2], uint32_t (&tokens)[2], uint32_t address) {
        if constexpr (Panel::kBytes == 1) {
            uint32_t pairs[4];
            ldmatrix::x4_transposed(pairs[0], pairs[1], pairs[2], pairs[3], address);
            const uint32_t even = threadIdx.x % 4 < 2 ? 0x6420 : 0x2064, odd = even + 0x1111;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                before[i] = __byte_perm(pairs[2 * i], pairs[2 * i + 1], even);
                tokens[i] = __byte_perm(pairs[2 * i], pairs[2 * i + 1], odd);
            }
        } else {
            ldmatrix::x4_transposed(before[0], before[1], tokens[0], tokens[1], address);
        }
    }
    // Of bytes there is no last one without its neighbour.
    __device__ __forceinline__ static void load(uint32_t (&tokens)[2], uint32_t address) {
        if constexpr (Panel::kBytes == 2) ldmatrix::x2_transposed(tokens, address);
    }

private:
    // Of bytes a matrix has pairs of tokens. A lane needs four k that follow each other, and gets two of them from each
    // matrix: lanes 0 and 1 of a quad the first two from matrix 0, lanes 2 and 3 from matrix 1. So the eight rows of a
    // matrix, 16 bytes of 128, lie in all banks.
    __device__ __forceinline__ static uint32_t row_of_pairs(uint32_t row, uint32_t matrix) {
        return row / 2 * 4 + (matrix ^ row / 4) * 2 + row % 2;
    }
};

}  // namespace mainloop
