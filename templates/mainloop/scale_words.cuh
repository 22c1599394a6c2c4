// Words of scales of a stage of 128 of K on sm_90, four UE8M0 along K of each row: how they are loaded, by the layout in
// memory, and what a lane reads of them. It has every 32nd row.
#pragma once
#include <stdint.h>

#include "layout/scale_layout.cuh"
#include "layout/scale_rows.cuh"
#include "mainloop/sources.cuh"
#include "number/operands.cuh"

namespace mainloop {

template <class Config, class Operands, operands::Scales = Operands::SCALES>
struct ScaleWords;

// Words of neighbouring rows are neighbours. A box starts at 16 bytes, up to three rows before the tile.
template <class Config, class Operands>
struct ScaleWords<Config, Operands, operands::Scales::kRows> {
    static constexpr int kTokenScaleK = Operands::TOKEN_SCALE_K, kWeightScaleK = Operands::WEIGHT_SCALE_K;
    static constexpr int kTokenWords = scale_rows::box_words(Config::BLOCK_M), kWeightWords = Config::BLOCK_N;
    using Sources = RowScaledSources<4 * kTokenScaleK, 4 * kWeightScaleK>;

    template <int kCount>
    __device__ __forceinline__ static void load_tokens(uint32_t (&words)[kCount], const uint32_t* stage, int scale_row,
                                                       int lane) {
        load_weights(words, stage + scale_rows::first_word(scale_row), lane);
    }
    template <int kCount>
    __device__ __forceinline__ static void load_weights(uint32_t (&words)[kCount], const uint32_t* stage, int lane) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) words[i] = stage[i * 32 + lane];
    }
};

// A block of 128 rows, in which a tile lies, or the block is part of it.
template <class Config, class Operands>
struct ScaleWords<Config, Operands, operands::Scales::kBlocks> {
    static constexpr int SCALE_K = Operands::SCALE_K, kTokenScaleK = SCALE_K / 4, kWeightScaleK = SCALE_K / 4;
    static constexpr int kTokenWords = scale_layout::ATOM_WORDS, kWeightWords = scale_layout::ATOM_WORDS;
    static_assert(Config::BLOCK_M <= scale_layout::ATOM_ROWS && Config::BLOCK_N == scale_layout::ATOM_ROWS,
                  "a stage has one block of either");
    using Sources = BlockScaledSources;

    __device__ __forceinline__ static int first_scale_word(int) { return 0; }  // a box has a whole block

    template <int kCount>
    __device__ __forceinline__ static void load_tokens(uint32_t (&words)[kCount], const uint32_t* stage, int scale_row,
                                                       int lane) {
        scale_layout::load<kCount>(words, stage + scale_layout::word(scale_row % scale_layout::ATOM_ROWS + lane));
    }
    template <int kCount>
    __device__ __forceinline__ static void load_weights(uint32_t (&words)[kCount], const uint32_t* stage, int lane) {
        scale_layout::load<kCount>(words, stage + scale_layout::word(lane));
    }
};

}  // namespace mainloop
