// Split K on sm_100: each CTA of a cluster stores some of a tile's tokens. Its epilogue warps send the sums of the others'
// tokens, as they come out of tensor memory, and add what the others send of its own.
#pragma once
#include <stdint.h>

#include "epilogue/sums_of_others.cuh"
#include "number/integer.cuh"
#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"

namespace epilogue {

// The tokens of one CTA.
template <class Config>
struct TokensOfCta : Config {
    static constexpr int BLOCK_M = Config::BLOCK_M / Config::kSplits;
};

// kTokens: that a CTA stores. kStored: that an epilogue stores at a time.
template <int kSplits, int kTokens, int kStored>
struct SplitKSm100 {
    static constexpr int kNumWarps = 4, kChunk = kTokens;
    using Others = SumsOfOthers<kSplits, kTokens>;
    static_assert(kTokens % kStored == 0, "an epilogue stores whole chunks");

    struct alignas(16) Storage {
        Others sums[kNumWarps];
        mbarrier::Barrier full[kNumWarps];
        mbarrier::Barrier empty[kNumWarps][kSplits];  // what each CTA has here from this one is read
    };
    __device__ __forceinline__ static void init(Storage& shared) {
        for (int warp = 0; warp < kNumWarps; ++warp) {
            mbarrier::init(&shared.full[warp], 1);
            for (mbarrier::Barrier& empty : shared.empty[warp]) mbarrier::init(&empty, 1);
        }
    }

    // An epilogue warp. Of each tile, in turn: begin(), which says what takes the sums, store() for all tokens that are
    // there, finish().
    class Warp {
    public:
        __device__ __forceinline__ Warp(Storage& shared, int warp)
            : others_(shared.sums[warp]),
              full_(&shared.full[warp]),
              empty_(shared.empty[warp]),
              rank_(cluster::rank()),
              lane_(threadIdx.x % 32) {}
        // Behind it nobody arrives on barriers of this CTA any more.
        __device__ __forceinline__ ~Warp() {
            for (int to = 0; to < kSplits; ++to)
                if (to != rank_) cluster::wait_on(&empty_[to], parity(to) ^ 1);
        }

        template <class Output>
        __device__ __forceinline__ Warp& begin(const Output&, int num_tokens) {
            if (lane_ == 0 && first() < num_tokens) mbarrier::arrive_expect_tx(full_, Others::kBytes);
            return *this;
        }

        // The tokens of a CTA, from `begin` on.
        __device__ __forceinline__ void store(const uint32_t (&values)[kTokens], int begin) {
            float sums[kTokens];
#pragma unroll
            for (int i = 0; i < kTokens; ++i) sums[i] = __uint_as_float(values[i]);
            if (begin == first()) {
#pragma unroll
                for (int i = 0; i < kTokens; ++i) own_[i] = sums[i];
            } else {
                const int to = begin / kTokens;
                cluster::wait_on(&empty_[to], parity(to) ^ 1);
                others_.send(sums, rank_, to, full_, lane_);
            }
        }

        template <class Output>
        __device__ __forceinline__ void finish(const Output& output, int num_tokens) {
            if (first() < num_tokens) {
                cluster::wait_on(full_, parity(rank_));
                others_.add_to(own_, lane_);
                __syncwarp();
                if (lane_ < kSplits && lane_ != rank_) cluster::arrive_on(cluster::place_in(lane_, &empty_[rank_]));
            }
            parities_ ^= (1u << ceil_div(num_tokens, kTokens)) - 1;
#pragma unroll
            for (int begin = 0; begin < kTokens; begin += kStored) {
                if (first() + begin >= num_tokens) break;
                uint32_t values[kStored];
#pragma unroll
                for (int i = 0; i < kStored; ++i) values[i] = __float_as_uint(own_[begin + i]);
                output.store(values, first() + begin);
            }
        }

    private:
        __device__ __forceinline__ int first() const { return rank_ * kTokens; }
        __device__ __forceinline__ uint32_t parity(int rank) const { return parities_ >> rank & 1; }

        Others& others_;
        mbarrier::Barrier *const full_, *const empty_;
        const int rank_, lane_;
        uint32_t parities_ = 0;  // of each CTA, which change with the tiles that it stores some of
        float own_[kTokens] = {};
    };
};

// One CTA has all of K.
template <int kTokens, int kStored>
struct SplitKSm100<1, kTokens, kStored> {
    static constexpr int kChunk = kStored;
    struct Storage {};
    __device__ __forceinline__ static void init(Storage&) {}

    struct Warp {
        __device__ __forceinline__ Warp(Storage&, int) {}
        template <class Output>
        __device__ __forceinline__ const Output& begin(const Output& output, int) { return output; }
        template <class Output>
        __device__ __forceinline__ void finish(const Output&, int) {}
    };
};

}  // namespace epilogue
