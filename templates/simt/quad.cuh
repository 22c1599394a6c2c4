// What four neighbouring lanes make together.
#pragma once
#include <stdint.h>

// A word from the byte of each thread of an aligned quad, the first in its lowest byte; all lanes of the warp call it.
__device__ __forceinline__ uint32_t gather_quad(uint32_t byte) {
    uint32_t word = byte << 8 * (threadIdx.x % 4);
    word |= __shfl_xor_sync(0xFFFFFFFF, word, 1);
    return word | __shfl_xor_sync(0xFFFFFFFF, word, 2);
}
