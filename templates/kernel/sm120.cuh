// A persistent GEMM of sm_12x: warps that multiply and store, and one that loads, also during an epilogue. On the other
// generations, too, where operands pass through registers of the warps that store (hc_prenorm_tf32).
#pragma once
#include <stdint.h>

#include "epilogue/split_k_sm120.cuh"
#include "kernel/load_role.cuh"
#include "mainloop/loader.cuh"
#include "ptx/cluster.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/registers.cuh"
#include "schedule/tile.cuh"

namespace kernel {

template <class Config, class Rows, class Schedule, class Mainloop, class Epilogue>
struct Sm120 {
    static constexpr int kNumThreads = Config::kNumThreads, kNumConsumerWarps = Mainloop::Slots::kNumWarps;

    // Three warps on a quarter of the multiprocessor leave 168 registers a thread. Where that is too few the producer
    // is a whole warpgroup, of which one warp works, and gives registers away.
    static constexpr bool kMoveRegisters = kNumThreads == (kNumConsumerWarps + 4) * 32;
    static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
    static_assert(!kMoveRegisters || kProducerRegisters + 2 * kConsumerRegisters <=
                                         kNumThreads / 128 * registers::at_launch(kNumThreads, 1),
                  "setmaxnreg.inc waits for ever for registers that the CTA was not launched with");
    static_assert(kNumThreads == (kNumConsumerWarps + (kMoveRegisters ? 4 : 1)) * 32, "consumer and producer warps");

    using Exchange = epilogue::SplitKSm120<Schedule::kSplits, typename Mainloop::Slots>;
    static_assert(Schedule::kSplits == 1 || !Rows::kHasPadding, "the rows of one matrix are split");
    struct alignas(1024) Storage : Exchange::Storage, Epilogue::Storage {
        typename Mainloop::Storage mainloop;
        schedule::TileRing<kNumConsumerWarps> tiles;
        typename Schedule::Storage schedule;
    };
    static_assert(sizeof(Storage) == Config::kSharedBytes, "kernels.yaml computes another size for this layout");

    __device__ __forceinline__ static void run(const typename Mainloop::Sources& maps, const Rows& rows,
                                               const typename Epilogue::Params& params, int num_columns, int depth,
                                               bool prefetch) {
        extern __shared__ __align__(1024) uint8_t shared_bytes[];
        Storage& shared = *reinterpret_cast<Storage*>(shared_bytes);
        if (threadIdx.x == 0) {
            maps.prefetch();
            Mainloop::init(shared.mainloop);
            Exchange::init(shared);
            shared.tiles.init();
            mbarrier::fence_init();
        }
        if (!prefetch) {
            wait_for_previous_grid();
            allow_next_grid();
        }
        Schedule::template prepare<kNumThreads>(shared.schedule, rows);  // a CTA barrier is inside
        if constexpr (Schedule::kSplits > 1) cluster::arrive();          // its barriers are there

        if (warp_index() < kNumConsumerWarps) {
            if constexpr (kMoveRegisters) registers::increase<kConsumerRegisters>();
            multiply_role(shared, params);
        } else {
            if constexpr (kMoveRegisters) registers::decrease<kProducerRegisters>();
            if (warp_index() == kNumConsumerWarps && elect_one())
                load_role(Schedule(shared.schedule, rows, num_columns, depth), schedule::TileWriter(shared.tiles),
                          mainloop::Loader<Mainloop>(shared.mainloop, maps, num_columns), prefetch);
        }
        if (Schedule::kSplits > 1 && warp_index() >= kNumConsumerWarps) cluster::wait();  // as those did who store
    }

private:
    __device__ __forceinline__ static void multiply_role(Storage& shared, const typename Epilogue::Params& params) {
        if constexpr (Schedule::kSplits > 1) cluster::wait();  // for the barriers of the others
        schedule::TileReader tiles(shared.tiles);
        typename Mainloop::Multiplier mainloop(shared.mainloop);
        typename Exchange::Warp exchange(shared);
        for (; tiles.wait(); tiles.release()) {
            typename Mainloop::Accumulators accumulators = {};
            if ((!Rows::kDividesK && Schedule::kSplits == 1) || tiles.tile().k_begin < tiles.tile().k_end)
                mainloop.multiply(accumulators, tiles.tile());
            if (exchange.collect(accumulators, tiles.tile()))
                Epilogue::finish(shared, accumulators, tiles.tile(), params);
            if constexpr (Rows::kHasPadding) Epilogue::clear_padding(tiles.tile(), params);
        }
    }
};

}  // namespace kernel
