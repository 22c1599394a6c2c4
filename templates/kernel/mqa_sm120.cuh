// Logits of many queries' heads with the same keys, on sm_12x: the sum over heads of relu(query . key) times a weight.
//
// Keys are the rows of the instruction, 16 of a stage's 128 for each of eight warps, and the heads of some queries its
// columns. A warp has the fragments of all columns in registers for a whole tile, and those of its keys for a stage, so
// that of a key shared memory is read once and a stage is free again before it is multiplied. There is no loop over K.
//
// Products are block-scaled ones, at full rate on every sm_12x, which those without scales are not. Keys that have an
// fp32 scale each are multiplied with scales of 1.
//
// Roles: warp 0 walks the schedule and loads, warp 1 brings weights and scales of queries, and where logits go, warps 2
// and 3 clean what is not multiplied, warps 4-11 multiply.
#pragma once
#include <stdint.h>

#include "epilogue/logit_fragments.cuh"
#include "epilogue/logits.cuh"
#include "kernel/mqa_operands.cuh"
#include "number/operands.cuh"
#include "ptx/launch.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/mma_sync.cuh"
#include "ptx/registers.cuh"
#include "ptx/tma.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace kernel {

// Config::kBlockScaled: keys and heads have four UE8M0 scales each, for 32 elements; otherwise keys have an fp32 scale.
template <class Config, class Formats, class Schedule, class Keys>
struct MqaSm120 {
    static constexpr bool kBlockScaled = Config::kBlockScaled;
    using Operands = MqaOperands<Config, Schedule, Keys, kBlockScaled>;
    static constexpr int kRows = Operands::kRows, kRowBytes = Operands::kRowBytes, kColumns = Operands::kColumns;
    static constexpr int kNumThreads = 384, kNumWarps = 8;  // warps that multiply
    static constexpr int kSteps = kRowBytes / Formats::STEP_BYTES, kTiles = kColumns / 8;
    static constexpr int kTogether = 4;  // column tiles whose products follow each other
    static constexpr bool kKeepsWeights = kRowBytes < 128;  // in registers, which are full with wider fragments
    static constexpr uint32_t kOne = 0x7F7F7F7F;  // scales
    static constexpr bool kLoadsMore = Keys::kHasHoles && kBlockScaled;  // pages take the warp that loads more registers
    static constexpr int kProducerRegisters = kLoadsMore ? 56 : 40, kConsumerRegisters = kLoadsMore ? 224 : 232;
    static_assert(kRows == 16 * kNumWarps && kTiles % kTogether == 0, "a warp has 16 keys and whole turns of columns");
    static_assert(kSteps <= Formats::STEPS_PER_WORD, "a word of scales is enough for a row");

    using Fragments = epilogue::LogitFragments<Config::kHeads, kColumns>;
    using Tiles = schedule::TileRing<kNumThreads / 32 - 1>;

    struct alignas(1024) Storage {
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
            multiply_role(shared.tiles, shared.operands, logits);
        } else if (warp >= 2) {
            for (schedule::TileReader tiles(shared.tiles); tiles.wait(); tiles.release())
                if (logits.cleaned) logits.template clean<kRows>(tiles.tile(), warp - 2, 2);
        } else if (warp == 1) {
            Operands::bring_weights(shared.operands, schedule::TileReader(shared.tiles), params, queries, logits);
        } else {
            Operands::load(shared.operands, schedule::TileWriter(shared.tiles), Schedule(params), queries, keys);
        }
    }

