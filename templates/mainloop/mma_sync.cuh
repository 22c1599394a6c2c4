// Main loop of sm_12x: weights . tokens^T by mma.sync.
//
// The weights are always the 16-row operand and the tokens the 8-column one: few tokens waste no tensor core rows, and
// one orientation serves every tile. A warp multiplies the token tiles that have a row, by a main loop for that many.
//
// Roles: one thread loads by TMA, 2, 4 or 8 warps multiply. One ring of stages of BLOCK_K.
#pragma once
#include <stdint.h>

#include "mainloop/loader.cuh"
#include "mainloop/mma_fragments.cuh"
#include "mainloop/mma_row_scales.cuh"
#include "mainloop/mma_scales.cuh"
#include "number/integer.cuh"
#include "number/operands.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mbarrier.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

template <class Config, class Operands, class Sources_ = typename MmaScales<Config, Operands>::Sources>
struct MmaSync {
    using Scales = MmaScales<Config, Operands>;
    using Sources = Sources_;
    using Stage = typename Scales::Stage;
    static constexpr int BLOCK_M = Config::BLOCK_M, BLOCK_N = Config::BLOCK_N, BLOCK_K = Config::BLOCK_K;
    static constexpr int kNumStages = Config::kNumStages;
    using Slots = MmaSlots<Config, Operands>;
    using Accumulators = typename Slots::Accumulators;
    static constexpr int MMA_N = Slots::MMA_N, MMA_K = Operands::STEP_K, WARP_N = Slots::WARP_N;
    static constexpr int kWeightTiles = Slots::kWeightTiles, kTokenTiles = Slots::kTokenTiles;
    static constexpr int ROW_BYTES = Stage::ROW_BYTES, SCALE_K = Scales::SCALE_K;
    using Weights = WeightFragments<Slots, Operands, BLOCK_K>;
    using Tokens = TokenFragments<Slots, Operands, BLOCK_K>;
    static constexpr bool kTokensMnMajor = Operands::TOKENS_MN_MAJOR, kWeightsMnMajor = Operands::WEIGHTS_MN_MAJOR;
    static constexpr int kSteps = BLOCK_K / MMA_K;  // of a stage
    static_assert(kSteps % 2 == 0, "fragments are double-buffered: a stage starts with the first buffer");

    struct Storage {
        Stage stages[kNumStages];
        mbarrier::Barrier full[kNumStages], empty[kNumStages];
    };

