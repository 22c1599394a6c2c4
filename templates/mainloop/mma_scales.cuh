// Scales of the stages of sm_12x: where they lie in shared memory, the fragments that a thread reads of them, and the
// products that take these. One type for each layout; what a layout does not need is nothing.
#pragma once
#include <stdint.h>

#include "layout/scale_layout.cuh"
#include "layout/weight_slots.cuh"
#include "mainloop/loader.cuh"
#include "number/operands.cuh"
#include "ptx/mma_sync.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

template <class Config, class Operands>
struct alignas(1024) MmaOperands {  // the swizzle pattern repeats every 1024 bytes of shared memory address
    static constexpr int ROW_BYTES = Operands::byte(Config::BLOCK_K);
    uint8_t weights[Config::BLOCK_N][ROW_BYTES];
    uint8_t tokens[Config::BLOCK_M][ROW_BYTES];
};

template <class Config, class Operands>
using MmaSlots = layout::WeightSlots<Config::BLOCK_M, Config::BLOCK_N, Operands::WEIGHTS_MN_MAJOR,
                                     Operands::TOKENS_MN_MAJOR && Operands::STEP_K == Operands::STEP_BYTES>;

template <class Config, class Operands, operands::Scales = Operands::SCALES>
struct MmaScales;

template <class Config, class Operands>
struct MmaScales<Config, Operands, operands::Scales::kNone> {
    using Slots = MmaSlots<Config, Operands>;
    using Sources = PlainSources;
    using Stage = MmaOperands<Config, Operands>;
    static constexpr int SCALE_K = Config::BLOCK_K, BYTES = 0;

    __device__ __forceinline__ static StagePlaces places(Stage& stage) {
        return {stage.weights[0], stage.tokens[0], nullptr, nullptr};
    }

    struct Offsets {
        __device__ __forceinline__ void locate(const typename Slots::Place&) {}
        __device__ __forceinline__ void begin(const schedule::Tile&) {}
        __device__ __forceinline__ void advance() {}
    };

    struct Fragments {
        __device__ __forceinline__ void load_weights(const Stage&, const Offsets&, const Fragments&, int, int) {}
        template <int kTiles>
        __device__ __forceinline__ void load_tokens(const Stage&, const Offsets&, const Fragments&, int, int) {}
        __device__ __forceinline__ void clear_padding(int, int, int) {}

        __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&weights)[4],
                                                 const uint32_t (&tokens)[2], int, int, int) const {
            mma_sync::bf16(d, weights, tokens);
        }
    };
};

// Scales in blocks of 128 rows, four along K.
template <class Config, class Operands>
struct MmaScales<Config, Operands, operands::Scales::kBlocks> {
    static constexpr int BLOCK_M = Config::BLOCK_M, BLOCK_K = Config::BLOCK_K, SCALE_K = Operands::SCALE_K;
    using Slots = MmaSlots<Config, Operands>;
    using Sources = BlockScaledSources;
    static constexpr int kWeightTiles = Slots::kWeightTiles, kTokenTiles = Slots::kTokenTiles;
    static constexpr int kScaleWords = BLOCK_K / SCALE_K;  // of a row and a stage
    static constexpr int kAtoms = (BLOCK_M + scale_layout::ATOM_ROWS - 1) / scale_layout::ATOM_ROWS;
    static constexpr int kScaleRows = BLOCK_M < 32 ? BLOCK_M : 32;  // atom rows of 4 words that a tile needs
    static constexpr int kScaleVector = kTokenTiles < 4 ? kTokenTiles : 4;  // words of an atom row that a tile needs

    static_assert(Config::BLOCK_N == scale_layout::ATOM_ROWS, "the weights of a tile are one row of scale atoms");
    static_assert(BLOCK_K % SCALE_K == 0, "a stage has whole scale atoms");

    struct Stage : MmaOperands<Config, Operands> {
        uint32_t weight_scales[kScaleWords][scale_layout::ATOM_WORDS];
        uint32_t token_scales[kAtoms][kScaleWords][kScaleRows * 4];
    };
    static constexpr int BYTES = sizeof(Stage::weight_scales) + sizeof(Stage::token_scales);

    __device__ __forceinline__ static StagePlaces places(Stage& stage) {
        return {stage.weights[0], stage.tokens[0], stage.weight_scales, stage.token_scales};
    }
    __device__ __forceinline__ static int first_word(int scale_row) { return scale_row % 32 * 4; }

    // Words that a thread reads within a stage.
    struct Offsets {
        uint32_t weights, tokens;

        __device__ __forceinline__ void locate(const typename Slots::Place& place) {
            weights = scale_layout::word(place.warp_n * Slots::WARP_N | Slots::row(place.g, place.l % 2));
            tokens = scale_layout::word(place.warp_m * Slots::MMA_N + place.g);
        }
        __device__ __forceinline__ void begin(const schedule::Tile& tile) {
            if (BLOCK_M < 128) tokens += tile.scale_row / 32 % 4;  // its words of the atom rows
        }
        __device__ __forceinline__ void advance() {}
    };

    struct Fragments {
        uint32_t weights[kWeightTiles], tokens[kTokenTiles];

        // Of weight tile t.
        __device__ __forceinline__ void load_weights(const Stage& stage, const Offsets& offsets, const Fragments&,
                                                     int step, int t) {
            weights[t] = stage.weight_scales[step / Operands::STEPS_PER_WORD]
                                            [offsets.weights ^ scale_layout::word(2 * t)];
        }
        // Of kTiles token tiles, as many as are a vector, when it is the turn of the last of them.
        template <int kTiles>
        __device__ __forceinline__ void load_tokens(const Stage& stage, const Offsets& offsets, const Fragments&,
                                                    int step, int j) {
            if ((j + 1) % kScaleVector == 0 || j + 1 == kTiles) {
                const int first = j / kScaleVector * kScaleVector;
                scale_layout::load<kScaleVector>(
                    &tokens[first], &stage.token_scales[first / 4][step / Operands::STEPS_PER_WORD][offsets.tokens]);
            }
        }
        // Where K ends in the middle of a scale word, the other scales of the word are padding: any byte, also NaN.
        __device__ __forceinline__ void clear_padding(int k, int step, int k_end) {
            const uint32_t mask = Operands::scale_mask(k + step / Operands::STEPS_PER_WORD * SCALE_K, k_end);
            for (uint32_t& scale : weights) scale &= mask;
            for (uint32_t& scale : tokens) scale &= mask;
        }

        __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int t,
                                                 int j, int step) const {
            const int byte = Operands::scale_byte(step);
            mma_sync::block_scaled<Operands>(d, a, b, weights[t], tokens[j], byte, byte);
        }
    };
};

}  // namespace mainloop
