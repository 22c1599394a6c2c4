// Scales in rows: one of every row for 128 of K, or for 32, four of them along K in a word, the first in its lowest
// byte. Words of neighbouring rows are neighbours (MN-major). A stage has one scale for 128 of K, or a word for 32.
#pragma once
#include <stdint.h>

namespace scale_rows {

constexpr int STAGE_K = 128;
constexpr int ALIGNMENT = 4;  // words: a box of TMA starts at a multiple of 16 bytes, up to three rows early

// Words of a box that has the scales of num_rows rows, wherever they start.
__device__ __forceinline__ constexpr int box_words(int num_rows) { return num_rows + ALIGNMENT; }
__device__ __forceinline__ constexpr int first_word(int row) { return row % ALIGNMENT; }
// Of the word, the scale of the first step of the stage at element k, and what a later step is further on.
__device__ __forceinline__ constexpr uint32_t stage_byte(int scale_k, uint32_t k) {
    return scale_k == STAGE_K ? k / STAGE_K % 4 : 0;
}
__device__ __forceinline__ constexpr uint32_t step_byte(int scale_k, uint32_t step) {
    return scale_k == STAGE_K ? 0 : step;
}

}  // namespace scale_rows
