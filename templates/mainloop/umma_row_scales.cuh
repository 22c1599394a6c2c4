// Scales in rows for sm_100: tcgen05.cp takes blocks of 128 rows, so a warp turns the words of a stage into
// blocks, one of the tokens and one of each 128 weights.
#pragma once
#include <stdint.h>

#include "layout/scale_rows.cuh"
#include "mainloop/umma_scales.cuh"
#include "number/integer.cuh"

namespace mainloop {

template <class Config, class Operands>
struct UmmaScales<Config, Operands, operands::Scales::kRows> {
    static constexpr int BLOCK_M = Config::BLOCK_M, SCALE_K = Config::BLOCK_K;
    static constexpr int kTokenScaleK = Operands::TOKEN_SCALE_K, kWeightScaleK = Operands::WEIGHT_SCALE_K;
    using Columns = TensorMemory<Config, 1>;
    using Sources = RowScaledSources<4 * kTokenScaleK, 4 * kWeightScaleK>;
    static constexpr bool kMoves = true;
    static_assert(SCALE_K == scale_rows::STAGE_K, "a stage has one word of a row");
    static_assert(BLOCK_M <= scale_layout::ATOM_ROWS, "one block of token scales");

    static constexpr int kWords = scale_layout::ATOM_WORDS, kTokenWords = scale_rows::box_words(BLOCK_M);
    static constexpr int kParts = Columns::kParts, kWeightWords = kParts * kWords;
    static constexpr int BYTES = 4 * (kWeightWords + kTokenWords);
    struct Stage : UmmaOperands<Config, Operands> {
        uint32_t weight_scales[kWeightWords];
        uint32_t token_scales[ceil_div(BYTES, 1024) * 256 - kWeightWords];  // a stage is a multiple of 1024 bytes
    };

    __device__ __forceinline__ static StagePlaces places(Stage& stage) {
        return {stage.weights, stage.tokens, stage.weight_scales, stage.token_scales};
    }

    // One warp: words become blocks where they are.
    __device__ __forceinline__ static int word_of(int scale_row) { return scale_rows::first_word(scale_row); }
    __device__ __forceinline__ static void move(Stage& stage, int first, int lane) {
        uint32_t weights[kParts][4], tokens[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = lane + 32 * i;
#pragma unroll
            for (int part = 0; part < kParts; ++part) weights[part][i] = stage.weight_scales[part * kWords + row];
            tokens[i] = stage.token_scales[first + min(row, BLOCK_M - 1)];  // also of rows that a tile does not have
        }
        __syncwarp();
#pragma unroll
        for (int part = 0; part < kParts; ++part)
            reinterpret_cast<uint4*>(stage.weight_scales)[part * (kWords / 4) + lane] =
                make_uint4(weights[part][0], weights[part][1], weights[part][2], weights[part][3]);
        reinterpret_cast<uint4*>(stage.token_scales)[lane] = make_uint4(tokens[0], tokens[1], tokens[2], tokens[3]);
        mbarrier::fence_async_proxy();
    }

    __device__ __forceinline__ static uint32_t instruction(int num_tokens) {
        return tcgen05::block_scaled_descriptor<Operands>(num_tokens) | tcgen05::majors<Operands>();
    }
    // Of the stage at element k.
    __device__ __forceinline__ static uint32_t instruction_at(uint32_t instruction, int k) {
        return instruction | tcgen05::scale_ids(scale_rows::stage_byte(kWeightScaleK, k),
                                                scale_rows::stage_byte(kTokenScaleK, k));
    }
    __device__ __forceinline__ static uint32_t first_column(const schedule::Tile&) { return 0; }
    __device__ __forceinline__ static void clear_padding(Stage&, int, int) {}

    // A step takes a scale for 32 of K. One for 128 is that of all steps of its stage.
    class Products {
    public:
        __device__ __forceinline__ Products(uint32_t stage, uint32_t columns, uint32_t)
            : scales_(tcgen05::scale_descriptor(stage + sizeof(UmmaOperands<Config, Operands>))), columns_(columns) {}

        __device__ __forceinline__ void issue(int step, uint32_t d, uint64_t weights, uint64_t tokens,
                                              uint32_t instruction, bool accumulate) const {
            const uint32_t token_columns = columns_ + kParts * Columns::kAtomColumns;
            if (step == 0) {
#pragma unroll
                for (int part = 0; part < kParts; ++part)
                    tcgen05::copy_scales(columns_ + part * Columns::kAtomColumns, scales_ + (part * kWords * 4 >> 4));
                tcgen05::copy_scales(token_columns, scales_ + (sizeof(Stage::weight_scales) >> 4));
            }
            const uint32_t scale_ids = tcgen05::scale_ids(scale_rows::step_byte(kWeightScaleK, step),
                                                          scale_rows::step_byte(kTokenScaleK, step));
#pragma unroll
            for (int part = 0; part < kParts; ++part)
                tcgen05::mma_block_scaled<Operands>(
                    d + part * Columns::kPartColumns,
                    weights + (part * kPartBytes + step * operands::WEIGHT_STEP<Operands> >> 4),
                    tokens + (step * operands::TOKEN_STEP<Operands> >> 4), instruction | scale_ids,
                    columns_ + part * Columns::kAtomColumns, token_columns, accumulate || step > 0);
        }

    private:
        static constexpr int kPartBytes = sizeof(Stage::weights) / kParts;
        const uint64_t scales_;
        const uint32_t columns_;
    };
};

}  // namespace mainloop
