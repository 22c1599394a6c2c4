// Logits of many queries' heads with the same keys, on sm_100: the sum over heads of relu(query . key) times a weight.
//
// 128 keys, a stage, are the rows of the instruction and the heads of some queries its columns. While one product runs,
// two warpgroups add up the heads of those before: a thread has a key, and the weights of up to 128 columns in registers for
// a whole tile. Of 256 columns a warpgroup has half of the queries of each product, of fewer all of every other product.
//
// Roles: warp 0 walks the schedule and loads, warp 1 brings weights to shared memory, and where logits go, warp 2
// multiplies, warp 3 owns tensor memory and cleans what is not multiplied, warps 4-11 add up.
#pragma once
#include <stdint.h>

#include "epilogue/logit_lanes.cuh"
#include "epilogue/logits.cuh"
#include "kernel/mqa_operands.cuh"
#include "mainloop/umma_heads.cuh"
#include "number/integer.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/registers.cuh"
#include "ptx/tcgen05.cuh"
#include "ptx/tcgen05_fp8.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace kernel {

// Config::kBlockScaled: keys and heads have four UE8M0 scales each, for 32 elements; otherwise keys have an fp32 scale.
template <class Config, class Formats, class Schedule, class Keys>
struct MqaSm100 {
    static constexpr bool kBlockScaled = Config::kBlockScaled;
    using Operands = MqaOperands<Config, Schedule, Keys, kBlockScaled>;
    using Products = mainloop::UmmaHeads<Config, Formats, Keys, Operands::kBuffers>;
    static constexpr int kRows = Operands::kRows, kColumns = Operands::kColumns, kHeads = Operands::kHeads;
    static constexpr int kNumStages = Operands::kNumStages, kAccumulators = Config::kAccumulators;
    enum Warp { kLoadWarp, kWeightWarp, kMultiplyWarp, kTensorMemoryWarp, kFirstAdder, kNumWarps = 12 };
    static constexpr int kOwnColumns = kColumns < 128 ? kColumns : 128;
    static constexpr int kTurns = 2 * kOwnColumns / kColumns;  // every kTurns-th product is its own
    static constexpr int kAdders = kNumWarps - kFirstAdder, kAddersOfProduct = kAdders / kTurns;
    static constexpr int kProducerRegisters = Keys::kHasHoles ? 56 : 40;  // pages take the warp that loads more of them
    static constexpr int kConsumerRegisters = Keys::kHasHoles ? 224 : 232;
    static_assert(kTurns == 1 || kTurns == 2, "two warpgroups");
    static_assert(kOwnColumns % kHeads == 0, "a query is one warpgroup's");

    using Lanes = epilogue::LogitLanes<kHeads, kOwnColumns>;
    using Tiles = schedule::TileRing<kNumWarps - 1>;

    struct alignas(1024) Storage {
        typename Operands::Storage operands;
        mbarrier::Barrier accumulator_full[kAccumulators], accumulator_empty[kAccumulators];
        Tiles tiles;
        uint32_t tensor_memory;
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
        // After the wait, so that no CTA holds tensor memory while it waits for a grid that still has to allocate its
        // own.
        if (warp == kTensorMemoryWarp) {
            tcgen05::allocate<tcgen05::kNumColumns>(&shared.tensor_memory);
            tcgen05::relinquish_allocation();
            tcgen05::fence_before_sync();
        }
        if (warp < kFirstAdder) registers::decrease<kProducerRegisters>();
        __syncthreads();
        tcgen05::fence_after_sync();
        if (warp < kFirstAdder) {
            produce(shared, warp, params, queries, keys, logits);
        } else {
            registers::increase<kConsumerRegisters>();
            add_role(shared, shared.operands, warp - kFirstAdder, logits);
        }
        tcgen05::fence_before_sync();
        __syncthreads();
        if (warp == kTensorMemoryWarp) tcgen05::free<tcgen05::kNumColumns>(shared.tensor_memory);
    }

private:
    __device__ __forceinline__ static void init_barriers(Storage& shared) {
        Operands::init(shared.operands, kAddersOfProduct, kAdders);
        for (auto& full : shared.accumulator_full) mbarrier::init(&full, 1);
        for (auto& empty : shared.accumulator_empty) mbarrier::init(&empty, kAddersOfProduct);
        shared.tiles.init();
        mbarrier::fence_init();
    }

    __device__ __forceinline__ static void arrive_as_warp(mbarrier::Barrier* barrier) {
        __syncwarp();
        if (threadIdx.x % 32 == 0) mbarrier::arrive(barrier);
    }

    __device__ __forceinline__ static void produce(Storage& shared, int warp, const typename Schedule::Params& params,
                                                   const Queries& queries, const Keys& keys,
                                                   const epilogue::Logits& logits) {
        // Asked for in pairs: of four in a row the compiler makes a table to jump by.
        if (warp <= kWeightWarp) {
            if (warp == kLoadWarp)
                Operands::load(shared.operands, schedule::TileWriter(shared.tiles), Schedule(params), queries, keys);
            else
                Operands::bring_weights(shared.operands, schedule::TileReader(shared.tiles), params, queries, logits);
        } else if (warp == kMultiplyWarp) {
            multiply_role(shared, shared.operands);
        } else {
            for (schedule::TileReader tiles(shared.tiles); tiles.wait(); tiles.release())
                if (logits.cleaned) logits.template clean<kRows>(tiles.tile(), 0, 1);
        }
        __syncwarp();
    }

