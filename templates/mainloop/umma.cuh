// Main loop of sm_100: weights . tokens^T by the tcgen05 tensor core.
//
// The weights take the 128 rows of the instruction (lanes of tensor memory) and the tokens its columns, so a tile is as
// narrow as an expert's rows and one kernel serves 1 to 256 of them.
//
// Roles: one thread loads by TMA, a warp copies scales and issues products; where the layout of scales asks for it,
// another warp moves them before. One ring of stages (weights, tokens, their scales). Tensor memory: two accumulators,
// then a ring of scale columns.
#pragma once
#include <stdint.h>

#include "mainloop/loader.cuh"
#include "mainloop/umma_row_scales.cuh"
#include "mainloop/umma_scales.cuh"
#include "number/integer.cuh"
#include "number/operands.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tcgen05.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

template <class Config, class Operands, bool kInCluster = false,
          class Sources_ = typename UmmaScales<Config, Operands>::Sources>
struct Umma {
    using Scales = UmmaScales<Config, Operands>;
    using Columns = typename Scales::Columns;
    using Sources = Sources_;
    using Stage = typename Scales::Stage;
    static constexpr int BLOCK_M = Config::BLOCK_M, BLOCK_N = Config::BLOCK_N, BLOCK_K = Config::BLOCK_K;
    static constexpr int kNumStages = Config::kNumStages;
    static constexpr int ROW_BYTES = Stage::ROW_BYTES, SCALE_K = Scales::SCALE_K;
    static constexpr int kStepK = Operands::STEP_K, kSteps = BLOCK_K / kStepK;
    static constexpr bool kMovesScales = Scales::kMoves;
    static constexpr bool kTokensMnMajor = Operands::TOKENS_MN_MAJOR, kWeightsMnMajor = Operands::WEIGHTS_MN_MAJOR;
    static constexpr int PANEL_BYTES = 128 * BLOCK_K;  // of what is MN-major

    static constexpr bool kPairs = false;  // a tile is one CTA's

    // All of tensor memory, by one warp.
    __device__ __forceinline__ static void allocate(uint32_t* address) {
        tcgen05::allocate<tcgen05::kNumColumns>(address);
        tcgen05::relinquish_allocation();
    }
    __device__ __forceinline__ static void free(uint32_t address) { tcgen05::free<tcgen05::kNumColumns>(address); }

    static_assert(BLOCK_N % tcgen05::kNumLanes == 0,
                  "a row of the instruction's first operand is a lane of tensor memory");
    static_assert(Columns::kParts == 1 || Operands::SCALES == operands::Scales::kRows,
                  "other products have one part of the weights");
    static_assert(BLOCK_M % 16 == 0 && BLOCK_M <= 256, "with 128 rows the instruction has 16 to 256 columns");
    static_assert(128 % BLOCK_M == 0 || BLOCK_M % 128 == 0, "the tokens of a tile share scale atoms");
    static_assert(ROW_BYTES == 128, "a row of a stage is one span of the 128-byte swizzle");
    static_assert(!kTokensMnMajor || sizeof(Stage::tokens) % PANEL_BYTES == 0, "TMA writes whole panels");
    static_assert(sizeof(Stage) % 1024 == 0, "the 128-byte swizzle repeats every 1024 bytes");

    struct Storage {
        Stage stages[kNumStages];
        mbarrier::Barrier full[kNumStages];   // TMA has written the stage
        mbarrier::Barrier ready[kNumStages];  // and its scales are where products read them
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
        BLOCK_N * Operands::weight_bytes(BLOCK_K) + BLOCK_M * Operands::token_bytes(BLOCK_K) + Scales::BYTES;

    __device__ __forceinline__ static StagePlaces places(Storage& shared, int stage) {
        return Scales::places(shared.stages[stage]);
    }
    // Of element k of a row in its tensor map.
    __device__ __forceinline__ static int token_coordinate(int k) { return Operands::coordinate(k); }
    __device__ __forceinline__ static int weight_coordinate(int k) { return Operands::coordinate(k); }
    __device__ __forceinline__ static int first_scale_word(int scale_row) { return Scales::first_word(scale_row); }

    // One warp.
    template <class Tiles>
    __device__ __forceinline__ static void move_scales(Storage& shared, Tiles tiles) {
        const int lane = threadIdx.x % 32;
        RingState<kNumStages> ring;
        for (; tiles.wait(); tiles.release()) {
            const int word = Scales::word_of(tiles.tile().scale_row);
            for (int k = tiles.tile().k_begin; k < tiles.tile().k_end; k += BLOCK_K) {
                mbarrier::wait(&shared.full[ring.stage], ring.parity);
                Scales::move(shared.stages[ring.stage], word, lane);
                __syncwarp();
                if (lane == 0) mbarrier::arrive(&shared.ready[ring.stage]);
                if constexpr (Operands::SCALES == operands::Scales::kRows) __syncwarp();  // all lanes read each stage
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
            const int k_begin = tile.k_begin, depth = tile.k_end - k_begin;
            const int full_blocks = ceil_div(depth, BLOCK_K) - 1;  // the last block may be partial
            const int last_steps = ceil_div(depth, kStepK) - full_blocks * kSteps;
            const uint32_t instruction = Scales::instruction(ceil_div(tile.num_rows, 16) * 16);
            const uint32_t scale_column = Scales::first_column(tile);
            const auto instruction_at = [&](int block) {
                return Scales::instruction_at(instruction, k_begin + block * BLOCK_K);
            };
            mbarrier::wait(&shared_.accumulator_empty[accumulator_.stage], accumulator_.parity);
#pragma unroll 1
            for (int block = 0; block < full_blocks; ++block) {
                wait_for_stage();
                if (elect_one()) issue_stage(kSteps, instruction_at(block), scale_column, block > 0);
                __syncwarp();
                ring_.advance();
            }
            wait_for_stage();
            Scales::clear_padding(shared_.stages[ring_.stage], depth, last_steps - 1);
            if (elect_one()) {
                issue_stage(last_steps, instruction_at(full_blocks), scale_column, full_blocks > 0);
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

        // Issues the products of the first num_steps steps of the stage, and commits the stage; one thread.
        __device__ __forceinline__ void issue_stage(int num_steps, uint32_t instruction, uint32_t scale_column,
                                                    bool accumulate) const {
            // The address of shared memory has the CTA's rank in its cluster above these bits, a descriptor has not.
            const uint32_t stage =
                mbarrier::shared_address(&shared_.stages[ring_.stage]) & (kInCluster ? tcgen05::kAddressBits : ~0u);
            const uint64_t weights = tcgen05::swizzle128_descriptor(stage, kWeightsMnMajor ? PANEL_BYTES : 0);
            const uint64_t tokens = tcgen05::swizzle128_descriptor(stage, kTokensMnMajor ? PANEL_BYTES : 0) +
                                    (sizeof(Stage::weights) >> 4);
            const uint32_t scales = tensor_memory_ + Columns::scales(ring_.stage);
            const typename Scales::Products products(stage, scales, scale_column);
            const uint32_t d = tensor_memory_ + accumulator_.stage * Columns::kSecondAccumulator;
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                if (step == num_steps) break;
                products.issue(step, d, weights, tokens, instruction, accumulate);
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
