// A persistent GEMM of sm_100. Where two CTAs of a cluster share a tile (Mainloop::kPairs), each has all roles.
//
// Roles: warps 0-3 are the epilogue, warp 4 loads, warp 5 issues copies and products, warp 6 owns tensor memory
// and moves scales where that is needed.
#pragma once
#include <stdint.h>

#include "epilogue/split_k_sm100.cuh"
#include "kernel/load_role.cuh"
#include "mainloop/loader.cuh"
#include "ptx/cluster.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tcgen05.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace kernel {

template <class Config, class Rows, class Schedule, class Mainloop, class Epilogue>
struct Sm100 {
    using Columns = typename Mainloop::Columns;
    static constexpr int kNumEpilogueWarps = 4;
    enum Warp { kLoadWarp = kNumEpilogueWarps, kMultiplyWarp, kTensorMemoryWarp, kNumWarps };
    static_assert(Config::kNumThreads == 32 * kNumWarps, "one warp a role, and four that reach all lanes");

    static constexpr int kSplits = Schedule::kSplits;
    using Exchange = epilogue::SplitKSm100<kSplits, Config::BLOCK_M / kSplits, Epilogue::kChunk>;
    static_assert(kSplits == 1 || (!Rows::kHasPadding && !Columns::kOverlap), "few rows of one matrix are split");
    static constexpr bool kPairs = Mainloop::kPairs;
    struct alignas(1024) Storage : Exchange::Storage {
        alignas(1024) typename Mainloop::Storage mainloop;
        alignas(16) uint8_t staging[kNumEpilogueWarps][Epilogue::kStagingBytes];
        schedule::TileRing<kNumEpilogueWarps + 1 + Mainloop::kMovesScales> tiles;
        uint32_t tensor_memory;
        typename Schedule::Storage schedule;
    };
    static_assert(sizeof(Storage) == Config::kSharedBytes, "kernels.yaml computes another size for this layout");

    __device__ __forceinline__ static void run(const typename Mainloop::Sources& maps, const Rows& rows,
                                               const typename Epilogue::Params& params, int num_columns, int depth,
                                               bool prefetch) {
        extern __shared__ __align__(1024) uint8_t shared_bytes[];
        Storage& shared = *reinterpret_cast<Storage*>(shared_bytes);
        const int warp = warp_index();
        if (warp == kLoadWarp && elect_one())
            maps.prefetch();
        if (warp == kMultiplyWarp && elect_one()) {
            Mainloop::init(shared.mainloop, 32 * kNumEpilogueWarps);
            Exchange::init(shared);
            shared.tiles.init();
            mbarrier::fence_init();
        }
        if (!prefetch) {
            wait_for_previous_grid();
            allow_next_grid();
        }
        Schedule::template prepare<Config::kNumThreads>(shared.schedule, rows);  // a CTA barrier is inside
        if constexpr (kSplits > 1 || kPairs) cluster::arrive();          // its barriers are there

        if (warp == kLoadWarp) {
            if (elect_one()) {
                mainloop::Loader<Mainloop> loader(shared.mainloop, maps, num_columns);
                load_role(Schedule(shared.schedule, rows, num_columns, depth), schedule::TileWriter(shared.tiles),
                          loader, prefetch);
                loader.wait_for_commits();
            }
            __syncwarp();
            if constexpr (kPairs) cluster::wait();
        } else {
            if constexpr (kPairs) cluster::wait();
            // After the wait for the previous grid, so that no CTA holds tensor memory while it waits for a grid that
            // still has to allocate its own.
            if (warp == kTensorMemoryWarp) {
                if (prefetch) wait_for_previous_grid();
                Mainloop::allocate(&shared.tensor_memory);
                tcgen05::fence_before_sync();
            }
            barrier_of<32 * (kNumWarps - 1)>();
            tcgen05::fence_after_sync();
            if (warp < kNumEpilogueWarps) epilogue_role(shared, params);
            else if (warp == kMultiplyWarp) multiply_role(shared);
            else if constexpr (Mainloop::kMovesScales)
                Mainloop::move_scales(shared.mainloop, schedule::TileReader(shared.tiles));
        }

        tcgen05::fence_before_sync();
        if constexpr (kPairs) {  // what is freed here is the other CTA's, too
            cluster::arrive();
            cluster::wait();
        } else {
            __syncthreads();
        }
        if (warp == kTensorMemoryWarp) Mainloop::free(shared.tensor_memory);
        if (kSplits > 1 && warp >= kNumEpilogueWarps) cluster::wait();  // as those did who store
    }

private:
    // A tile of padding alone has none, nor has one of a batch or a share without K, and no accumulator.
    __device__ __forceinline__ static bool has_products(const schedule::Tile& tile) {
        if constexpr (Rows::kDividesK || kSplits > 1) return tile.k_begin < tile.k_end;
        return !Rows::kHasPadding || tile.num_rows > 0;
    }

