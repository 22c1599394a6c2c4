// Split K on sm_12x: the warps of one number in the CTAs of a cluster have sums of the same elements. One of them gets
// those of the others, adds them and stores. The number says in which CTA, so that each has a part of a tile to store.
#pragma once
#include <stdint.h>

#include "epilogue/sums_of_others.cuh"
#include "number/integer.cuh"
#include "ptx/cluster.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

template <int kSplits, class Slots>
struct SplitKSm120 {
    using Accumulators = typename Slots::Accumulators;
    static constexpr int kNumWarps = Slots::kNumWarps;
    static constexpr int kNumStoring = (kNumWarps + kSplits - 1) / kSplits;  // warps of a CTA, at most
    using Others = SumsOfOthers<kSplits, sizeof(Accumulators) / sizeof(float)>;

    struct alignas(16) Storage {
        Others sums[kNumStoring];
        mbarrier::Barrier full[kNumStoring];
        mbarrier::Barrier empty[kNumWarps];  // where the warp's sums go has room for them
    };
    __device__ __forceinline__ static void init(Storage& shared) {
        for (mbarrier::Barrier& full : shared.full) mbarrier::init(&full, 1);
        for (mbarrier::Barrier& empty : shared.empty) mbarrier::init(&empty, 1);
    }

    // A warp that multiplies.
    class Warp {
    public:
        __device__ __forceinline__ explicit Warp(Storage& shared) : shared_(shared), rank_(cluster::rank()) {}
        // Behind it nobody arrives on barriers of this CTA any more.
        __device__ __forceinline__ ~Warp() {
            if (rank_ != warp_index() % kSplits) cluster::wait_on(&shared_.empty[warp_index()], parity_ ^ 1);
        }

        // Whether the accumulators are the sums of all CTAs now, which this warp has to store.
        __device__ __forceinline__ bool collect(Accumulators& accumulators, const schedule::Tile& tile) {
            const int warp = warp_index(), lane = threadIdx.x % 32, storing = warp % kSplits;
            if (tile.num_rows <= static_cast<int>(Slots::first_token(warp / Slots::kWarpsN, 0))) return false;
            Others& others = shared_.sums[warp / kSplits];
            mbarrier::Barrier* const full = &shared_.full[warp / kSplits];
            if (rank_ == storing) {
                if (lane == 0) mbarrier::arrive_expect_tx(full, Others::kBytes);
                cluster::wait_on(full, parity_);
                others.add_to(accumulators[0][0], lane);
                __syncwarp();
                if (lane < kSplits && lane != rank_) cluster::arrive_on(cluster::place_in(lane, &shared_.empty[warp]));
            } else {
                cluster::wait_on(&shared_.empty[warp], parity_ ^ 1);
                others.send(accumulators[0][0], rank_, storing, full, lane);
            }
            parity_ ^= 1;
            return rank_ == storing;
        }

    private:
        Storage& shared_;
        const int rank_;
        uint32_t parity_ = 0;
    };
};

// One CTA has all of K.
template <class Slots>
struct SplitKSm120<1, Slots> {
    struct Storage {};
    __device__ __forceinline__ static void init(Storage&) {}

    struct Warp {
        __device__ __forceinline__ explicit Warp(Storage&) {}
        __device__ __forceinline__ bool collect(typename Slots::Accumulators&, const schedule::Tile&) { return true; }
    };
};

}  // namespace epilogue