private:
    // A whole warp's fragments of its keys, and of all columns, for each step along K.
    using KeyFragments = uint32_t[kSteps][4];
    using QueryFragments = uint32_t[kSteps][kTiles][2];
    using Values = float[kTiles][4];

    __device__ __forceinline__ static void init_barriers(Storage& shared) {
        Operands::init(shared.operands, kNumWarps, kNumWarps);
        shared.tiles.init();
        mbarrier::fence_init();
    }

    __device__ __forceinline__ static void arrive_as_warp(mbarrier::Barrier* barrier) {
        __syncwarp();
        if (threadIdx.x % 32 == 0) mbarrier::arrive(barrier);
    }

    // From the row of a swizzled box, and in it, that a lane addresses in an ldmatrix of a step.
    __device__ __forceinline__ static uint32_t address(const uint8_t* box, uint32_t row, uint32_t byte, int step) {
        return mbarrier::shared_address(box) +
               (ldmatrix::swizzled<kRowBytes>(row, byte) ^ step * Formats::STEP_BYTES);
    }

    // Two column tiles at a time.
    __device__ __forceinline__ static void load(QueryFragments& queries, const uint8_t* all) {
        const uint32_t lane = threadIdx.x % 32, row = lane % 8 + lane / 16 * 8, byte = lane / 8 % 2 * 16;
#pragma unroll
        for (int t = 0; t < kTiles; t += 2) {
#pragma unroll
            for (int step = 0; step < kSteps; ++step)
                ldmatrix::x4(queries[step][t], queries[step][t + 1],
                             address(all + t * 8 * kRowBytes, row, byte, step));
        }
    }

    __device__ __forceinline__ static void load(KeyFragments& keys, const uint8_t* stage) {
        const uint32_t lane = threadIdx.x % 32;
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
            ldmatrix::x4(keys[step], address(stage, lane % 16, lane / 16 * 16, step));
    }

    // Column tiles first .. first + kTogether - 1. Their scales are read anew: 128 columns leave no registers for them.
    __device__ __forceinline__ static void multiply(Values& values, const KeyFragments& keys, uint32_t key_scales,
                                                    const QueryFragments& queries, const uint32_t* query_scales,
                                                    int first) {
        uint32_t scales[kTogether];
#pragma unroll
        for (int i = 0; i < kTogether; ++i)
            scales[i] = kBlockScaled ? query_scales[(first + i) * 8 + threadIdx.x % 32 / 4] : kOne;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            const int byte = Formats::scale_byte(step);
#pragma unroll
            for (int i = 0; i < kTogether; ++i)
                mma_sync::block_scaled<Formats>(values[first + i], keys[step], queries[step][first + i], key_scales,
                                                scales[i], byte, byte);
        }
    }

    // The sums of all queries, each when its products are there.
    __device__ __forceinline__ static void add_up(float (&sums)[Fragments::kGroups], const KeyFragments& keys,
                                                  uint32_t key_scales, const QueryFragments& queries,
                                                  const uint32_t* query_scales,
                                                  const typename Fragments::Weights& weights) {
        Values values = {};
        int next = 0;
#pragma unroll
        for (int t = 0; t < kTiles; t += kTogether) {
            multiply(values, keys, key_scales, queries, query_scales, t);
#pragma unroll
            for (; next < (t + kTogether) * Fragments::kGroups / kTiles; ++next)
                sums[next] = Fragments::sum(values[0], weights, next);
        }
    }

    __device__ __forceinline__ static void multiply_role(Tiles& all_tiles, typename Operands::Storage& shared,
                                                         const epilogue::Logits& logits) {
        const int warp_row = (warp_index() - 4) * 16;
        RingState<Operands::kBuffers> buffer;
        RingState<Operands::kNumStages> ring;
        for (schedule::TileReader tiles(all_tiles); tiles.wait(); tiles.release()) {
            const schedule::Tile& tile = tiles.tile();
            const int end = tile.k_end;
            int key = tile.k_begin;
            if (key >= end) continue;
            mbarrier::wait(&shared.queries_full[buffer.stage], buffer.parity);
            typename Fragments::Weights weights;
            Fragments::load(weights, shared.weights[buffer.stage]);
            QueryFragments queries;
            load(queries, shared.queries[buffer.stage]);
            const uint32_t* query_scales = nullptr;
            if constexpr (kBlockScaled) query_scales = shared.query_scales[buffer.stage];
#pragma unroll 1
            for (; key < end; key += kRows) {
                mbarrier::wait(&shared.full[ring.stage], ring.parity);
                KeyFragments keys;
                load(keys, shared.keys[ring.stage] + warp_row * kRowBytes);
                const float scale = Keys::scale(shared.scales[ring.stage], warp_row + Fragments::row());
                const bool exists = Keys::there(shared.parts_there[ring.stage], warp_row, Fragments::row());
                arrive_as_warp(&shared.empty[ring.stage]);
                ring.advance();
                if constexpr (!kKeepsWeights) Fragments::load(weights, shared.weights[buffer.stage]);
                float sums[Fragments::kGroups];
                add_up(sums, keys, kBlockScaled ? __float_as_uint(scale) : kOne, queries, query_scales, weights);
#pragma unroll
                for (int g = 0; g < Fragments::kGroups; ++g) {
                    const float logit = kBlockScaled ? sums[g] : scale * sums[g];
                    if (Fragments::stores())
                        logits.store(shared.rows[buffer.stage][Fragments::query(g)], key + warp_row + Fragments::row(),
                                     exists ? logit : epilogue::Logits::kUnseen);
                }
            }
            arrive_as_warp(&shared.queries_empty[buffer.stage]);
            buffer.advance();
        }
    }
};

}  // namespace kernel
