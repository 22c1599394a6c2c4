// What epilogues of Blackwell share that make E4M3 of gates and ups, with a UE8M0 scale for the 128 columns of a tile,
// four of a row in a word, as GEMMs take them.
#pragma once
#include <stdint.h>

#include "number/bias.cuh"
#include "number/fp8.cuh"
#include "number/swiglu.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

// Arguments of the kernel.
struct GatedRows {
    const float* bias;        // [batch, 2, num_columns], of gates and of ups; null: none
    const float* row_weight;  // null: 1
    uint8_t *out, *out_scale;
    int num_columns;
    int scale_stride;  // words from the scales of four blocks of columns to those of the next
    int batch_stride;  // from scale_row of a tile to its row in out_scale, for every batch before
    swiglu::Type intermediate;  // of gate and up
    swiglu::Type activated;     // of the value before it is quantised
    swiglu::Parameters activation;

    // part: 0 of gates, 1 of ups.
    __device__ __forceinline__ float bias_of(const schedule::Tile& tile, int part, int column) const {
        return bias::load(bias, int64_t(tile.batch * 2 + part) * num_columns + column, column < num_columns);
    }
    __device__ __forceinline__ float weight_of(const schedule::Tile& tile, int row) const {
        if (row >= tile.num_rows) return 0;
        return row_weight == nullptr ? 1 : row_weight[tile.row + row];
    }

    // Gates become the activated values. Both have their bias.
    template <int kCount>
    __device__ __forceinline__ void activate(float (&gates)[kCount], float (&ups)[kCount]) const {
        swiglu::round_to(gates, intermediate);
        swiglu::round_to(ups, intermediate);
        swiglu::apply(gates, ups, activation);
    }

    // Of a block with the largest magnitude `amax`, and as UE8M0: its exponent. That of infinity and NaN is NaN.
    __device__ __forceinline__ static fp8::BlockScale scale(float amax) {
        return fp8::block_scale(amax, fp8::kPowerOfTwo);
    }
    __device__ __forceinline__ static uint32_t code(const fp8::BlockScale& scale) {
        return __float_as_uint(scale.value) >> 23 & 0xFF;
    }

    // Of a row of the tile. The last block of a row fills up its word.
    __device__ __forceinline__ void write_scale(const schedule::Tile& tile, int row, uint32_t code) const {
        const int block = tile.column / fp8::kBlock;
        uint8_t* const word = out_scale + 4 * (tile.scale_row + row + int64_t(tile.batch) * batch_stride +
                                               int64_t(block / 4) * scale_stride);
        word[block % 4] = code;
        if (tile.column + fp8::kBlock >= num_columns)
            for (int i = block % 4 + 1; i < 4; ++i) word[i] = 0;
    }

    // Zeros in the rows of padding, and in their scales, by so many threads.
    __device__ __forceinline__ void clear_padding(const schedule::Tile& tile, int thread, int num_threads) const {
        constexpr int kRowVectors = fp8::kBlock / 16;
        for (int vector = tile.num_rows * kRowVectors + thread; vector < tile.num_stored * kRowVectors;
             vector += num_threads) {
            const int row = vector / kRowVectors, column = tile.column + vector % kRowVectors * 16;
            if (column < num_columns) *reinterpret_cast<uint4*>(place(tile, row, column)) = uint4{};
            if (vector % kRowVectors == 0) write_scale(tile, row, 0);
        }
    }

    __device__ __forceinline__ uint8_t* place(const schedule::Tile& tile, int row, int column) const {
        return out + int64_t(tile.row + row) * num_columns + column;
    }
};

}  // namespace epilogue
