// Main loop of sm_12x: weights . tokens^T by block-scaled mma.sync.
//
// The weights are always the 16-row operand and the tokens the 8-column one: few tokens waste no tensor core rows, and
// one orientation serves every tile. A warp multiplies the token tiles that have a row, by a main loop for that many.
//
// Roles: one thread loads by TMA, 2, 4 or 8 warps multiply. One ring of stages of BLOCK_K.
#pragma once
#include <stdint.h>

#include "layout/scale_layout.cuh"
#include "layout/weight_slots.cuh"
#include "mainloop/loader.cuh"
#include "number/integer.cuh"
#include "number/operands.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/mma_sync.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

template <class Config, class Operands>
struct MmaSyncBlockScaled {
    using Sources = BlockScaledSources;
    static constexpr int BLOCK_M = Config::BLOCK_M, BLOCK_N = Config::BLOCK_N, BLOCK_K = Config::BLOCK_K;
    static constexpr int kNumStages = Config::kNumStages;
    using Slots = layout::WeightSlots<BLOCK_M, BLOCK_N>;
    using Accumulators = typename Slots::Accumulators;
    static constexpr int MMA_N = Slots::MMA_N, MMA_K = Operands::STEP_K, WARP_N = Slots::WARP_N;
    static constexpr int kWeightTiles = Slots::kWeightTiles, kTokenTiles = Slots::kTokenTiles;
    static constexpr int ROW_BYTES = Operands::byte(BLOCK_K);
    static constexpr int kSteps = BLOCK_K / MMA_K;  // of a stage
    static constexpr int SCALE_K = Operands::SCALE_K, kScaleWords = BLOCK_K / SCALE_K;  // of a row and a stage
    static constexpr int kAtoms = (BLOCK_M + scale_layout::ATOM_ROWS - 1) / scale_layout::ATOM_ROWS;
    static constexpr int kScaleRows = BLOCK_M < 32 ? BLOCK_M : 32;  // atom rows of 4 words that a tile needs
    static constexpr int kScaleVector = kTokenTiles < 4 ? kTokenTiles : 4;  // words of an atom row that a tile needs

    static_assert(BLOCK_N == scale_layout::ATOM_ROWS, "the weights of a tile are one row of scale atoms");
    static_assert(BLOCK_K % SCALE_K == 0, "a stage has whole scale atoms");
    static_assert(kSteps % 2 == 0, "fragments are double-buffered: a stage starts with the first buffer");

    struct alignas(1024) Stage {  // the swizzle pattern repeats every 1024 bytes of shared memory address
        uint8_t weights[BLOCK_N][ROW_BYTES];
        uint8_t tokens[BLOCK_M][ROW_BYTES];
        uint32_t weight_scales[kScaleWords][scale_layout::ATOM_WORDS];
        uint32_t token_scales[kAtoms][kScaleWords][kScaleRows * 4];
    };
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
        BLOCK_N * Operands::weight_bytes(BLOCK_K) + sizeof(Stage::tokens) + sizeof(Stage::weight_scales) +
        sizeof(Stage::token_scales);

    __device__ __forceinline__ static StagePlaces places(Storage& shared, int stage) {
        Stage& place = shared.stages[stage];
        return {place.weights[0], place.tokens[0], reinterpret_cast<uint8_t*>(place.weight_scales),
                reinterpret_cast<uint8_t*>(place.token_scales)};
    }
    // Of element k of a row in its tensor map.
    __device__ __forceinline__ static int coordinate(int k) { return Operands::byte(k); }
    __device__ __forceinline__ static int first_scale_word(int scale_row) { return scale_row % 32 * 4; }

    // Where a thread reads within a stage: bytes for ldmatrix, words for scales.
    struct Offsets {
        uint32_t weights, tokens, weight_scales, token_scales;

        __device__ __forceinline__ explicit Offsets(const typename Slots::Place& place) {
            const uint32_t row = place.lane % 8, matrix = place.lane / 8;  // the row that this lane addresses
            weights = ldmatrix::swizzled<ROW_BYTES>(place.warp_n * WARP_N | Slots::row(row, matrix % 2),
                                                    matrix / 2 * 16);
            tokens = ldmatrix::swizzled<ROW_BYTES>(
                (kTokenTiles > 1 ? matrix / 2 * 32 : 0) + place.warp_m * MMA_N + row, matrix % 2 * 16);
            weight_scales = scale_layout::word(place.warp_n * WARP_N | Slots::row(place.g, place.l % 2));
            token_scales = scale_layout::word(place.warp_m * MMA_N + place.g);
        }
    };

    struct Fragments {
        uint32_t weights[kWeightTiles][4], weight_scales[kWeightTiles];
        uint32_t tokens[kTokenTiles][2], token_scales[kTokenTiles];
    };

