// Main loop of sm_100: weights . tokens^T by the block-scaled tcgen05 tensor core.
//
// The weights take the 128 rows of the instruction (lanes of tensor memory) and the tokens its columns, so a tile is as
// narrow as an expert's rows and one kernel serves 1 to 256 of them.
//
// Roles: one thread loads by TMA, a warp copies scales and issues products. Where a tile has up to 32 tokens, another
// warp moves their scales to the first column: products with scales at an odd one are legal, but no public kernel has
// them. One ring of stages (weights, tokens, their scale blocks). Tensor memory: two accumulators, then a ring of scale
// columns.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <type_traits>

#include "layout/scale_layout.cuh"
#include "mainloop/loader.cuh"
#include "mainloop/tensor_memory.cuh"
#include "number/integer.cuh"
#include "number/operands.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tcgen05.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

template <class Config, class Operands>
struct UmmaBlockScaled {
    using Columns = TensorMemory<Config, Operands>;
    using Sources = BlockScaledSources;
    static constexpr int BLOCK_M = Config::BLOCK_M, BLOCK_N = Config::BLOCK_N, BLOCK_K = Config::BLOCK_K;
    static constexpr int kNumStages = Config::kNumStages;
    static constexpr int ROW_BYTES = Operands::byte(BLOCK_K);
    static constexpr int kStepK = Operands::STEP_K, kStepBytes = Operands::STEP_BYTES, kSteps = BLOCK_K / kStepK;
    static constexpr int SCALE_K = Operands::SCALE_K, kScaleWords = Columns::kScaleWords;
    static constexpr int kAtomRows = scale_layout::ATOM_ROWS, kAtomBytes = scale_layout::ATOM_WORDS * 4;
    static constexpr int kTokenAtoms = Columns::kTokenAtoms;
    static constexpr bool kMovesScales = BLOCK_M <= 32;

    // CTA pairs (cta_group::2) would share the tokens of a tile between two CTAs' weights; a tile here is one CTA's.
    static_assert(BLOCK_N == tcgen05::kNumLanes, "a row of the instruction's first operand is a lane of tensor memory");
    static_assert(BLOCK_M % 16 == 0 && BLOCK_M <= 256, "with 128 rows the instruction has 16 to 256 columns");
    static_assert(128 % BLOCK_M == 0 || BLOCK_M % 128 == 0, "the tokens of a tile share scale atoms");
    static_assert(ROW_BYTES == 128, "a row of a stage is one span of the 128-byte swizzle");
    static_assert(BLOCK_K % SCALE_K == 0, "a stage has whole scale atoms");

    struct Stage {
        uint8_t weights[BLOCK_N * ROW_BYTES];
        uint8_t tokens[BLOCK_M * ROW_BYTES];
        uint8_t weight_scales[kScaleWords][kAtomBytes];
        uint8_t token_scales[kTokenAtoms][kScaleWords][kAtomBytes];
    };
    static_assert(sizeof(Stage) % 1024 == 0, "the 128-byte swizzle repeats every 1024 bytes");
    struct Storage {
        Stage stages[kNumStages];
        mbarrier::Barrier full[kNumStages];   // TMA has written the stage
        mbarrier::Barrier ready[kNumStages];  // and its token scales are where products read them
        mbarrier::Barrier empty[kNumStages];  // its products have completed
        mbarrier::Barrier accumulator_full[2];
        mbarrier::Barrier accumulator_empty[2];
    };

    // num_readers: threads of the epilogue.
    __device__ __forceinline__ static void init(Storage& shared, int num_readers) {
#pragma unroll 1
        for (int i = 0; i < kNumStages; ++i) {
            mbarrier::init(&shared.full[i], 1);
            mbarrier::init(&shared.ready[i], 1);
            mbarrier::init(&shared.empty[i], 1);
        }
        for (int i = 0; i < 2; ++i) {
            mbarrier::init(&shared.accumulator_full[i], 1);
            mbarrier::init(&shared.accumulator_empty[i], num_readers);
        }
    }

    static constexpr int WEIGHT_ATOMS = 1;
    static constexpr int BYTES_PER_STAGE =
        sizeof(Stage) - sizeof(Stage::weights) + BLOCK_N * Operands::weight_bytes(BLOCK_K);

    __device__ __forceinline__ static StagePlaces places(Storage& shared, int stage) {
        Stage& place = shared.stages[stage];
        return {place.weights, place.tokens, place.weight_scales[0], place.token_scales[0][0]};
    }
    // Of element k of a row in its tensor map.
    __device__ __forceinline__ static int coordinate(int k) { return Operands::byte(k); }
    // Of a box: it starts at the 16 bytes of the tile's first row, which thus arrives in lane 0.
    __device__ __forceinline__ static int first_scale_word(int scale_row) { return scale_row % 32 * 4; }

    // One warp: of the 16 bytes of a lane the word of the tile's row becomes the first.
    template <class Tiles>
    __device__ __forceinline__ static void move_scales(Storage& shared, Tiles tiles) {
        const int lane = threadIdx.x % 32;
        RingState<kNumStages> ring;
        for (; tiles.wait(); tiles.release()) {
            const int word = tiles.tile().scale_row / 32 % 4;
            for (int k = tiles.tile().k_begin; k < tiles.tile().k_end; k += BLOCK_K) {
                mbarrier::wait(&shared.full[ring.stage], ring.parity);
                if (word != 0) {
#pragma unroll
                    for (int atom = 0; atom < kScaleWords; ++atom) {
                        uint8_t* scales = shared.stages[ring.stage].token_scales[0][atom] + lane * 16;
                        *reinterpret_cast<uint32_t*>(scales) = reinterpret_cast<const uint32_t*>(scales)[word];
                    }
                    mbarrier::fence_async_proxy();
                }
                __syncwarp();
                if (lane == 0) mbarrier::arrive(&shared.ready[ring.stage]);
                ring.advance();
            }
        }
    }

