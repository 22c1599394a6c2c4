// Split K: the CTAs of a cluster multiply a share of K of the same tile each. Here each gets the sums of all of them for
// a part of the tile, adds them, and has that part stored.
#pragma once
#include <stdint.h>

#include "epilogue/sums_of_others.cuh"
#include "ptx/cluster.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

// Of a CTA in a tile: some of the columns of the instruction, which are tokens.
template <class Config>
struct PartOfTile : Config {
    static_assert(!Config::kTokenRows, "many tokens make many tiles");
    static constexpr int BLOCK_M = Config::BLOCK_M / Config::kSplits;
};

// Store: of PartOfTile<Config>.
template <class Config, class Store>
struct SplitKSm90 {
    using Part = PartOfTile<Config>;
    static constexpr int kSplits = Config::kSplits, kNumConsumerWarps = 8;
    static constexpr int kNumWarps = 0;  // of its own
    static constexpr int kSums = Part::BLOCK_M * Part::BLOCK_N / (kNumConsumerWarps * 32);  // of a thread, in a part
    using Others = SumsOfOthers<kSplits, kSums>;

    using Params = typename Store::Params;
    struct alignas(16) Storage {
        Others sums[kNumConsumerWarps];  // of this CTA's part
        typename Store::Storage store;
        mbarrier::Barrier full[kNumConsumerWarps], empty[kNumConsumerWarps];
    };
    __device__ __forceinline__ static void init(Storage& shared) {
        Store::init(shared.store);
        for (int warp = 0; warp < kNumConsumerWarps; ++warp) {
            mbarrier::init(&shared.full[warp], 1);
            mbarrier::init(&shared.empty[warp], kSplits - 1);
        }
    }

    // What a warp that multiplies does with its tiles.
    class Consumer {
    public:
        __device__ __forceinline__ Consumer(Storage& shared, const Params& params)
            : shared_(shared), store_(shared.store, params), rank_(cluster::rank()) {}
        // Behind it nobody arrives on barriers of this CTA any more.
        __device__ __forceinline__ ~Consumer() {
            cluster::wait_on(&shared_.empty[thread_index_again() / 32 - 4], parity_ ^ 1);
        }

        __device__ __forceinline__ void finish(const float (&accumulators)[1][kSplits * kSums],
                                               const schedule::Tile& tile) {
            const int warp = thread_index_again() / 32 - 4, lane = thread_index_again() % 32;
            float part[1][kSums];
            if (lane == 0) mbarrier::arrive_expect_tx(&shared_.full[warp], Others::kBytes);
            cluster::wait_on(&shared_.empty[warp], parity_ ^ 1);
#pragma unroll
            for (int rank = 0; rank < kSplits; ++rank) {
                if (rank == rank_) {
#pragma unroll
                    for (int i = 0; i < kSums; ++i) part[0][i] = accumulators[0][rank * kSums + i];
                } else {
                    shared_.sums[warp].send(&accumulators[0][rank * kSums], rank_, rank, &shared_.full[warp], lane);
                }
            }
            cluster::wait_on(&shared_.full[warp], parity_);
            shared_.sums[warp].add_to(part[0], lane);
            __syncwarp();
            if (lane < kSplits && lane != rank_) cluster::arrive_on(cluster::place_in(lane, &shared_.empty[warp]));
            parity_ ^= 1;
            store_.finish(part, part_of(tile));
        }

    private:
        __device__ __forceinline__ schedule::Tile part_of(schedule::Tile tile) const {
            const int first = rank_ * Part::BLOCK_M;
            tile.row += first;
            tile.num_rows = max(0, min(Part::BLOCK_M, tile.num_rows - first));
            tile.num_stored = max(0, min(Part::BLOCK_M, tile.num_stored - first));
            return tile;
        }

        Storage& shared_;
        typename Store::Consumer store_;
        const int rank_;
        uint32_t parity_ = 0;
    };
};

}  // namespace epilogue