    __device__ __forceinline__ static void init(Storage& shared) {
        for (int stage = 0; stage < kNumStages; ++stage) {
            mbarrier::init(&shared.full[stage], 1);
            mbarrier::init(&shared.empty[stage], Slots::kNumWarps);
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

    // Where a thread reads within a stage: bytes for ldmatrix, and scales.
    struct Offsets {
        uint32_t weights, tokens;
        typename Scales::Offsets scales;

        __device__ __forceinline__ explicit Offsets(const typename Slots::Place& place) {
            const uint32_t row = place.lane % 8, matrix = place.lane / 8;  // the row that this lane addresses
            weights = Weights::first(place, row, matrix);
            tokens = Tokens::first(place, row, matrix);
            scales.locate(place);
        }
    };

    struct Fragments {
        uint32_t weights[kWeightTiles][4], tokens[kTokenTiles][2];
        typename Scales::Fragments scales;
    };

    // A warp that multiplies.
    class Multiplier {
    public:
        __device__ __forceinline__ explicit Multiplier(Storage& shared) : shared_(shared), offsets_(place_) {}

        __device__ __forceinline__ void multiply(Accumulators& accumulators, const schedule::Tile& tile) {
            const int own_rows = tile.num_rows - static_cast<int>(Slots::first_token(place_.warp_m, 0));
            multiply_some<kTokenTiles>(accumulators, tile, Slots::tiles_of(own_rows));
        }

    private:
        // The first `tiles` token tiles, at most kTiles.
        template <int kTiles>
        __device__ __forceinline__ void multiply_some(Accumulators& accumulators, const schedule::Tile& tile,
                                                      int tiles) {
            if constexpr (kTiles == 0) {
                skip(tile.k_begin, tile.k_end);
            } else {
                if (tiles < kTiles) multiply_some<kTiles - 1>(accumulators, tile, tiles);
                else multiply<kTiles>(accumulators, tile);
            }
        }

        __device__ __forceinline__ void skip(int k_begin, int k_end) {
            for (int k = k_begin; k < k_end; k += BLOCK_K) {
                mbarrier::wait(&shared_.full[ring_.stage], ring_.parity);
                release();
            }
        }

        __device__ __forceinline__ void release() {
            __syncwarp();  // every lane has read the stage
            if (threadIdx.x % 32 == 0) mbarrier::arrive(&shared_.empty[ring_.stage]);
            ring_.advance();
        }

        template <int kTiles>
        __device__ __forceinline__ void multiply(Accumulators& accumulators, const schedule::Tile& tile) {
            const int k_end = tile.k_end;
            Fragments fragments[2];
            Offsets offsets = offsets_;
            offsets.scales.begin(tile);
            mbarrier::wait(&shared_.full[ring_.stage], ring_.parity);
#pragma unroll
            for (int j = 0; j < kTiles; ++j)
                load_part<kTiles>(fragments[0], fragments[1], shared_.stages[ring_.stage], offsets, 0, j);
            int k = tile.k_begin;
            for (; k + BLOCK_K < k_end; k += BLOCK_K)
                multiply_stage<kTiles, false>(accumulators, fragments, offsets, k, k_end);
            multiply_stage<kTiles, true>(accumulators, fragments, offsets, k, k_end);
        }

        // Loads part j of kTiles of the operands of a step, which follow those before: token tile j (two at a time), a
        // share of the weight tiles.
        template <int kTiles>
        __device__ __forceinline__ static void load_part(Fragments& fragments, const Fragments& before,
                                                         const Stage& stage, const Offsets& offsets, int step, int j) {
#pragma unroll
            for (int t = 0; t < kWeightTiles; ++t) {
                if (t * kTiles / kWeightTiles != j) continue;
                Weights::load(fragments.weights[t], stage.weights, offsets.weights, step, t);
                fragments.scales.load_weights(stage, offsets.scales, before.scales, step, t);
            }
            const uint32_t tokens = Tokens::address(stage.tokens, offsets.tokens, step, j);
            if (j % 2 == 1) Tokens::load(fragments.tokens[j - 1], fragments.tokens[j], tokens);
            else if (j + 1 == kTiles) Tokens::load(fragments.tokens[j], tokens);
            fragments.scales.template load_tokens<kTiles>(stage, offsets.scales, before.scales, step, j);
        }

        // Computes the stage of the ring, whose first fragments are loaded; unless it is the last one of its tile,
        // loads the first fragments of the next stage.
        template <int kTiles, bool kLast>
        __device__ __forceinline__ void multiply_stage(Accumulators& accumulators, Fragments (&fragments)[2],
                                                       Offsets& offsets, int k, int k_end) {
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                Fragments& current = fragments[step % 2];
                Fragments& next = fragments[(step + 1) % 2];
                const bool last_step = step + 1 == kSteps;
                if (last_step) {
                    release();
                    if (!kLast) mbarrier::wait(&shared_.full[ring_.stage], ring_.parity);
                    offsets.scales.advance();
                }
                if (kLast) current.scales.clear_padding(k, step, k_end);
#pragma unroll
                for (int j = 0; j < kTiles; ++j) {
#pragma unroll
                    for (int t = 0; t < kWeightTiles; ++t)
                        current.scales.multiply(accumulators[j][t], current.weights[t], current.tokens[j], t, j, step);
                    if (!(kLast && last_step))
                        load_part<kTiles>(next, current, shared_.stages[ring_.stage], offsets,
                                          last_step ? 0 : step + 1, j);
                }
            }
        }

        Storage& shared_;
        const typename Slots::Place place_;
        const Offsets offsets_;
        RingState<kNumStages> ring_;
    };
};

}  // namespace mainloop
