// Numbers of which the compiler knows no bits: it takes them as they are, and does not make them anew in another way.
#pragma once
#include <stdint.h>

__device__ __forceinline__ uint32_t opaque_value(uint32_t value) {
    asm("" : "+r"(value));
    return value;
}
__device__ __forceinline__ uint64_t opaque_value(uint64_t value) {
    asm("" : "+l"(value));
    return value;
}
