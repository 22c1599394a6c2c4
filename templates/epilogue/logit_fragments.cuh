// Logits from the products of wgmma and mma.sync, whose rows are keys and whose columns are heads of queries.
//
// Of each 8 columns a thread has two neighbours, of the rows lane / 4 and lane / 4 + 8 of a warp's 16. It adds what its
// heads of a query give, with their weights, and the four lanes of a row add theirs: of two queries and two rows, four
// sums, each lane then has one.
#pragma once
#include "number/minmax.cuh"

namespace epilogue {

// kFinite: no product is infinite. Then x + |x|, twice relu(x), takes half the time of a maximum.
template <int kHeads, int kColumns, bool kFinite = false>
struct LogitFragments {
    static constexpr int kQueries = kColumns / kHeads, kGroup = kQueries < 2 ? 1 : 2, kGroups = kQueries / kGroup;
    static_assert(kHeads % 8 == 0 && kColumns % (kGroup * kHeads) == 0, "8 columns are of one query");
    static constexpr bool kAlone = kQueries == 1 && kColumns < 128;  // other kernels have two queries of as many heads
    using Weights = float[kColumns / 4];

    // From a weight for each column.
    __device__ __forceinline__ static void load(Weights& weights, const float* all) {
#pragma unroll
        for (int i = 0; i < kColumns / 8; ++i) {
            const float2 pair = reinterpret_cast<const float2*>(all)[i * 4 + threadIdx.x % 4];
            weights[2 * i] = pair.x;
            weights[2 * i + 1] = pair.y;
        }
    }

    // What a lane has after sum(): a row of the warp's, and a query of the tile's.
    __device__ __forceinline__ static int row() { return threadIdx.x % 32 / 4 + threadIdx.x % 2 * 8; }
    __device__ __forceinline__ static int query(int group) {
        return group * kGroup + (kGroup == 2 ? threadIdx.x / 2 % 2 : 0);
    }
    // Of one query two lanes have the same sum.
    __device__ __forceinline__ static bool stores() { return kGroup == 2 || threadIdx.x % 4 < 2; }

    // The sum over the heads of query(group) for row(); four lanes of each row call it.
    __device__ __forceinline__ static float sum(const float* values, const Weights& weights, int group) {
        const bool odd = threadIdx.x % 2 != 0, upper = threadIdx.x / 2 % 2 != 0;
        float low = add_heads(values, weights, group * kGroup, 0), high = add_heads(values, weights, group * kGroup, 1);
        if constexpr (kGroup == 2) {
            const float other_low = add_heads(values, weights, group * 2 + 1, 0);
            const float other_high = add_heads(values, weights, group * 2 + 1, 1);
            const float low_sent = upper ? low : other_low, high_sent = upper ? high : other_high;
            low = (upper ? other_low : low) + __shfl_xor_sync(0xFFFFFFFF, low_sent, 2);
            high = (upper ? other_high : high) + __shfl_xor_sync(0xFFFFFFFF, high_sent, 2);
        }
        if constexpr (kAlone) {  // in the order of two
            low += __shfl_xor_sync(0xFFFFFFFF, low, 2);
            high += __shfl_xor_sync(0xFFFFFFFF, high, 2);
        }
        const float sent = odd ? low : high;
        const float sum = (odd ? high : low) + __shfl_xor_sync(0xFFFFFFFF, sent, 1);
        const float all = kGroup == 2 || kAlone ? sum : sum + __shfl_xor_sync(0xFFFFFFFF, sum, 2);
        return kFinite ? 0.5f * all : all;
    }

private:
    __device__ __forceinline__ static float relu(float x) { return kFinite ? x + fabsf(x) : max_nan(x, 0); }

    // Of the columns that this thread has of a query, in row lane / 4 + 8 * half. A NaN goes through.
    __device__ __forceinline__ static float add_heads(const float* values, const Weights& weights, int query, int half) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kHeads / 4; ++i)
            sum = fmaf(relu(values[query * kHeads / 2 + i / 2 * 4 + half * 2 + i % 2]), weights[query * kHeads / 4 + i], sum);
        return sum;
    }
};

}  // namespace epilogue
