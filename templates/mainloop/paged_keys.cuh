// Keys in pages, by TMA, 16 at a time: of those a page has all, or none.
//
// A page has the bytes of its keys, then their fp32 scales. Which pages a request has is in a row of the block table; the
// lanes of a warp look up 32 parts at once, and, where several load, the next 32 before they are needed. A page that does
// not exist (a negative number, or one too large) is not read: its keys count as not there.
#pragma once
#include <stdint.h>

#include "mainloop/keys.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

template <int kPartKeys, int kRows, int kRowBytes, int kNumStages>
struct PagedKeys {
    static constexpr int kPart = kPartKeys, kParts = kRows / kPart;
    static constexpr int kBytes = kRows * (kRowBytes + 4);
    static constexpr int kScaleStride = kPart < 32 ? 32 : kPart;  // TMA writes to multiples of 128 bytes
    static constexpr int kScaleSpace = kParts * kScaleStride;
    static constexpr int kThereWords = 1;
    static constexpr bool kHasHoles = true;
    static constexpr int kStages = kNumStages >= 16 ? 4 : 1;  // that a call of load() fills
    static_assert(32 % (kStages * kParts) == 0, "the lanes look up whole stages");

    const tma::TensorMap *values, *scales;
    const int* block_table;
    int table_pitch, page, num_pages;
    int2 ahead = {}, further = {};  // the lane's, of this look-up and of the next one: a page, and a key's row in it

    __device__ __forceinline__ static float scale(const float* scales, int row) {
        return scales[row / kPart * kScaleStride + row % kPart];
    }
    // first + row is in the part of first.
    __device__ __forceinline__ static bool there(const uint32_t* words, int first, int) {
        return words[0] >> first / kPart & 1;
    }

    __device__ __forceinline__ void prefetch() const {
        tma::prefetch(values);
        tma::prefetch(scales);
    }

    // Each lane loads a part of a stage. On its way to a load it computes as long as a stage lasts, so where there are many
    // stages lanes load four at once.
    __device__ __forceinline__ static int stage_of_lane() { return threadIdx.x % 32 / kParts; }
    template <int kLoaders>
    __device__ __forceinline__ void load(const KeyPlace& place, mbarrier::Barrier* full, const schedule::Tile& tile,
                                         int key, int index, bool loads) {
        constexpr int kCalls = 32 / (kStages * kParts), kStride = kLoaders * kStages * kRows;  // of a look-up; between calls
        const int lane = threadIdx.x % 32, part = lane % kParts, call = index % kCalls;
        if (call == 0) {
            const int own = key + lane / (kStages * kParts) * kStride + lane % (kStages * kParts) * kPart;
            ahead = index == 0 || kLoaders == 1 ? look_up(tile, own) : further;
            if constexpr (kLoaders > 1) further = look_up(tile, own + kCalls * kStride);
        }
        const int from = call * kStages * kParts + lane;
        const int number = __shfl_sync(0xFFFFFFFF, ahead.x, from);
        // Where one warp does all of it, on sm_12x, 40 registers are not enough to look further ahead and to keep rows.
        const int row = kLoaders > 1 ? __shfl_sync(0xFFFFFFFF, ahead.y, from) : (key + lane * kPart) % page;
        const unsigned there = __ballot_sync(0xFFFFFFFF, number >= 0) >> (lane - part);
        if (loads && part == 0) {
            *place.parts_there = there;
            mbarrier::arrive_expect_tx(full, kBytes);
        }
        __syncwarp();
        if (!loads) return;
        tma::load_3d(mbarrier::shared_address(place.values + part * kPart * kRowBytes), values, full, 0, row, number);
        tma::load_2d(mbarrier::shared_address(place.scales + part * kScaleStride), scales, full,
                     page * kRowBytes / 4 + row, number);
    }

private:
    // The page of a key, -1 where there is none, of which TMA reads zeros, and the key's row.
    __device__ __forceinline__ int2 look_up(const schedule::Tile& tile, int key) const {
        if (key >= tile.k_end) return {-1, 0};
        const int place = key / page;
        const int number = __ldcg(block_table + int64_t{tile.batch} * table_pitch + place);
        return {number >= 0 && number < num_pages ? number : -1, key - place * page};
    }
};

}  // namespace mainloop
