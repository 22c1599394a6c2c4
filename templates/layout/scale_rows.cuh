// Scales in rows: one of every row for 128 of K, four of them along K in a word, the first in its lowest byte. Words of
// neighbouring rows are neighbours (MN-major).
#pragma once
#include <stdint.h>

namespace scale_rows {

constexpr int SCALE_K = 128, WORD_K = 4 * SCALE_K;
constexpr int ALIGNMENT = 4;  // words: a box of TMA starts at a multiple of 16 bytes, up to three rows early

// Words of a box that has the scales of num_rows rows, wherever they start.
__device__ __forceinline__ constexpr int box_words(int num_rows) { return num_rows + ALIGNMENT; }
__device__ __forceinline__ constexpr int first_word(int row) { return row % ALIGNMENT; }
// Of the word.
__device__ __forceinline__ constexpr uint32_t byte(uint32_t k) { return k / SCALE_K % 4; }

}  // namespace scale_rows