    __device__ __forceinline__ static void multiply_role(Storage& shared) {
        schedule::TileReader tiles(shared.tiles);
        typename Mainloop::Multiplier mainloop(shared.mainloop, shared.tensor_memory);
        for (; tiles.wait(); tiles.release())
            if (has_products(tiles.tile())) mainloop.multiply(tiles.tile());
    }

    __device__ __forceinline__ static void epilogue_role(Storage& shared, const typename Epilogue::Params& params) {
        if constexpr (kSplits > 1) cluster::wait();  // for the barriers of the others
        const int warp = threadIdx.x / 32;
        auto& full = shared.mainloop.accumulator_full;
        auto& empty = shared.mainloop.accumulator_empty;
        schedule::TileReader tiles(shared.tiles);
        typename Exchange::Warp exchange(shared, warp);
        RingState<2> accumulator;
        mbarrier::arrive(&empty[0]);
        if (!Columns::kOverlap) mbarrier::arrive(&empty[1]);
        for (; tiles.wait(); tiles.release()) {
            const typename Epilogue::Warp output(params, tiles.tile(), warp, shared.staging[warp]);
            const int num_rows = tiles.tile().num_rows;
            if constexpr (Rows::kHasPadding) output.clear(num_rows, tiles.tile().num_stored);
            auto& taker = exchange.begin(output, num_rows);
            if (!has_products(tiles.tile())) {
                if constexpr (Rows::kDividesK || kSplits > 1) store_zeros(taker, num_rows);
            } else {
                const uint32_t source =
                    shared.tensor_memory + accumulator.stage * Columns::kSecondAccumulator + (warp * 32 << 16);
                mbarrier::wait(&full[accumulator.stage], accumulator.parity);
                tcgen05::fence_after_sync();
                if constexpr (Columns::kOverlap) drain_overlapping(output, source, num_rows, accumulator.stage, empty);
                else drain(taker, source, 0, num_rows, &empty[accumulator.stage]);
                accumulator.advance();
            }
            exchange.finish(output, num_rows);
        }
    }

    // The sums of no products.
    template <class Taker>
    __device__ __forceinline__ static void store_zeros(Taker& taker, int num_rows) {
        const uint32_t zeros[Exchange::kChunk] = {};
        for (int begin = 0; begin < num_rows; begin += Exchange::kChunk) taker.store(zeros, begin);
    }

    // The columns from `begin` to `end` of each part, a chunk at a time; frees the accumulator when all are read.
    template <class Taker>
    __device__ __forceinline__ static void drain(Taker& taker, uint32_t source, int begin, int end,
                                                 mbarrier::Barrier* freed) {
        constexpr int kChunk = Exchange::kChunk;
#pragma unroll 1
        for (; begin < end; begin += kChunk) {
            uint32_t values[Columns::kParts][kChunk];
#pragma unroll
            for (int part = 0; part < Columns::kParts; ++part)
                tcgen05::load(values[part], source + part * Columns::kPartColumns + begin);
            tcgen05::wait_loads();
            if (freed != nullptr && begin + kChunk >= end) {
                tcgen05::fence_before_sync();
                mbarrier::arrive(freed);
            }
            if constexpr (Columns::kParts == 1) taker.store(values[0], begin);
            else taker.store(values, begin);
        }
    }

    // What the other accumulator needs is read first: the end of the first one, the beginning of the second.
    __device__ __forceinline__ static void drain_overlapping(const typename Epilogue::Warp& output, uint32_t source,
                                                             int num_rows, int stage, mbarrier::Barrier (&empty)[2]) {
        constexpr int kChunk = Epilogue::kChunk, kCount = Columns::kOverlapColumns / kChunk;
        static_assert(Columns::kOverlapColumns % kChunk == 0, "the overlap is read in whole chunks");
        const int first = stage == 0 ? Columns::kSecondAccumulator : 0;
        uint32_t values[kCount][kChunk];
#pragma unroll
        for (int i = 0; i < kCount; ++i)
            if (first + i * kChunk < num_rows) tcgen05::load(values[i], source + first + i * kChunk);
        tcgen05::wait_loads();
        tcgen05::fence_before_sync();
        mbarrier::arrive(&empty[stage ^ 1]);
#pragma unroll
        for (int i = 0; i < kCount; ++i)
            if (first + i * kChunk < num_rows) output.store(values[i], first + i * kChunk);
        if (stage == 0) drain(output, source, 0, min(num_rows, Columns::kSecondAccumulator), nullptr);
        else drain(output, source, Columns::kOverlapColumns, num_rows, nullptr);
    }
};

}  // namespace kernel
