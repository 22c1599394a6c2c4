// Scales of the stages of sm_100: where they lie in shared and in tensor memory, and the products that take them. One
// type for each layout; what a layout does not need is nothing.
#pragma once
#include <stdint.h>

#include <type_traits>

#include "layout/scale_layout.cuh"
#include "mainloop/loader.cuh"
#include "mainloop/tensor_memory.cuh"
#include "number/operands.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tcgen05.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

template <class Config, class Operands>
struct UmmaOperands {
    static constexpr int ROW_BYTES = Operands::byte(Config::BLOCK_K);
    uint8_t weights[Config::BLOCK_N * ROW_BYTES];
    uint8_t tokens[Config::BLOCK_M * ROW_BYTES];
};

template <class Config, class Operands, operands::Scales = Operands::SCALES>
struct UmmaScales;

template <class Config, class Operands>
struct UmmaScales<Config, Operands, operands::Scales::kNone> {
    using Columns = TensorMemory<Config, 0>;
    using Sources = PlainSources;
    using Stage = UmmaOperands<Config, Operands>;
    static constexpr int SCALE_K = Config::BLOCK_K, BYTES = 0;
    static constexpr bool kMoves = false;  // another warp has to put them where products read them

    __device__ __forceinline__ static StagePlaces places(Stage& stage) {
        return {stage.weights, stage.tokens, nullptr, nullptr};
    }
    __device__ __forceinline__ static uint32_t instruction(int num_tokens) {
        return tcgen05::bf16_descriptor(num_tokens) | tcgen05::majors<Operands>();
    }
    __device__ __forceinline__ static uint32_t instruction_at(uint32_t instruction, int) { return instruction; }
    __device__ __forceinline__ static uint32_t first_column(const schedule::Tile&) { return 0; }
    __device__ __forceinline__ static void clear_padding(Stage&, int, int) {}

    struct Products {
        __device__ __forceinline__ Products(uint32_t, uint32_t, uint32_t) {}

        __device__ __forceinline__ void issue(int step, uint32_t d, uint64_t weights, uint64_t tokens,
                                              uint32_t instruction, bool accumulate) const {
            tcgen05::mma_f16(d, weights + (step * operands::WEIGHT_STEP<Operands> >> 4),
                             tokens + (step * operands::TOKEN_STEP<Operands> >> 4), instruction,
                             accumulate || step > 0);
        }
    };
};

// Scales in blocks of 128 rows, four along K.
template <class Config, class Operands>
struct UmmaScales<Config, Operands, operands::Scales::kBlocks> {
    static constexpr int BLOCK_M = Config::BLOCK_M, BLOCK_K = Config::BLOCK_K, SCALE_K = Operands::SCALE_K;
    using Columns = TensorMemory<Config, BLOCK_K / SCALE_K>;
    using Sources = BlockScaledSources;
    static constexpr int kScaleWords = Columns::kScaleWords, kTokenAtoms = Columns::kTokenAtoms;
    static constexpr int kAtomRows = scale_layout::ATOM_ROWS, kAtomBytes = scale_layout::ATOM_WORDS * 4;
    // Where a tile has up to 32 tokens, their scales are moved to the first column: products with scales at an odd one
    // are legal, but no public kernel has them.
    static constexpr bool kMoves = BLOCK_M <= 32;
    static_assert(BLOCK_K % SCALE_K == 0, "a stage has whole scale atoms");

    struct Stage : UmmaOperands<Config, Operands> {
        uint8_t weight_scales[kScaleWords][kAtomBytes];
        uint8_t token_scales[kTokenAtoms][kScaleWords][kAtomBytes];
    };
    static constexpr int BYTES = sizeof(Stage::weight_scales) + sizeof(Stage::token_scales);

    __device__ __forceinline__ static StagePlaces places(Stage& stage) {
        return {stage.weights, stage.tokens, stage.weight_scales[0], stage.token_scales[0][0]};
    }
    // Of a box: it starts at the 16 bytes of the tile's first row, which thus arrives in lane 0.
    __device__ __forceinline__ static int first_word(int scale_row) { return scale_row % 32 * 4; }

    // One warp: of the 16 bytes of a lane the word of the tile's row becomes the first.
    __device__ __forceinline__ static int word_of(int scale_row) { return scale_row / 32 % 4; }
    __device__ __forceinline__ static void move(Stage& stage, int word, int lane) {
        if (word != 0) {
#pragma unroll
            for (int atom = 0; atom < kScaleWords; ++atom) {
                uint8_t* scales = stage.token_scales[0][atom] + lane * 16;
                *reinterpret_cast<uint32_t*>(scales) = reinterpret_cast<const uint32_t*>(scales)[word];
            }
            mbarrier::fence_async_proxy();
        }
    }

    __device__ __forceinline__ static uint32_t instruction(int num_tokens) {
        return tcgen05::block_scaled_descriptor<Operands>(num_tokens);
    }
    __device__ __forceinline__ static uint32_t instruction_at(uint32_t instruction, int) { return instruction; }
    // Of a tile's scales in their block.
    __device__ __forceinline__ static uint32_t first_column(const schedule::Tile& tile) {
        return BLOCK_M == 64 ? tile.scale_row / 32 % 4 : 0;  // 0 or 2
    }

    // Where K ends in the middle of a step, half of the step's scales are padding: they meet zeros of the operands,
    // but may be NaN. One warp clears them, after TMA has written the stage and before tcgen05.cp reads it.
    __device__ __forceinline__ static void clear_padding(Stage& stage, int depth, int step) {
        if (Operands::SCALES_PER_STEP == 1 || depth % Operands::STEP_K == 0) return;
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

    // Copies the scales of a stage and issues products; one thread.
    class Products {
    public:
        // stage: its shared address; columns: those of the ring of scales; first_column: of the tile's in their block.
        __device__ __forceinline__ Products(uint32_t stage, uint32_t columns, uint32_t first_column)
            : weight_scales_(tcgen05::scale_descriptor(stage) + (kWeightScales >> 4)),
              token_scales_(tcgen05::scale_descriptor(stage) + (kWeightScales + sizeof(Stage::weight_scales) >> 4)),
              columns_(columns),
              first_column_(first_column) {}

        __device__ __forceinline__ void issue(int step, uint32_t d, uint64_t weights, uint64_t tokens,
                                              uint32_t instruction, bool accumulate) const {
            const int word = step / Operands::STEPS_PER_WORD;
            const uint32_t weight_columns = columns_ + word * Columns::kWordColumns;
            const uint32_t token_columns = weight_columns + Columns::kAtomColumns;
            if (step % Operands::STEPS_PER_WORD == 0) {
                tcgen05::copy_scales(weight_columns, weight_scales_ + (word * kAtomBytes >> 4));
#pragma unroll
                for (int atom = 0; atom < kTokenAtoms; ++atom)
                    tcgen05::copy_scales(token_columns + atom * Columns::kAtomColumns,
                                         token_scales_ + ((atom * kScaleWords + word) * kAtomBytes >> 4));
            }
            const int byte = Operands::scale_byte(step);
            tcgen05::mma_block_scaled<Operands>(d, weights + (step * Operands::STEP_BYTES >> 4),
                                                tokens + (step * Operands::STEP_BYTES >> 4),
                                                instruction | tcgen05::scale_ids(byte, byte),
                                                weight_columns, token_columns + first_column_, accumulate || step > 0);
        }

    private:
        static constexpr int kWeightScales = sizeof(UmmaOperands<Config, Operands>);  // from the stage on
        const uint64_t weight_scales_, token_scales_;
        const uint32_t columns_, first_column_;
    };
};

}  // namespace mainloop
