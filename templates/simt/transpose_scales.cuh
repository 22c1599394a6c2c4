// Scales row after row to MN-major: the words of neighbouring rows are neighbours, and a column of them is padded with
// zeros to 16 bytes, where TMA may begin.
//
// A CTA turns a tile in shared memory. Its warps read neighbours of a row, and write neighbours of a column.
#pragma once
#include <stdint.h>

#include "number/integer.cuh"
#include "simt/scale_format.cuh"

namespace scales {

constexpr int kTileRows = 64, kTileColumns = 32;  // a lane has a column of scales

struct Matrix {
    const uint32_t* bits;  // [ceil(rows / row_block), columns]
    int rows, columns;
    int row_block;  // rows that share a scale

    __device__ __forceinline__ uint32_t load(int row, int column) const {
        return row < rows && column < columns ? bits[int64_t(row / row_block) * columns + column] : 0;
    }
};

// Of the tile at blockIdx.x along rows and blockIdx.y along columns; out is [words of a row, pitch], pitch >= rows.
template <class Format, int kNumThreads>
__device__ __forceinline__ void transpose(const Matrix& matrix, uint32_t* out, int pitch) {
    constexpr int kWarps = kNumThreads / 32, kRowsPerWarp = kTileRows / kWarps;
    constexpr int kTileWords = kTileColumns / Format::kPerWord;
    __shared__ uint32_t tile[kTileRows][kTileWords + 1];  // odd, so that lanes of a column meet in no bank
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first_row = blockIdx.x * kTileRows, first_column = blockIdx.y * kTileColumns;

    uint32_t bits[kRowsPerWarp];  // all in flight at once
#pragma unroll
    for (int i = 0; i < kRowsPerWarp; ++i)
        bits[i] = matrix.load(first_row + i * kWarps + warp, first_column + lane);
#pragma unroll
    for (int i = 0; i < kRowsPerWarp; ++i) {
        const uint32_t word = Format::gather(bits[i]);
        if (lane % Format::kPerWord == 0) tile[i * kWarps + warp][lane / Format::kPerWord] = word;
    }
    __syncthreads();
    const int words = ceil_div(matrix.columns, Format::kPerWord);
#pragma unroll
    for (int i = warp; i < kTileWords * (kTileRows / 32); i += kWarps) {
        const int row = i % (kTileRows / 32) * 32 + lane, word = i / (kTileRows / 32);
        const int out_row = first_row + row, out_word = first_column / Format::kPerWord + word;
        if (out_row < pitch && out_word < words) out[int64_t(out_word) * pitch + out_row] = tile[row][word];
    }
}

}  // namespace scales
