// Types of 16 bits, by the names that CUDA gives them, and what converts them. Braces, blanks and how pairs are passed
// are those of the toolkit's functions: the text of PTX shows the first two, and what the compiler makes of loops around
// a conversion depends on the last.
#pragma once
#include <stdint.h>

struct __half {
    uint16_t bits;

    __device__ __forceinline__ operator float() const {
        float value;
        asm("{  cvt.f32.f16 %0, %1;}\n" : "=f"(value) : "h"(bits));
        return value;
    }
};

struct __nv_bfloat16 {
    uint16_t bits;

    __device__ __forceinline__ operator float() const {
        float value;
        asm("{ cvt.f32.bf16 %0, %1;}\n" : "=f"(value) : "h"(bits));
        return value;
    }
};

// Past L1, like the toolkit's of other types.
__device__ __forceinline__ __nv_bfloat16 __ldcg(const __nv_bfloat16* place) {
    __nv_bfloat16 value;
    asm("ld.global.cg.b16 %0, [%1];" : "=h"(value.bits) : "l"(place));
    return value;
}

namespace halves {

// fp32 rounded to nearest even.
__device__ __forceinline__ __half to_f16(float value) {
    __half rounded;
    asm("{  cvt.rn.f16.f32 %0, %1;}\n" : "=h"(rounded.bits) : "f"(value));
    return rounded;
}
__device__ __forceinline__ __nv_bfloat16 to_bf16(float value) {
    __nv_bfloat16 rounded;
    asm("{  cvt.rn.bf16.f32 %0, %1;}\n" : "=h"(rounded.bits) : "f"(value));
    return rounded;
}

// Two f16 in a register, the first in the low half.
struct alignas(4) Pair {
    uint32_t bits;
    __device__ __inline__ Pair(const Pair& other) : bits(other.bits) {}  // so it is passed in memory
};
static __device__ __inline__ float2 widen(const Pair pair) {
    float low, high;
    asm("{.reg .f16 low,high;\n  mov.b32 {low,high},%1;\n  cvt.f32.f16 %0, low;}\n" : "=f"(low) : "r"(pair.bits));
    asm("{.reg .f16 low,high;\n  mov.b32 {low,high},%1;\n  cvt.f32.f16 %0, high;}\n" : "=f"(high) : "r"(pair.bits));
    return make_float2(low, high);
}
__device__ __forceinline__ float2 widen_f16x2(uint32_t pair) { return widen(*reinterpret_cast<const Pair*>(&pair)); }

}  // namespace halves
