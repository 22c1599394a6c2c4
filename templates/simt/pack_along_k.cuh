// Scales that are MN-major to exponents, four of K in a word. Groups along K start with a word each.
//
// A thread makes the words of one row; its warp reads and writes neighbours.
#pragma once
#include <stdint.h>

#include "number/integer.cuh"
#include "number/ue8m0.cuh"
#include "schedule/scan.cuh"

namespace scales {

struct Groups {
    int first_scale[scan::kMaxBatches + 1];  // of each group along K, then the end of the last one
    int first_word[scan::kMaxBatches + 1];
    int warp_totals[scan::kMaxWarps];
};

// Every thread of the CTA calls it. group_k: K of each group, of which scale_k share a scale; null: one group has all.
template <int kNumThreads>
__device__ __forceinline__ void find_groups(Groups& groups, const int* group_k, int num_groups, int scale_k,
                                            int num_scales) {
    const auto scales_of = [&](int group) {
        if (group_k == nullptr) return num_scales;
        return ceil_div(scan::clamp_rows(group_k[group], num_scales * scale_k), scale_k);
    };
    scan::over_batches<kNumThreads>(groups.first_scale, groups.warp_totals, num_groups, scales_of);
    scan::over_batches<kNumThreads>(groups.first_word, groups.warp_totals, num_groups,
                                    [&](int group) { return ceil_div(scales_of(group), 4); });
}

// The word of a row; zeros from the last group's end on.
__device__ __forceinline__ uint32_t pack_word(const Groups& groups, int num_groups, const uint32_t* bits,
                                              int num_scales, int rows, int word, int row) {
    const int group = scan::find(groups.first_word, num_groups, word);
    const int first = groups.first_scale[group] + 4 * (word - groups.first_word[group]);
    const int end = min(groups.first_scale[group + 1], num_scales);
    uint32_t packed = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (row < rows && first + i < end) packed |= ue8m0::of_power(bits[int64_t(first + i) * rows + row]) << 8 * i;
    return packed;
}

// out [num_words, pitch] of bits [num_scales, rows]; after find_groups.
template <int kNumThreads>
__device__ __forceinline__ void pack_along_k(const Groups& groups, int num_groups, const uint32_t* bits,
                                             int num_scales, int rows, uint32_t* out, int num_words, int pitch) {
    const int row = blockIdx.x * kNumThreads + threadIdx.x;
    if (row >= pitch) return;
    for (int word = blockIdx.y; word < num_words; word += gridDim.y)
        out[int64_t(word) * pitch + row] = pack_word(groups, num_groups, bits, num_scales, rows, word, row);
}

}  // namespace scales
