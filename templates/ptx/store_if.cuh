// Stores of a thread that may have nothing to store: a predicate, where a branch would hold the warp up.
#pragma once
#include <stdint.h>

__device__ __forceinline__ void store_if(bool stores, void* place, float value) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %0, 0;\n@p st.global.f32 [%1], %2;\n}" ::"r"(int{stores}), "l"(place),
                 "f"(value)
                 : "memory");
}
__device__ __forceinline__ void store_if(bool stores, void* place, uint16_t value) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %0, 0;\n@p st.global.b16 [%1], %2;\n}" ::"r"(int{stores}), "l"(place),
                 "h"(value)
                 : "memory");
}
