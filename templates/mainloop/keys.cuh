// Keys of one matrix, with an fp32 scale each, by TMA: kRows of them at a time.
//
//     static constexpr int kBytes, kScaleSpace;  static constexpr bool kHasHoles;
//     static constexpr int kThereWords;  static bool there(words, first, row): whether key first + row of a stage exists
//     static float scale(scales, row): of a stage, its word
//     void load<kLoaders>(KeyPlace, barrier, tile, key, index, loads): a whole warp; keys from `key` on, its index-th call
//         of the tile, where calls of kLoaders warps take turns
//     void prefetch(): one thread
#pragma once
#include <stdint.h>

#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

// Where keys of a stage go. parts_there has a bit for each part, or each key, that exists, where keys have holes.
struct KeyPlace {
    uint8_t* values;
    float* scales;
    uint32_t* parts_there;
};

template <int kRows, int kRowBytes>
struct KeyMatrix {
    static constexpr int kPart = kRows;
    static constexpr int kBytes = kRows * (kRowBytes + 4);  // of a stage
    static constexpr int kScaleSpace = kRows;
    static constexpr int kThereWords = 1;
    static constexpr bool kHasHoles = false;
    static constexpr int kStages = 1;  // that a call of load() fills

    const tma::TensorMap *values, *scales;

    __device__ __forceinline__ static float scale(const float* scales, int row) { return scales[row]; }
    __device__ __forceinline__ static bool there(const uint32_t*, int, int) { return true; }

    __device__ __forceinline__ void prefetch() const {
        tma::prefetch(values);
        tma::prefetch(scales);
    }

    __device__ __forceinline__ static int stage_of_lane() { return 0; }
    template <int kLoaders>
    __device__ __forceinline__ void load(const KeyPlace& place, mbarrier::Barrier* full, const schedule::Tile&, int key, int,
                                         bool) const {
        if (threadIdx.x % 32 != 0) return;
        mbarrier::arrive_expect_tx(full, kBytes);
        tma::load_2d(mbarrier::shared_address(place.values), values, full, 0, key);
        tma::load_1d(mbarrier::shared_address(place.scales), scales, full, key);
    }
};

}  // namespace mainloop
