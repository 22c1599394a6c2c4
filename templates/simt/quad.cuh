// What four lanes make together.
#pragma once
#include <stdint.h>

// A word from the bytes of four threads kStride apart, the first in its lowest byte, in each of the four; those of an
// aligned group of 4 * kStride threads. All lanes of the warp call it.
template <int kStride = 1>
__device__ __forceinline__ uint32_t gather_quad(uint32_t byte) {
    uint32_t word = byte << 8 * (threadIdx.x / kStride % 4);
    word |= __shfl_xor_sync(0xFFFFFFFF, word, kStride);
    return word | __shfl_xor_sync(0xFFFFFFFF, word, 2 * kStride);
}
