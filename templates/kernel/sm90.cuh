// A persistent GEMM of sm_90: a warpgroup that loads and prepares sources, two that multiply, and one more that
// prepares operands, too, and does the epilogue where that asks for warps.
//
// Roles: warp 0 loads, warps 1-3 assist the main loop, warps 4-11 multiply; of warps 12-15, if there are any, the first
// are the epilogue's and the others assist.
#pragma once
#include <stdint.h>

#include "kernel/load_role.cuh"
#include "mainloop/loader.cuh"
#include "ptx/cluster.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/registers.cuh"
#include "schedule/tile.cuh"

namespace kernel {

template <class Config, class Rows, class Schedule, class Mainloop, class Epilogue>
struct Sm90 {
    static constexpr int kNumThreads = Config::kNumThreads, kNumConsumerWarps = 8;
    static constexpr int kFirstExtraWarp = 4 + kNumConsumerWarps, kNumExtraWarps = kNumThreads / 32 - kFirstExtraWarp;
    static_assert(kNumExtraWarps == 0 || kNumExtraWarps == 4, "registers move between whole warpgroups");
    static_assert(Schedule::kSplits == 1 || kNumExtraWarps == 0, "of a split, only these warps wait for the cluster");
    static_assert(Config::kNumTokenWarps == 3 + kNumExtraWarps - Epilogue::kNumWarps, "every warp has a role");
    static_assert(Config::kProducerRegisters + 2 * Config::kConsumerRegisters +
                          kNumExtraWarps / 4 * Config::kExtraRegisters <=
                      kNumThreads / 128 * registers::at_launch(kNumThreads, Config::kCtasPerSm),
                  "setmaxnreg.inc waits for ever for registers that the CTA was not launched with");

    using Tiles = schedule::TileRing<kNumThreads / 32 - 1>;
    struct alignas(1024) Storage {
        typename Mainloop::Storage mainloop;
        typename Epilogue::Storage epilogue;
        Tiles tiles;
        typename Schedule::Storage schedule;
    };
    static_assert(sizeof(Storage) == Config::kSharedBytes, "kernels.yaml computes another size for this layout");

    __device__ __forceinline__ static void run(const typename Mainloop::Sources& sources, const Rows& rows,
                                               const typename Epilogue::Params& params, int num_columns, int depth,
                                               bool prefetch) {
        extern __shared__ __align__(1024) uint8_t shared_bytes[];
        Storage& shared = *reinterpret_cast<Storage*>(shared_bytes);
        const int warp = warp_index();
        if (threadIdx.x == 0) sources.prefetch();
        init_barriers(shared);
        if (!prefetch) {
            wait_for_previous_grid();
            allow_next_grid();
        }
        // Registers are there when the first ask for them: who asks in vain keeps others waiting.
        if (warp < 4) registers::decrease<Config::kProducerRegisters>();
        Schedule::template prepare<kNumThreads>(shared.schedule, rows);  // a CTA barrier is inside
        if constexpr (Schedule::kSplits > 1) cluster::arrive();          // its barriers are there
        if (warp < 4) {
            if (warp == 0) {
                if (elect_one())
                    load_role(Schedule(shared.schedule, rows, num_columns, depth), schedule::TileWriter(shared.tiles),
                              mainloop::Loader<Mainloop>(shared.mainloop, sources, num_columns), prefetch);
            } else {
                assist(shared, warp - 1);
            }
        } else if (warp < kFirstExtraWarp) {
            registers::increase<Config::kConsumerRegisters>();
            multiply_role(shared, sources, params, num_columns, depth);
        } else if constexpr (kNumExtraWarps > 0) {
            registers::decrease<Config::kExtraRegisters>();
            const int extra = warp - kFirstExtraWarp;
            if (extra >= Epilogue::kNumWarps) {
                assist(shared, 3 + extra - Epilogue::kNumWarps);
            } else if constexpr (Epilogue::kNumWarps > 0) {
                Epilogue::run(shared.epilogue, schedule::TileReader(shared.tiles), params, extra);
            }
        }
        if (Schedule::kSplits > 1 && warp < 4) cluster::wait();  // as those did who store
    }

private:
    // By a thread of a warp each, since it takes a thread long, and the lanes of one longer still.
    __device__ __forceinline__ static void init_barriers(Storage& shared) {
        if (threadIdx.x == 32) Mainloop::init(shared.mainloop, 0, 2);
        if (threadIdx.x == 64) Mainloop::init(shared.mainloop, 1, 2);
        if (threadIdx.x == 96) shared.tiles.init();
        if (threadIdx.x == 128) Epilogue::init(shared.epilogue);
        if (threadIdx.x % 32 == 0 && threadIdx.x <= 128) mbarrier::fence_init();
    }

    __device__ __forceinline__ static void assist(Storage& shared, int assistant) {
        Mainloop::assist(shared.mainloop, schedule::TileReader(shared.tiles), assistant);
    }

    __device__ __forceinline__ static void multiply_role(Storage& shared, const typename Mainloop::Sources& sources,
                                                         const typename Epilogue::Params& params, int num_columns,
                                                         int depth) {
        if constexpr (Schedule::kSplits > 1) cluster::wait();  // for the barriers of the others
        schedule::TileReader tiles(shared.tiles);
        typename Mainloop::Multiplier mainloop(shared.mainloop, sources, num_columns, depth);
        typename Epilogue::Consumer epilogue(shared.epilogue, params);
        for (; tiles.wait(); tiles.release()) {
            typename Mainloop::Accumulators accumulators;
            mainloop.multiply(accumulators, tiles.tile());
            epilogue.finish(accumulators, tiles.tile());
        }
    }
};

}  // namespace kernel
