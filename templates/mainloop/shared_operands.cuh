// Weights and tokens that wgmma reads from shared memory as TMA wrote them: a ring of stages of 128 bytes of each row.
//
// Few tokens are the columns of the instruction, and weights its 64 rows. Many are the rows (Config::kTokenRows), 64 a
// warpgroup: then a thread has sums of two tokens, and of few scales, and shared memory is free for the operands.
#pragma once
#include <stdint.h>

#include "mainloop/loader.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma_shared.cuh"
#include "schedule/ring.cuh"

namespace mainloop {

// kNumAssistants: threads that write to a stage beside TMA. kWeightColumns: of the instruction whose rows are tokens.
template <class Config, int kNumAssistants, int kWeightColumns>
struct SharedOperands {
    using Element = typename Config::Element;
    static constexpr int BLOCK_M = Config::BLOCK_M, BLOCK_N = Config::BLOCK_N, ROW_BYTES = 128;
    static constexpr int BLOCK_K = ROW_BYTES / Element::kBytes, kNumStages = Config::kNumStages;
    static constexpr bool kTokenRows = Config::kTokenRows;
    static constexpr int kNumConsumerWarps = 8, kColumns = kTokenRows ? kWeightColumns : BLOCK_M;
    static constexpr int kTiles = kTokenRows ? BLOCK_N / kColumns : BLOCK_N / 128;  // of a warpgroup
    static constexpr int WEIGHT_ATOMS = BLOCK_N / 128, kSteps = ROW_BYTES / 32;      // boxes; products of a stage
    static constexpr int SCALE_K = BLOCK_K;  // no scales in blocks
    static constexpr int BYTES_PER_STAGE = (BLOCK_M + BLOCK_N) * ROW_BYTES;

    static_assert(BLOCK_K == Config::BLOCK_K, "a row of a stage is one span of the 128-byte swizzle");
    static_assert(BLOCK_N == 128 || BLOCK_N == 256, "one or two tiles a warpgroup");
    static_assert(!kTokenRows || BLOCK_M == 128, "two consumer warpgroups of 64 rows");

    struct Storage {  // aligned to 1024 bytes, where the swizzle repeats
        uint8_t weights[kNumStages][BLOCK_N * ROW_BYTES];
        uint8_t tokens[kNumStages][BLOCK_M * ROW_BYTES];
        mbarrier::Barrier full[kNumStages], empty[kNumStages];
    };
    using Sums = float[kColumns / 2];
    using Accumulators = Sums[kTiles];

    __device__ __forceinline__ static void init(Storage& shared) {
        for (int s = 0; s < kNumStages; ++s) {
            mbarrier::init(&shared.full[s], 1 + kNumAssistants);
            mbarrier::init(&shared.empty[s], kNumConsumerWarps);
        }
    }

    __device__ __forceinline__ static StagePlaces places(Storage& shared, int stage) {
        return {shared.weights[stage], shared.tokens[stage], nullptr, nullptr};
    }
    // Of element k of a row in its tensor map.
    __device__ __forceinline__ static int coordinate(int k) { return k; }

    // What a warpgroup multiplies of a stage.
    class Products {
    public:
        __device__ __forceinline__ explicit Products(Storage& shared)
            : weights_(wgmma::descriptor_128b(shared.weights[0]) +
                       (kTokenRows ? 0 : warpgroup() * (kTiles * kWarpgroupBytes >> 4))),
              tokens_(wgmma::descriptor_128b(shared.tokens[0]) +
                      (kTokenRows ? warpgroup() * (kWarpgroupBytes >> 4) : 0)) {}

        __device__ __forceinline__ static int warpgroup() { return threadIdx.x / 128 - 1; }

        // sums (+)= the products of tile t, running until they are waited for.
        __device__ __forceinline__ void issue(Sums& sums, int stage, int t, bool accumulate) const {
            constexpr int kTileBytes = kTokenRows ? kColumns * ROW_BYTES : kWarpgroupBytes;
            const uint64_t weights = weights_ + stage * (BLOCK_N * ROW_BYTES >> 4) + t * (kTileBytes >> 4);
            const uint64_t tokens = tokens_ + stage * (BLOCK_M * ROW_BYTES >> 4);
#pragma unroll
            for (int step = 0; step < kSteps; ++step)
                wgmma::mma_shared<Element, kColumns>(sums, (kTokenRows ? tokens : weights) + step * 2,
                                                     (kTokenRows ? weights : tokens) + step * 2,
                                                     accumulate || step > 0);
        }

    private:
        static constexpr int kWarpgroupBytes = 64 * ROW_BYTES;  // the rows of an instruction
        const uint64_t weights_, tokens_;
    };
};

}  // namespace mainloop
