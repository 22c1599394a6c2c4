// Which weights and tokens a thread of sm_120 holds in the fragments of mma.sync.
//
// Warps are 2 along the weights (64 each) by 1, 2 or 4 along the tokens; a warp's token tiles of 8 are 32 apart, so
// that their scales are one vector of an atom. Which weight rows a warp's MMA tiles hold is permuted, so that each
// thread ends with 8 neighbouring outputs of a token.
#pragma once
#include <stdint.h>

#include "ptx/launch.cuh"

namespace layout {

template <int BLOCK_M, int BLOCK_N>
struct WeightSlots {
    static constexpr int MMA_M = 16, MMA_N = 8;
    static constexpr int kVector = 8;  // neighbouring outputs of a thread: rows g and g + 8 of 4 MMA tiles
    static constexpr int kWeightTiles = kVector / 2;
    static constexpr int WARP_N = kWeightTiles * MMA_M;
    static constexpr int kWarpsN = BLOCK_N / WARP_N;
    static constexpr int kWarpsM = BLOCK_M < 32 ? BLOCK_M / MMA_N : 4;
    static constexpr int kTokenTiles = BLOCK_M / (kWarpsM * MMA_N);
    static constexpr int kNumWarps = kWarpsN * kWarpsM;
    static_assert(BLOCK_M >= 8 && BLOCK_M <= 256 && (BLOCK_M & (BLOCK_M - 1)) == 0, "a tile must not straddle atoms");

    using Accumulators = float[kTokenTiles][kWeightTiles][4];

    // Place of a thread: g = lane / 4 counts rows, l = lane % 4 pairs of columns.
    struct Place {
        uint32_t lane = threadIdx.x % 32, g = lane / 4, l = lane % 4;
        uint32_t warp = warp_index(), warp_n = warp % kWarpsN, warp_m = warp / kWarpsN;
    };

    // Slot 2 t + h stands for row g (h = 0) or g + 8 (h = 1) of a warp's weight tile t. The 8 slots of a thread are
    // weights 8 g .. 8 g + 7 of the warp, in an order that differs with g: any 8 rows that ldmatrix reads at once, and
    // any 16 scale words that a warp reads at once, then lie in different banks. Linear in the bits of the slot.
    __device__ __forceinline__ static constexpr uint32_t order(uint32_t g) { return g % 4 * 2 | g / 4; }
    __device__ __forceinline__ static constexpr uint32_t row(uint32_t g, uint32_t slot) {
        return g * kVector | (slot ^ order(g));
    }
};

}  // namespace layout
