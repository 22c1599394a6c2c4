// The 128x4 block layout of scale factors. One atom, 512 bytes, holds the scales of 128 rows for 4 neighbouring blocks
// along k: 128 words, a word the four scales of one row. Word w belongs to row w / 4 + 32 (w % 4), so that the 16 bytes
// at w = 4 r are the scales of rows r, r + 32, r + 64 and r + 96.
#pragma once
#include <stdint.h>

namespace scale_layout {

constexpr int ATOM_ROWS = 128;
constexpr int ATOM_WORDS = 128;

// Word of a row within its atom. Linear in the bits of the row: word(r ^ s) = word(r) ^ word(s).
__device__ __forceinline__ constexpr uint32_t word(uint32_t row) { return row % 32 * 4 | row / 32 % 4; }

// Reads the scales of one row and of those 32, 64, 96 after it: 1, 2 or 4 neighbouring words.
template <int kCount>
__device__ __forceinline__ void load(uint32_t* scales, const uint32_t* words) {
    static_assert(kCount == 1 || kCount == 2 || kCount == 4, "an atom row is four words");
    if constexpr (kCount == 1) {
        scales[0] = words[0];
    } else if constexpr (kCount == 2) {
        const uint2 vector = *reinterpret_cast<const uint2*>(words);
        scales[0] = vector.x, scales[1] = vector.y;
    } else {
        const uint4 vector = *reinterpret_cast<const uint4*>(words);
        scales[0] = vector.x, scales[1] = vector.y, scales[2] = vector.z, scales[3] = vector.w;
    }
}

}  // namespace scale_layout