    // One warp, which stays together; elect_one() always names the same lane.
    __device__ __forceinline__ static void multiply_role(Storage& shared, typename Operands::Storage& operands) {
        const Products products(shared.tensor_memory, operands.keys, operands.queries);
        RingState<Operands::kBuffers> buffer;
        RingState<kNumStages> ring;
        RingState<kAccumulators> accumulator;
        for (schedule::TileReader tiles(shared.tiles); tiles.wait(); tiles.release()) {
            int left = tiles.tile().k_end - tiles.tile().k_begin;
            if (left <= 0) continue;
            mbarrier::wait(&operands.queries_full[buffer.stage], buffer.parity);
            if constexpr (kBlockScaled) {
                Products::prepare_queries(operands.query_scales[buffer.stage]);
                if (elect_one()) products.copy_query_scales(operands.query_scales[buffer.stage], buffer.stage);
                __syncwarp();
            }
#pragma unroll 1
            for (; left > 0; left -= kRows) {
                mbarrier::wait(&operands.full[ring.stage], ring.parity);
                Products::prepare_keys(operands.scales[ring.stage]);
                mbarrier::wait(&shared.accumulator_empty[accumulator.stage], accumulator.parity ^ 1);
                tcgen05::fence_after_sync();
                if (elect_one()) {
                    products.multiply(accumulator.stage, ring.stage, operands.scales[ring.stage], buffer.stage);
                    tcgen05::commit(&shared.accumulator_full[accumulator.stage]);
                }
                __syncwarp();
                ring.advance();
                accumulator.advance();
            }
            buffer.advance();
        }
    }

    // A product that has completed has read its keys and queries, so who waits for it frees these.
    __device__ __forceinline__ static void add_role(Storage& shared, typename Operands::Storage& operands, int warp,
                                                    const epilogue::Logits& logits) {
        const int group = warp / 4, row = threadIdx.x % kRows, column = kTurns == 1 ? group * kOwnColumns : 0;
        const uint32_t source = shared.tensor_memory + (warp % 4 * 32 << 16) + column;
        RingState<Operands::kBuffers> buffer;
        RingState<kNumStages> ring;
        RingState<kAccumulators> accumulator;
        int skipped = group % kTurns;  // products of the next tile that come before this warpgroup's first one
        for (int i = 0; i < skipped; ++i) {
            ring.advance();
            accumulator.advance();
        }
        for (schedule::TileReader tiles(shared.tiles); tiles.wait(); tiles.release()) {
            const int begin = tiles.tile().k_begin, end = tiles.tile().k_end;
            if (begin >= end) continue;
            mbarrier::wait(&operands.queries_full[buffer.stage], buffer.parity);
            typename Lanes::Weights weights;
            Lanes::load(weights, operands.weights[buffer.stage] + column);
            const typename Lanes::Rows rows(operands.rows[buffer.stage] + column / kHeads);
            int key = begin + skipped * kRows;
            skipped = (skipped + ceil_div(end - begin, kRows)) % kTurns;
#pragma unroll 1
            for (; key < end; key += kTurns * kRows) {
                mbarrier::wait(&operands.full[ring.stage], ring.parity);
                const float scale = kBlockScaled ? 1 : Keys::scale(operands.scales[ring.stage], row);
                const bool exists = Keys::there(operands.parts_there[ring.stage], row, 0);
                mbarrier::wait(&shared.accumulator_full[accumulator.stage], accumulator.parity);
                tcgen05::fence_after_sync();
                arrive_as_warp(&operands.empty[ring.stage]);
                add_heads(source + accumulator.stage * kColumns, weights,
                          &shared.accumulator_empty[accumulator.stage], [&](int query, float sum) {
                              logits.store(rows[query], key + row, exists ? scale * sum : epilogue::Logits::kUnseen);
                          });
#pragma unroll
                for (int i = 0; i < kTurns; ++i) {
                    ring.advance();
                    accumulator.advance();
                }
            }
            arrive_as_warp(&operands.queries_empty[buffer.stage]);
            buffer.advance();
        }
    }

    // Hands on the sum of each query, from the thread's lane of an accumulator, which is free when all of it is read.
    template <class Taker>
    __device__ __forceinline__ static void add_heads(uint32_t source, const typename Lanes::Weights& weights,
                                                     mbarrier::Barrier* freed, const Taker& take) {
        constexpr int kChunk = 32, kChunks = kOwnColumns / kChunk, kPart = kHeads < kChunk ? kHeads : kChunk;
        uint32_t values[2][kChunk];
        typename Lanes::Sum sum;
        tcgen05::load(values[0], source);
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
            tcgen05::wait_loads();
            if (chunk + 1 < kChunks) {
                tcgen05::load(values[(chunk + 1) % 2], source + (chunk + 1) * kChunk);
            } else {
                tcgen05::fence_before_sync();
                arrive_as_warp(freed);
            }
#pragma unroll
            for (int first = 0; first < kChunk; first += kPart) {
                const int column = chunk * kChunk + first;
                if (column % kHeads == 0) sum = {};
                sum.template add<kPart>(values[chunk % 2], first, weights + column / 2);
                if ((column + kPart) % kHeads == 0) take(column / kHeads, sum.value());
            }
        }
    }
};

}  // namespace kernel
