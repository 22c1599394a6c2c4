// Which weights and tokens a thread of sm_120 holds in the fragments of mma.sync.
//
// Warps are 2 along the weights (64 each) by 1, 2 or 4 along the tokens; a warp's token tiles of 8 are 32 apart, so
// that their scales are one vector of an atom. Of 256 weights they are 4 by 1 or 2, and token tiles 16 apart. Which
// weight rows a warp's MMA tiles hold is permuted, so that each thread ends with 8 neighbouring outputs of a token.
//
// Operands that are MN-major come by ldmatrix as neighbours: the rows of an MMA tile are neighbouring weights
// (kNeighbours), and of bytes two token tiles are the even and the odd ones of 16 tokens (kTokenPairs).
#pragma once
#include <stdint.h>

#include "number/integer.cuh"
#include "ptx/launch.cuh"

namespace layout {

template <int BLOCK_M, int BLOCK_N, bool kNeighbours = false, bool kTokenPairs = false>
struct WeightSlots {
    static constexpr int MMA_M = 16, MMA_N = 8;
    static constexpr int kVector = 8;  // neighbouring outputs of a thread: rows g and g + 8 of 4 MMA tiles
    static constexpr int kWeightTiles = kVector / 2;
    static constexpr int WARP_N = kWeightTiles * MMA_M;
    static constexpr int kWarpsN = BLOCK_N / WARP_N;
    static constexpr int kMostWarpsM = 8 / kWarpsN, kTokenStep = kMostWarpsM * MMA_N;  // to a warp's next token tile
    static constexpr int kWarpsM = BLOCK_M < kTokenStep ? BLOCK_M / MMA_N : kMostWarpsM;
    static constexpr int kTokenTiles = BLOCK_M / (kWarpsM * MMA_N);
    static constexpr int kNumWarps = kWarpsN * kWarpsM, kNumWeights = BLOCK_N;
    static constexpr int kPair = kTokenPairs ? 2 : 1;  // token tiles
    static_assert(kTokenTiles % kPair == 0, "a warp has whole pairs");
    static_assert(BLOCK_M >= 8 && BLOCK_M <= 256 && (BLOCK_M & (BLOCK_M - 1)) == 0, "a tile must not straddle atoms");

    using Accumulators = float[kTokenTiles][kWeightTiles][4];

    // Place of a thread: g = lane / 4 counts rows, l = lane % 4 pairs of columns.
    struct Place {
        uint32_t lane = threadIdx.x % 32, g = lane / 4, l = lane % 4;
        uint32_t warp = warp_index(), warp_n = warp % kWarpsN, warp_m = warp / kWarpsN;
    };

    // The token of a warp's column in its first tile, and from there that of tile j, some columns further on.
    __device__ __forceinline__ static constexpr uint32_t first_token(uint32_t warp_m, uint32_t column) {
        return (warp_m * MMA_N + column) * kPair;
    }
    __device__ __forceinline__ static constexpr int token(int j, int columns) {
        return j / kPair * (kTokenStep * kPair) + j % kPair + columns * kPair;
    }
    // Token tiles of a warp that reach into so many tokens from its first one on.
    __device__ __forceinline__ static int tiles_of(int num_tokens) {
        return ceil_div(max(num_tokens, 0), kTokenStep * kPair) * kPair;
    }

    // Slot 2 t + h stands for row g (h = 0) or g + 8 (h = 1) of a warp's weight tile t. The 8 slots of a thread are
    // weights 8 g .. 8 g + 7 of the warp, in an order that differs with g: any 8 rows that ldmatrix reads at once, and
    // any 16 scale words that a warp reads at once, then lie in different banks. Linear in the bits of the slot.
    __device__ __forceinline__ static constexpr uint32_t order(uint32_t g) {
        return kNeighbours ? 0 : g % 4 * 2 | g / 4;
    }
    __device__ __forceinline__ static constexpr uint32_t row(uint32_t g, uint32_t slot) {
        return kNeighbours ? slot * 8 | g : g * kVector | (slot ^ order(g));
    }

    // Of all token tiles but the first, the accumulators become those of the tile before.
    __device__ __forceinline__ static void move_up(Accumulators& accumulators) {
#pragma unroll
        for (int next = 1; next < kTokenTiles; ++next)
#pragma unroll
            for (int t = 0; t < kWeightTiles; ++t)
#pragma unroll
                for (int i = 0; i < 4; ++i) accumulators[next - 1][t][i] = accumulators[next][t][i];
    }

    // Of one token: what the slots of a thread have becomes what weights 8 g .. 8 g + 7 of the warp have. Where rows
    // are neighbours the lanes exchange it, 8 x 8 values transposed; a whole warp.
    __device__ __forceinline__ static void gather(float (&values)[kVector]) {
        if constexpr (kNeighbours) {
#pragma unroll
            for (int bit = 1; bit < kVector; bit *= 2) {
                const bool upper = threadIdx.x / 4 & bit;
#pragma unroll
                for (int i = 0; i < kVector; ++i) {
                    if (i & bit) continue;
                    const float received = __shfl_xor_sync(~0u, upper ? values[i] : values[i | bit], 4 * bit);
                    if (upper) values[i] = received;
                    else values[i | bit] = received;
                }
            }
        }
    }
};

}  // namespace layout
