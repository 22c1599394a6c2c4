// Scales in rows for sm_12x: a thread reads those of its rows once a stage.
#pragma once
#include <stdint.h>

#include "layout/scale_rows.cuh"
#include "mainloop/mma_scales.cuh"
#include "number/integer.cuh"

namespace mainloop {

template <class Config, class Operands>
struct MmaScales<Config, Operands, operands::Scales::kRows> {
    using Slots = MmaSlots<Config, Operands>;
    static constexpr int kTokenScaleK = Operands::TOKEN_SCALE_K, kWeightScaleK = Operands::WEIGHT_SCALE_K;
    using Sources = RowScaledSources<4 * kTokenScaleK, 4 * kWeightScaleK>;
    static constexpr int SCALE_K = Config::BLOCK_K, kTokenWords = scale_rows::box_words(Config::BLOCK_M);
    static_assert(SCALE_K == scale_rows::STAGE_K, "a stage has one word of a row");

    struct Stage : MmaOperands<Config, Operands> {
        uint32_t weight_scales[Config::BLOCK_N];
        uint32_t token_scales[kTokenWords];
    };
    static constexpr int BYTES = 4 * (Config::BLOCK_N + kTokenWords);

    __device__ __forceinline__ static StagePlaces places(Stage& stage) {
        return {stage.weights[0], stage.tokens[0], stage.weight_scales, stage.token_scales};
    }

    // Words that a thread reads within a stage, and the bits before its scale of those that last four stages.
    struct Offsets {
        uint32_t weights, tokens, shift;

        __device__ __forceinline__ void locate(const typename Slots::Place& place) {
            weights = place.warp_n * Slots::WARP_N | Slots::row(place.g, place.l % 2);
            tokens = Slots::first_token(place.warp_m, place.g);
        }
        __device__ __forceinline__ void begin(const schedule::Tile& tile) {
            tokens += scale_rows::first_word(tile.scale_row);
            shift = scale_rows::stage_byte(scale_rows::STAGE_K, tile.k_begin) * 8;
        }
        __device__ __forceinline__ void advance() { shift = (shift + 8) % 32; }
        // The word from the first scale of the stage on.
        template <int kScaleK>
        __device__ __forceinline__ uint32_t of_stage(uint32_t word) const {
            return kScaleK == scale_rows::STAGE_K ? word >> shift : word;
        }
    };

    struct Fragments {
        uint32_t weights[Slots::kWeightTiles], tokens[Slots::kTokenTiles];

        __device__ __forceinline__ void load_weights(const Stage& stage, const Offsets& offsets,
                                                     const Fragments& before, int step, int t) {
            weights[t] = step == 0 ? offsets.template of_stage<kWeightScaleK>(
                                         stage.weight_scales[offsets.weights ^ Slots::row(0, 2 * t)])
                                   : before.weights[t];
        }
        template <int kTiles>
        __device__ __forceinline__ void load_tokens(const Stage& stage, const Offsets& offsets, const Fragments& before,
                                                    int step, int j) {
            tokens[j] = step == 0 ? offsets.template of_stage<kTokenScaleK>(
                                        stage.token_scales[offsets.tokens + Slots::token(j, 0)])
                                  : before.tokens[j];
        }
        // Where K ends in the middle of a word, the other scales of the word are anything, also NaN.
        __device__ __forceinline__ void clear_padding(int k, int step, int k_end) {
            if (step > 0) return;  // later steps have the words of this one
            const uint32_t mask = 0xFFFFFFFF >> (32 - ceil_div(k_end - k, 32) * 8);
            if constexpr (kWeightScaleK < scale_rows::STAGE_K)
                for (uint32_t& word : weights) word &= mask;
            if constexpr (kTokenScaleK < scale_rows::STAGE_K)
                for (uint32_t& word : tokens) word &= mask;
        }

        __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int t,
                                                 int j, int step) const {
            mma_sync::block_scaled<Operands>(d, a, b, weights[t], tokens[j], scale_rows::step_byte(kWeightScaleK, step),
                                             scale_rows::step_byte(kTokenScaleK, step));
        }
    };
};

}  // namespace mainloop
