// Where the words of scales of rows lie: in blocks of 128 rows by a word, or a step a row and a step a word apart.
#pragma once
#include <stdint.h>

#include "layout/scale_layout.cuh"
#include "number/integer.cuh"
#include "simt/quantize_format.cuh"

namespace quantize {

struct ScalePlaces {
    uint32_t* scales;
    int rows;   // that there are
    int words;  // of a row
    bool in_blocks;
    int row_step, word_step;

    // Unsigned, so that scale_offsets which are not what they should be cannot lead out of the buffer.
    __device__ __forceinline__ bool has(int row) const { return uint32_t(row) < uint32_t(rows); }

    __device__ __forceinline__ uint32_t& at(int row, int word) const {
        if (!in_blocks) return scales[int64_t(row) * row_step + int64_t(word) * word_step];
        return scales[(int64_t(row / scale_layout::ATOM_ROWS) * words + word) * scale_layout::ATOM_WORDS +
                      scale_layout::word(row)];
    }
};

// [rows, words].
template <class Format, class Scale>
__device__ __forceinline__ ScalePlaces row_major(Scale* scales, int rows, int columns) {
    return {reinterpret_cast<uint32_t*>(scales), rows, words<Format>(columns), false, words<Format>(columns), 1};
}

// The same, in blocks of 128x4.
template <class Format, class Scale>
__device__ __forceinline__ ScalePlaces blocks_128x4(Scale* scales, int rows, int columns) {
    return {reinterpret_cast<uint32_t*>(scales), rows, words<Format>(columns), true, 0, 0};
}

// [words, round_up(rows, 4)] of each matrix; one behind another begins at row words * round_up(rows, 4).
template <class Format, class Scale>
__device__ __forceinline__ ScalePlaces mn_major(Scale* scales, int rows, int columns, int matrices = 1) {
    const int pitch = ceil_div(rows, 4) * 4, count = words<Format>(columns);
    return {reinterpret_cast<uint32_t*>(scales), matrices * count * pitch, count, false, 1, pitch};
}

// Zeros behind the `rows` of each column of words, where these are MN-major.
__device__ __forceinline__ void pad_columns(const ScalePlaces& places, int rows) {
    const int pitch = places.word_step, padding = pitch - rows;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < places.rows / pitch * padding; i += gridDim.x * blockDim.x)
        places.scales[int64_t(i / padding) * pitch + rows + i % padding] = 0;
}

}  // namespace quantize