    // A warp that multiplies.
    class Multiplier {
    public:
        __device__ __forceinline__ explicit Multiplier(Storage& shared) : shared_(shared), offsets_(place_) {}

        __device__ __forceinline__ void multiply(Accumulators& accumulators, const schedule::Tile& tile) {
            const int own_rows = tile.num_rows - static_cast<int>(place_.warp_m) * MMA_N;
            multiply_some<kTokenTiles>(accumulators, tile, ceil_div(max(own_rows, 0), 32));
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
            if (BLOCK_M < 128) offsets.token_scales += tile.scale_row / 32 % 4;  // its words of the atom rows
            mbarrier::wait(&shared_.full[ring_.stage], ring_.parity);
#pragma unroll
            for (int j = 0; j < kTiles; ++j)
                load_part<kTiles>(fragments[0], shared_.stages[ring_.stage], offsets, 0, j);
            int k = tile.k_begin;
            for (; k + BLOCK_K < k_end; k += BLOCK_K)
                multiply_stage<kTiles, false>(accumulators, fragments, offsets, k, k_end);
            multiply_stage<kTiles, true>(accumulators, fragments, offsets, k, k_end);
        }

        // Loads part j of kTiles of the operands of a step: token tile j (two at a time), a share of the weight
        // tiles.
        template <int kTiles>
        __device__ __forceinline__ static void load_part(Fragments& fragments, const Stage& stage,
                                                         const Offsets& offsets, int step, int j) {
            const uint32_t step_bytes = step * Operands::STEP_BYTES;
            const int word = step / Operands::STEPS_PER_WORD;
#pragma unroll
            for (int t = 0; t < kWeightTiles; ++t) {
                if (t * kTiles / kWeightTiles != j) continue;
                const uint32_t weights = mbarrier::shared_address(stage.weights) +
                                         (offsets.weights ^ ldmatrix::swizzled<ROW_BYTES>(2 * t, step_bytes));
                if constexpr (Operands::UNPACKED_WEIGHTS) ldmatrix::x4_of_e2m1(fragments.weights[t], weights);
                else ldmatrix::x4(fragments.weights[t], weights);
                fragments.weight_scales[t] =
                    stage.weight_scales[word][offsets.weight_scales ^ scale_layout::word(2 * t)];
            }
            const uint32_t tokens = mbarrier::shared_address(stage.tokens[j / 2 * 64]) + (offsets.tokens ^ step_bytes);
            if (j % 2 == 1) ldmatrix::x4(fragments.tokens[j - 1], fragments.tokens[j], tokens);
            else if (j + 1 == kTiles) ldmatrix::x2(fragments.tokens[j], tokens);
            if ((j + 1) % kScaleVector == 0 || j + 1 == kTiles) {
                const int first = j / kScaleVector * kScaleVector;
                scale_layout::load<kScaleVector>(&fragments.token_scales[first],
                                                 &stage.token_scales[first / 4][word][offsets.token_scales]);
            }
        }

        // Where K ends in the middle of a scale word, the other scales of the word are padding: any byte, also NaN.
        __device__ __forceinline__ static void clear_padding(Fragments& fragments, int k, int k_end) {
            const uint32_t mask = Operands::scale_mask(k, k_end);
            for (uint32_t& scale : fragments.weight_scales) scale &= mask;
            for (uint32_t& scale : fragments.token_scales) scale &= mask;
        }

        // Computes the stage of the ring, whose first fragments are loaded; unless it is the last one of its tile,
        // loads the first fragments of the next stage.
        template <int kTiles, bool kLast>
        __device__ __forceinline__ void multiply_stage(Accumulators& accumulators, Fragments (&fragments)[2],
                                                       const Offsets& offsets, int k, int k_end) {
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                Fragments& current = fragments[step % 2];
                Fragments& next = fragments[(step + 1) % 2];
                const bool last_step = step + 1 == kSteps;
                if (last_step) {
                    release();
                    if (!kLast) mbarrier::wait(&shared_.full[ring_.stage], ring_.parity);
                }
                if (kLast) clear_padding(current, k + step / Operands::STEPS_PER_WORD * SCALE_K, k_end);
#pragma unroll
                for (int j = 0; j < kTiles; ++j) {
#pragma unroll
                    for (int t = 0; t < kWeightTiles; ++t)
                        mma_sync::block_scaled<Operands>(accumulators[j][t], current.weights[t], current.tokens[j],
                                                         current.weight_scales[t], current.token_scales[j],
                                                         Operands::scale_byte(step));
                    if (!(kLast && last_step))
                        load_part<kTiles>(next, shared_.stages[ring_.stage], offsets, last_step ? 0 : step + 1, j);
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