    // One warp, which stays together, so that all of it can clear padding; elect_one() always names the same lane.
    class Multiplier {
    public:
        __device__ __forceinline__ Multiplier(Storage& shared, uint32_t tensor_memory)
            : shared_(shared), tensor_memory_(tensor_memory) {}

        __device__ __forceinline__ void multiply(const schedule::Tile& tile) {
            const int depth = tile.k_end - tile.k_begin;
            const int full_blocks = ceil_div(depth, BLOCK_K) - 1;  // the last block may be partial
            const int last_steps = ceil_div(depth, kStepK) - full_blocks * kSteps;
            const uint32_t instruction = tcgen05::block_scaled_descriptor<Operands>(ceil_div(tile.num_rows, 16) * 16);
            const uint32_t token_column = BLOCK_M == 64 ? tile.scale_row / 32 % 4 : 0;  // 0 or 2
            mbarrier::wait(&shared_.accumulator_empty[accumulator_.stage], accumulator_.parity);
#pragma unroll 1
            for (int block = 0; block < full_blocks; ++block) {
                wait_for_stage();
                if (elect_one()) issue_stage(kSteps, instruction, token_column, block > 0);
                __syncwarp();
                ring_.advance();
            }
            wait_for_stage();
            if (Operands::SCALES_PER_STEP > 1 && depth % kStepK != 0)
                clear_scale_padding(shared_.stages[ring_.stage], last_steps - 1);
            if (elect_one()) {
                issue_stage(last_steps, instruction, token_column, full_blocks > 0);
                tcgen05::commit(&shared_.accumulator_full[accumulator_.stage]);
            }
            __syncwarp();
            ring_.advance();
            accumulator_.advance();
        }

    private:
        __device__ __forceinline__ void wait_for_stage() {
            if constexpr (Columns::kNumScaleBuffers < kNumStages) {
                mbarrier::wait(&shared_.empty[retired_.stage], retired_.parity);
                retired_.advance();
            }
            mbarrier::wait(kMovesScales ? &shared_.ready[ring_.stage] : &shared_.full[ring_.stage], ring_.parity);
            tcgen05::fence_after_sync();
        }

        // Where K ends in the middle of a step, half of the step's scales are padding: they meet zeros of the operands,
        // but may be NaN. One warp clears them, after TMA has written the stage and before tcgen05.cp reads it.
        __device__ __forceinline__ static void clear_scale_padding(Stage& stage, int step) {
            using Half = std::conditional_t<Operands::SCALES_PER_STEP == 4, uint16_t, uint8_t>;
            const int atom = step / Operands::STEPS_PER_WORD, half = step % Operands::STEPS_PER_WORD * 2 + 1;
            constexpr int kHalves = 4 / sizeof(Half);  // of a word
            for (int word = threadIdx.x % 32; word < kAtomRows; word += 32) {
                reinterpret_cast<Half*>(stage.weight_scales[atom])[kHalves * word + half] = 0;
                for (int i = 0; i < kTokenAtoms; ++i)
                    reinterpret_cast<Half*>(stage.token_scales[i][atom])[kHalves * word + half] = 0;
            }
            mbarrier::fence_async_proxy();
            __syncwarp();
        }

        // Copies the scales of the first num_steps steps of the stage, issues their products, and commits the stage;
        // one thread.
        __device__ __forceinline__ void issue_stage(int num_steps, uint32_t instruction, uint32_t token_column,
                                                    bool accumulate) const {
            const uint32_t stage = mbarrier::shared_address(&shared_.stages[ring_.stage]);
            const uint64_t weights = tcgen05::swizzle128_descriptor(stage) + (offsetof(Stage, weights) >> 4);
            const uint64_t tokens = tcgen05::swizzle128_descriptor(stage) + (offsetof(Stage, tokens) >> 4);
            const uint64_t weight_scales = tcgen05::scale_descriptor(stage) + (offsetof(Stage, weight_scales) >> 4);
            const uint64_t token_scales = tcgen05::scale_descriptor(stage) + (offsetof(Stage, token_scales) >> 4);
            const uint32_t d = tensor_memory_ + accumulator_.stage * Columns::kSecondAccumulator;
            const uint32_t scales = tensor_memory_ + Columns::scales(ring_.stage);
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                if (step == num_steps) break;
                const int word = step / Operands::STEPS_PER_WORD;
                const uint32_t weight_columns = scales + word * Columns::kWordColumns;
                const uint32_t token_columns = weight_columns + Columns::kAtomColumns;
                if (step % Operands::STEPS_PER_WORD == 0) {
                    tcgen05::copy_scales(weight_columns, weight_scales + (word * kAtomBytes >> 4));
#pragma unroll
                    for (int atom = 0; atom < kTokenAtoms; ++atom)
                        tcgen05::copy_scales(token_columns + atom * Columns::kAtomColumns,
                                             token_scales + ((atom * kScaleWords + word) * kAtomBytes >> 4));
                }
                tcgen05::mma_block_scaled<Operands>(
                    d, weights + (step * kStepBytes >> 4), tokens + (step * kStepBytes >> 4),
                    instruction | tcgen05::scale_ids(Operands::scale_byte(step)), weight_columns,
                    token_columns + token_column, accumulate || step > 0);
            }
            tcgen05::commit(&shared_.empty[ring_.stage]);
        }

        Storage& shared_;
        const uint32_t tensor_memory_;
        RingState<kNumStages> ring_, retired_{kNumStages - Columns::kNumScaleBuffers, 1};
        RingState<2> accumulator_;
    };
};

}  // namespace mainloop
