// The loading thread of every main loop: weights and tokens, and their scales, by TMA, into a ring of stages.
//
// A main loop says where they go, and how many bytes a stage has:
//     static constexpr int kNumStages, BLOCK_K, BYTES_PER_STAGE;  Storage::full, empty;
//     static StagePlaces places(Storage&, int stage);
//     struct Sources: what is loaded, and how
#pragma once
#include <stdint.h>

#include "mainloop/sources.cuh"
#include "number/integer.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/opaque.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

template <class Mainloop>
class Loader {
    using Storage = typename Mainloop::Storage;
    using Sources = typename Mainloop::Sources;
    using Loads = typename Sources::template Loads<Mainloop>;
    static constexpr int kNumStages = Mainloop::kNumStages, BLOCK_K = Mainloop::BLOCK_K;

public:
    static constexpr int kFirstBlocks = kNumStages < 4 ? kNumStages : 4;  // nobody has to free a stage for them

    __device__ __forceinline__ Loader(Storage& shared, const Sources& sources, int num_columns)
        : shared_(opaque(shared)), loads_(sources, num_columns) {}

    // The weights of the tile that is loaded next, as far as there are stages.
    __device__ __forceinline__ void load_weights_ahead(const schedule::Tile& tile) {
        prepare_maps(tile);
        const int blocks = min(kNumStages, ceil_div(tile.k_end - tile.k_begin, BLOCK_K));
        for (; ahead_ < blocks; ++ahead_) load_weights(tile, ahead_, tile.k_begin + ahead_ * BLOCK_K);
    }

    // announce() is called behind `blocks_before` blocks of K, or all that there are. It is no branch of the inner loop:
    // this thread is what few CTAs with small stages wait for.
    template <class Announce>
    __device__ __forceinline__ void load(const schedule::Tile& tile, int blocks_before, const Announce& announce) {
        prepare_maps(tile);
        int ahead = ahead_;
        ahead_ = 0;
        int k = tile.k_begin, end = min(tile.k_end, k + blocks_before * BLOCK_K);
#pragma unroll 1
        for (bool announced = false;; announced = true) {
#pragma unroll 1  // the instruction cache is for the other roles
            for (; k < end; k += BLOCK_K) {
                if (ahead-- <= 0) {
                    mbarrier::wait(&shared_.empty[ring_.stage], ring_.parity ^ 1);
                    load_weights(tile, ring_.stage, k);
                }
                loads_.tokens(Mainloop::places(shared_, ring_.stage), &shared_.full[ring_.stage], tile, k);
                ring_.advance();
            }
            if (announced) break;
            announce();
            end = tile.k_end;
        }
    }

    // The last commits arrive on barriers of this CTA, which must still be there.
    __device__ __forceinline__ void wait_for_commits() {
#pragma unroll 1
        for (int i = 0; i < kNumStages; ++i) {
            mbarrier::wait(&shared_.empty[ring_.stage], ring_.parity ^ 1);
            ring_.advance();
        }
    }

private:
    __device__ __forceinline__ void prepare_maps(const schedule::Tile& tile) {
        if constexpr (Loads::kChangesMaps) {
            if (loads_.has_maps_of(tile)) return;
#pragma unroll 1
            for (int stage = 0; stage < kNumStages; ++stage)  // all loads so far are over
                mbarrier::wait(&shared_.full[stage], stage < ring_.stage ? ring_.parity : ring_.parity ^ 1);
            loads_.change_maps(tile);
        }
    }

    __device__ __forceinline__ void load_weights(const schedule::Tile& tile, int stage, int k) {
        mbarrier::arrive_expect_tx(&shared_.full[stage], Mainloop::BYTES_PER_STAGE);
        loads_.weights(Mainloop::places(shared_, stage), &shared_.full[stage], tile, k);
    }

    Storage& shared_;
    Loads loads_;
    int ahead_ = 0;  // stages that have their weights already
    RingState<kNumStages> ring_;
};

}  // namespace mainloop
