// Stages of bf16 rows (a), all of which tf32 holds exactly, beside weights (b) that TMA rounds to tf32 on their way. The
// rows pass through registers, where they are widened, and the squares of each are summed.
#pragma once
#include <stdint.h>

#include "mainloop/loader.cuh"
#include "mainloop/sources.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

// Boxes of 64 of K: of a in rows of 128 bytes, of b two panels of such rows, 32 of K each.
struct WidenedSources : PlainSources {
    static constexpr int PANEL_K = 32;

    template <class Mainloop>
    class Loads : public PlainSources::Loads<Mainloop> {
    public:
        __device__ __forceinline__ Loads(const WidenedSources& maps, int num_columns)
            : PlainSources::Loads<Mainloop>(maps, num_columns), maps_(maps) {}

        __device__ __forceinline__ void weights(const StagePlaces& places, mbarrier::Barrier* full,
                                                const schedule::Tile& tile, int k) const {
            tma::load_3d(places.weights, &maps_.b, full, 0, tile.column, k / PANEL_K);
        }

    private:
        const WidenedSources& maps_;
    };
};

template <class Config>
struct WidenedStages {
    using Sources = WidenedSources;
    static constexpr int BLOCK_M = Config::BLOCK_M, BLOCK_N = Config::BLOCK_N, BLOCK_K = 64;
    static constexpr int kNumStages = Config::kNumStages, ROW_BYTES = 128, WEIGHT_ATOMS = 1;
    static constexpr int PANEL_BYTES = BLOCK_N * ROW_BYTES;
    static constexpr int STEP_K = 8, kSteps = BLOCK_K / STEP_K;  // of an instruction
    static constexpr int kPanelSteps = WidenedSources::PANEL_K / STEP_K;
    static constexpr int BYTES_PER_STAGE = BLOCK_M * ROW_BYTES + 2 * PANEL_BYTES;
    static constexpr bool kTokensMnMajor = false, kWeightsMnMajor = false;
    static_assert(BLOCK_M == 128, "what all warps of a CTA have of an instruction's rows");
    static_assert(BLOCK_N % 16 == 0 && BLOCK_N <= 128, "the rows of one box");

    struct alignas(1024) Operands {  // where the swizzle repeats
        uint8_t weights[kNumStages][2][PANEL_BYTES];
        uint8_t tokens[kNumStages][BLOCK_M * ROW_BYTES];
    };

    __device__ __forceinline__ static StagePlaces places(Operands& shared, int stage) {
        return {shared.weights[stage], shared.tokens[stage], nullptr, nullptr};
    }
    __device__ __forceinline__ static int token_coordinate(int k) { return k; }
    __device__ __forceinline__ static int weight_coordinate(int k) { return k; }
};

}  // namespace mainloop
