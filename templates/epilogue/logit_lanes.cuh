// Logits from tensor memory, whose lanes are keys and whose columns are heads of queries.
//
// A thread has all heads of a key, so nothing is exchanged to add them up. Two FMAs are one instruction, and relu(x) is
// max(x, 0) of half of the heads, and (x + |x|) / 2, of which only the sum is halved, of the others: the maximum is
// another unit's, and slower than additions are.
#pragma once
#include <stdint.h>

#include "epilogue/logits.cuh"
#include "number/minmax.cuh"
#include "ptx/float_pairs.cuh"

namespace epilogue {

// Of kColumns columns, each query's kHeads next to each other.
template <int kHeads, int kColumns>
struct LogitLanes {
    static constexpr int kQueries = kColumns / kHeads;
    static_assert(kHeads % 4 == 0 && kColumns % kHeads == 0, "whole queries, whose heads are added four at a time");
    using Weights = float2[kColumns / 2];

    // From a weight for each column.
    __device__ __forceinline__ static void load(Weights& weights, const float* all) {
#pragma unroll
        for (int i = 0; i < kColumns / 4; ++i) {
            const float4 four = reinterpret_cast<const float4*>(all)[i];
            weights[2 * i] = make_float2(four.x, four.y);
            weights[2 * i + 1] = make_float2(four.z, four.w);
        }
    }

    // Where the logits of each query go: of a few it is kept in registers, for every key asks for it.
    class Rows {
    public:
        __device__ __forceinline__ explicit Rows(const LogitRow* all) : all_(all) {
#pragma unroll
            for (int i = 0; i < kKept; ++i) kept_[i] = all[i];
        }
        __device__ __forceinline__ const LogitRow& operator[](int query) const {
            return query < kKept ? kept_[query] : all_[query];
        }

    private:
        static constexpr int kKept = kQueries <= 2 ? kQueries : 0;
        const LogitRow* all_;
        LogitRow kept_[kKept == 0 ? 1 : kKept];
    };

    // What some heads of a query give.
    class Sum {
    public:
        // kCount columns from `first` on, a multiple of four, whose weights follow `weights`. A NaN goes through.
        template <int kCount, int kValues>
        __device__ __forceinline__ void add(const uint32_t (&values)[kValues], int first, const float2* weights) {
#pragma unroll
            for (int i = first; i < first + kCount; i += 4) {
                const float a = __uint_as_float(values[i]), b = __uint_as_float(values[i + 1]);
                const float c = __uint_as_float(values[i + 2]), d = __uint_as_float(values[i + 3]);
                once_ = fma_pair({max_nan(a, 0), max_nan(b, 0)}, weights[(i - first) / 2], once_);
                twice_ = fma_pair({c + fabsf(c), d + fabsf(d)}, weights[(i - first) / 2 + 1], twice_);
            }
        }
        __device__ __forceinline__ float value() const {
            return fmaf(twice_.x + twice_.y, 0.5f, once_.x + once_.y);
        }

    private:
        float2 once_{0, 0}, twice_{0, 0};
    };
};

}  // namespace epilogue
