// Split K: what the other CTAs of a cluster have of the same sums, each of its share of K, as it arrives in this one.
//
// A thread of one CTA has the sums of the same elements as that thread of the others, so warps of the same number
// exchange them, and wait for each other alone. They are always added in the same order, that of the CTAs.
#pragma once
#include <stdint.h>

#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"

namespace epilogue {

// kSums: of a thread.
template <int kSplits, int kSums>
struct SumsOfOthers {
    static_assert(kSums % 4 == 0, "sums travel by fours");
    static constexpr int kBytes = (kSplits - 1) * kSums * 32 * 4;

    float4 fours[kSplits - 1][kSums / 4][32];

    // From this CTA to what the CTA `to` has here, and to its barrier.
    __device__ __forceinline__ void send(const float* sums, int from, int to, const mbarrier::Barrier* full, int lane) {
        const int place = from < to ? from : from - 1;  // among its others
        const uint32_t there = cluster::place_in(to, &fours[place][0][lane]);
        const uint32_t full_there = cluster::place_in(to, full);
#pragma unroll
        for (int i = 0; i < kSums; i += 4)
            cluster::store_async(there + i / 4 * 32 * 16, full_there,
                                 make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]));
    }

    __device__ __forceinline__ void add_to(float* sums, int lane) const {
#pragma unroll
        for (int other = 0; other < kSplits - 1; ++other)
#pragma unroll
            for (int i = 0; i < kSums; i += 4) {
                const float4 four = fours[other][i / 4][lane];
                sums[i] += four.x, sums[i + 1] += four.y, sums[i + 2] += four.z, sums[i + 3] += four.w;
            }
    }
};

}  // namespace epilogue
