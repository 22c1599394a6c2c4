// Logits of many queries' heads with the same keys, on sm_90: the sum over heads of relu(query . key) times a weight.
//
// Keys are the rows of the instruction and the heads of some queries its columns: these and their weights, which a
// thread has in registers, stay for a whole tile, and keys go through a ring of stages of 64. There is no loop over K. Two
// or three warpgroups have every second or third stage each; one adds up heads while the tensor core is another's. Nobody
// tells them to take turns: on an H200 that was 2 to 5 % slower than to let them.
//
// Roles: warp 0 walks the schedule and loads, warp 1 brings weights to shared memory, and where logits go, warps 2 and 3
// clean what is not multiplied; or, of keys that are looked up one part at a time, which takes a warp longer than memory
// takes to bring them, they load those. Warps from 4 on multiply.
#pragma once
#include <stdint.h>

#include "epilogue/logit_fragments.cuh"
#include "epilogue/logits.cuh"
#include "kernel/mqa_operands.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/registers.cuh"
#include "ptx/wgmma.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace kernel {

// Products: of mainloop/key_products.cuh, how keys and queries become operands of wgmma, and which one.
template <class Config, template <class, class, class> class Products, class Schedule, class Keys>
struct MqaSm90 {
    using Operands = MqaOperands<Config, Schedule, Keys, Config::kBlockScaled>;
    using Product = Products<Config, typename Operands::Storage, Keys>;
    static constexpr int kRows = Operands::kRows, kColumns = Operands::kColumns;
    static constexpr int kGroups = Config::kGroups, kNumThreads = 128 * (1 + kGroups), kNumStages = Operands::kNumStages;
    // Pages take the warp that loads more of them.
    static constexpr int kProducerRegisters = Keys::kHasHoles ? 56 : 40;
    static constexpr int kConsumerRegisters = kGroups == 3 ? 152 : Keys::kHasHoles ? 224 : 232;
    static_assert(kRows == 64, "a warpgroup multiplies the keys of a stage");
    static_assert(kNumStages % kGroups == 0, "a stage is always the same warpgroup's");

    using Fragments = epilogue::LogitFragments<Config::kHeads, kColumns, !Config::kBlockScaled>;
    using Tiles = schedule::TileRing<kNumThreads / 32 - 1>;

    struct alignas(1024) Storage : Product::Storage {
        typename Operands::Storage operands;
        Tiles tiles;
    };
    static_assert(sizeof(Storage) == Config::kSharedBytes, "kernels.yaml computes another size for this layout");

    __device__ __forceinline__ static void run(const typename Schedule::Params& params, const Queries& queries,
                                               const Keys& keys, const epilogue::Logits& logits) {
        extern __shared__ __align__(1024) uint8_t shared_bytes[];
        Storage& shared = *reinterpret_cast<Storage*>(shared_bytes);
        const int warp = warp_index();
        if (threadIdx.x == 0) {
            tma::prefetch(queries.map);
            keys.prefetch();
        }
        if (threadIdx.x == 32) init_barriers(shared);
        wait_for_previous_grid();
        allow_next_grid();
        if (warp < 4) registers::decrease<kProducerRegisters>();
        __syncthreads();
        if (warp >= 4) {
            registers::increase<kConsumerRegisters>();
            multiply_role(shared, shared.operands, logits);
        } else if (warp >= 2) {
            helper_role(shared, schedule::TileReader(shared.tiles), keys, logits, warp - 2);
        } else if (warp == 1) {
            Operands::bring_weights(shared.operands, schedule::TileReader(shared.tiles), params, queries, logits);
        } else {
            Operands::template load<!Keys::kHasHoles>(shared.operands, schedule::TileWriter(shared.tiles), Schedule(params), queries, keys);
        }
    }

private:
    __device__ __forceinline__ static void init_barriers(Storage& shared) {
        Operands::init(shared.operands, 4 * 32, kGroups * 4 * 32);  // every lane of a warpgroup, of all
        shared.tiles.init();
        mbarrier::fence_init();
    }

    template <class Reader>
    __device__ __forceinline__ static void helper_role(Storage& shared, Reader tiles, const Keys& keys,
                                                       const epilogue::Logits& logits, int helper) {
        if constexpr (Keys::kHasHoles) {
            Operands::template load_keys<2>(shared.operands, tiles, keys, helper);
        } else {
            for (; tiles.wait(); tiles.release())
                if (logits.cleaned) logits.template clean<kRows>(tiles.tile(), helper, 2);
        }
    }

    // The product of a stage's keys with the queries of a buffer; when it is nearly done, the other warpgroup may begin.
    using Values = float[kColumns / 2];
    __device__ __forceinline__ static void multiply(Values& values, const Product& product,
                                                    const typename Product::KeyOperand& keys, int buffer) {
        constexpr int kSteps = Product::kSteps;
        wgmma::fence();
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            product.multiply(values, keys, buffer, step);
        }
        wgmma::commit();
        wgmma::wait<0>();
        wgmma::fence_values<kColumns / 2>(values);
    }

    __device__ __forceinline__ static void multiply_role(Storage& shared, typename Operands::Storage& operands,
                                                         const epilogue::Logits& logits) {
        const int group = warp_index() / 4 - 1, warp_row = warp_index() % 4 * 16;
        Product product(operands, shared);
        RingState<Operands::kBuffers> buffer;
        RingState<kNumStages / kGroups> ring;
        int skipped = group;  // stages of the next tile that come before this warpgroup's first one
        for (schedule::TileReader tiles(shared.tiles); tiles.wait(); tiles.release()) {
            const schedule::Tile& tile = tiles.tile();
            const int end = tile.k_end;
            int key = tile.k_begin;
            if (key >= end) continue;
            mbarrier::wait(&operands.queries_full[buffer.stage], buffer.parity);
            product.take_queries(buffer.stage);
            typename Fragments::Weights weights;
            Fragments::load(weights, operands.weights[buffer.stage]);
            epilogue::LogitRow rows[Fragments::kGroups];
#pragma unroll
            for (int g = 0; g < Fragments::kGroups; ++g) rows[g] = operands.rows[buffer.stage][Fragments::query(g)];
            const int stages = ceil_div(end - key, kRows);
            key += skipped * kRows;
            skipped = (skipped + stages * (kGroups - 1)) % kGroups;
#pragma unroll 1
            for (; key < end; key += kGroups * kRows) {
                const int stage = ring.stage * kGroups + group;
                mbarrier::wait(&operands.full[stage], ring.parity);
                const float scale = product.scale(stage, warp_row + Fragments::row());
                const bool exists = Keys::there(operands.parts_there[stage], warp_row, Fragments::row());
                typename Product::KeyOperand keys;
                product.load_keys(keys, stage);
                Values values;
                multiply(values, product, keys, buffer.stage);
                mbarrier::arrive(&operands.empty[stage]);
                ring.advance();
                float sums[Fragments::kGroups];
#pragma unroll
                for (int g = 0; g < Fragments::kGroups; ++g) sums[g] = Fragments::sum(values, weights, g);
#pragma unroll
                for (int g = 0; g < Fragments::kGroups; ++g) {
                    if (Fragments::stores())
                        logits.store_straight(rows[g], key + warp_row + Fragments::row(),
                                              exists ? scale * sums[g] : epilogue::Logits::kUnseen);
                }
            }
            mbarrier::arrive(&operands.queries_empty[buffer.stage]);
            buffer.advance();
        }
    }
};

}  // namespace kernel
