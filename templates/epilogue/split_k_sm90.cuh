// Split K: the CTAs of a cluster multiply a share of K of the same tile each. Here each gets the sums of all of them for
// a part of the tile, adds them, always in the same order, and has that part stored.
//
// A thread of one CTA has the sums of the same elements as that thread of the others, so warps of the same number
// exchange them, and wait for each other alone.
#pragma once
#include <stdint.h>

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
    static_assert(kSums % 4 == 0, "sums travel by fours");

    using Params = typename Store::Params;
    struct alignas(16) Storage {
        float4 sums[kNumConsumerWarps][kSplits - 1][kSums / 4][32];  // of this CTA's part, from the others
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

        __device__ __forceinline__ void finish(const float (&accumulators)[1][kSplits * kSums],
                                               const schedule::Tile& tile) {
            const int warp = thread_index_again() / 32 - 4, lane = thread_index_again() % 32;
            float part[1][kSums];
            if (lane == 0) mbarrier::arrive_expect_tx(&shared_.full[warp], (kSplits - 1) * kSums * 32 * 4);
            cluster::wait_on(&shared_.empty[warp], parity_ ^ 1);
#pragma unroll
            for (int rank = 0; rank < kSplits; ++rank) {
                if (rank == rank_) {
#pragma unroll
                    for (int i = 0; i < kSums; ++i) part[0][i] = accumulators[0][rank * kSums + i];
                } else {
                    send(&accumulators[0][rank * kSums], rank, warp, lane);
                }
            }
            cluster::wait_on(&shared_.full[warp], parity_);
#pragma unroll
            for (int other = 0; other < kSplits - 1; ++other) add(part[0], shared_.sums[warp][other], lane);
            __syncwarp();
            if (lane < kSplits && lane != rank_) cluster::arrive_on(cluster::place_in(lane, &shared_.empty[warp]));
            parity_ ^= 1;
            store_.finish(part, part_of(tile));
        }

    private:
        // Of the part of another CTA.
        __device__ __forceinline__ void send(const float* sums, int rank, int warp, int lane) {
            const int place = rank_ < rank ? rank_ : rank_ - 1;  // among its others
            const uint32_t to = cluster::place_in(rank, &shared_.sums[warp][place][0][lane]);
            const uint32_t full = cluster::place_in(rank, &shared_.full[warp]);
#pragma unroll
            for (int i = 0; i < kSums; i += 4)
                cluster::store_async(to + i / 4 * 32 * 16, full,
                                     make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]));
        }

        __device__ __forceinline__ static void add(float (&part)[kSums], const float4 (&sums)[kSums / 4][32], int lane) {
#pragma unroll
            for (int i = 0; i < kSums; i += 4) {
                const float4 four = sums[i / 4][lane];
                part[i] += four.x, part[i + 1] += four.y, part[i + 2] += four.z, part[i + 3] += four.w;
            }
        }

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
