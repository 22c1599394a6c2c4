// E2M1 and UE4M3 to half precision, exactly.
//
// An E2M1 nibble s:e1:e0:m in bits 15, 11, 10, 9 of a half is the value times 2^-14 (bias 1 against 15, subnormals
// included). Times a UE4M3 scale it is a multiple of 2^-24 with at most six significant bits: still exact. The
// factor 2^-14 of each operand is taken out of the sums, see kDescale.
#pragma once
#include <stdint.h>

namespace fp4 {

// 2^14 * 2^14, for sums of products. They are far from both ends of fp32, so that this product is exact, and a large
// alpha times this would overflow where the result does not.
constexpr float kDescale = 268435456.0f;

// Order of the eight elements of a packed word in the four registers of `expand`, low half first.
// Any order will do as long as both operands of a product use the same one along k.
//   h[0] = (0, 2)   h[1] = (4, 6)   h[2] = (1, 3)   h[3] = (5, 7)
__device__ __forceinline__ void expand(uint32_t packed, uint32_t (&h)[4]) {
    const uint32_t even = ((packed << 4) & 0x80808080u) | ((packed << 1) & 0x0E0E0E0Eu);
    const uint32_t odd = (packed & 0x80808080u) | ((packed >> 3) & 0x0E0E0E0Eu);
    h[0] = __byte_perm(even, 0, 0x1404);  // each byte becomes the high byte of a half
    h[1] = __byte_perm(even, 0, 0x3424);
    h[2] = __byte_perm(odd, 0, 0x1404);
    h[3] = __byte_perm(odd, 0, 0x3424);
}

// Two UE4M3 bytes to two halves; 0x7F is NaN, the top bit does not count.
__device__ __forceinline__ uint32_t scales_to_half2(uint32_t two_bytes) {
    uint32_t h;
    asm("{\n.reg .b16 b;\ncvt.u16.u32 b, %1;\ncvt.rn.f16x2.e4m3x2 %0, b;\n}\n" : "=r"(h) : "r"(two_bytes & 0x7F7Fu));
    return h;
}

__device__ __forceinline__ uint32_t broadcast_low(uint32_t h) { return __byte_perm(h, 0, 0x1010); }
__device__ __forceinline__ uint32_t broadcast_high(uint32_t h) { return __byte_perm(h, 0, 0x3232); }

__device__ __forceinline__ uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t product;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
}

}  // namespace fp4
