// Keys that a list names, by TMA, 8 at a time: in pages, or in one matrix, which is a page of all keys.
//
// What elsewhere is the number of a key is here that of a column of the logits. For each 8 of them the list has the first
// key's place among the keys of all pages, and a bit for each one that its query sees. The other lanes of these 8 keys are
// multiplied all the same, and count as not there; 8 keys of which none is seen, or that are on no page, are not read.
#pragma once
#include <stdint.h>

#include "mainloop/keys.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

template <int kRows, int kRowBytes>
struct ListedKeys {
    static constexpr int kPart = 8, kParts = kRows / kPart;
    // A box of scales begins at 16 bytes, up to three words early: how many, the last word of its place says.
    static constexpr int kScaleBox = kPart + 4, kScaleStride = 32;  // TMA writes to multiples of 128 bytes
    static constexpr int kEarly = kScaleStride - 1;
    static constexpr int kBytes = kRows * kRowBytes + kParts * kScaleBox * 4;
    static constexpr int kScaleSpace = kParts * kScaleStride;
    static constexpr int kThereWords = kRows / 32;
    static constexpr bool kHasHoles = true;
    static constexpr int kStages = 32 / kParts;  // that a call of load() fills: each lane loads a part

    const tma::TensorMap *values, *scales;
    const int2* list;
    int pitch, page, num_pages, scale_offset;  // entries of a row; keys of a page; words from a page to its scales
    int2 ahead = {};                           // the lane's entry of the next call

    __device__ __forceinline__ static float scale(const float* scales, int row) {
        const float* box = scales + row / kPart * kScaleStride;
        return box[row % kPart + __float_as_int(box[kEarly])];
    }
    __device__ __forceinline__ static bool there(const uint32_t* words, int first, int row) {
        return words[(first + row) / 32] >> (first + row) % 32 & 1;
    }

    __device__ __forceinline__ void prefetch() const {
        tma::prefetch(values);
        tma::prefetch(scales);
    }

    __device__ __forceinline__ static int stage_of_lane() { return threadIdx.x % 32 / kParts; }
    template <int kLoaders>
    __device__ __forceinline__ void load(const KeyPlace& place, mbarrier::Barrier* full, const schedule::Tile& tile,
                                         int column, int index, bool loads) {
        const int part = threadIdx.x % kParts;
        const int2 entry = index == 0 ? look_up(tile, column) : ahead;
        ahead = look_up(tile, column + kLoaders * 32 * kPart);
        const int page_there = entry.x / page;
        const bool exists = entry.y != 0 && entry.x >= 0 && page_there < num_pages;
        const int number = exists ? page_there : -1, row = exists ? entry.x % page : 0;  // TMA reads zeros of page -1
        const int word = scale_offset + row, early = word % 4;
        float* scales_place = place.scales + part * kScaleStride;
        if (loads) {
            reinterpret_cast<uint8_t*>(place.parts_there)[part] = exists ? entry.y : 0;
            scales_place[kEarly] = __int_as_float(early);
        }
        __syncwarp();
        if (loads && part == 0) mbarrier::arrive_expect_tx(full, kBytes);
        __syncwarp();
        if (!loads) return;
        tma::load_3d(mbarrier::shared_address(place.values + part * kPart * kRowBytes), values, full, 0, row, number);
        tma::load_2d(mbarrier::shared_address(scales_place), scales, full, word - early, number);
    }

private:
    // The lane's entry, of columns from `first` on; behind the tile there is none.
    __device__ __forceinline__ int2 look_up(const schedule::Tile& tile, int first) const {
        const int column = first + threadIdx.x % 32 * kPart;
        if (column >= tile.k_end) return {};
        return __ldcg(list + int64_t{tile.row} * pitch + 1 + column / kPart);
    }
};

}  // namespace mainloop
