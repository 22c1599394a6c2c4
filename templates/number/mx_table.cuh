// MXFP4 to E5M2 under a scale that four blocks have in common: each E2M1 value times the power of two by which its block's
// scale is below that one. A table of the eight magnitudes serves a block of a row.
#pragma once
#include <stdint.h>

namespace mx {

struct Table {
    uint32_t smaller, larger;  // 0, 0.5, 1, 1.5 and 2, 3, 4, 6, times the same power of two, in E5M2

    // The four E2M1 elements in the low half of a word.
    __device__ __forceinline__ uint32_t elements(uint32_t packed) const {
        const uint32_t magnitudes = __byte_perm(smaller, larger, packed & 0x7777u);
        const uint32_t signs = __byte_perm(packed << 4, packed, 0x5140);  // in the top bits
        return magnitudes | (signs & 0x80808080u);
    }
};

// Of the four UE8M0 scales in a word. 6 at the largest one becomes 1.5 * 2^15, so at a scale 2^26 below it 0.5 is the
// smallest normal number of E5M2; what is further below becomes 0.
class CommonScale {
public:
    __device__ __forceinline__ explicit CommonScale(uint32_t scales) {
        const uint32_t pairs = __vmaxu2(scales & 0x00FF00FF, scales >> 8 & 0x00FF00FF);
        const int largest = static_cast<int>(max(pairs & 0xFFFF, pairs >> 16));
        const int unit = max(largest - kLargestPower, 1);  // of UE8M0, so that it is a normal number
        value_ = __uint_as_float(largest == 0xFF ? 0x7FFFFFFF : unit << 23);
        smallest_ = unit - kLargestPower;
        origin_ = {0x3E3C3800u - unit * 0x04040400u, 0x46444240u - unit * 0x04040404u};
    }
    __device__ __forceinline__ float value() const { return value_; }

    // For a block with this scale.
    __device__ __forceinline__ Table table(int scale) const {
        if (scale < smallest_) return {0, 0};
        return {origin_.smaller + scale * 0x04040400u, origin_.larger + scale * 0x04040404u};
    }

private:
    static constexpr int kLargestPower = 13;

    float value_;
    int smallest_;  // scale whose elements are there
    Table origin_;  // for a scale of 0
};

}  // namespace mx
