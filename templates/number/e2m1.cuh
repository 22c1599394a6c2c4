// E2M1 to E4M3, which has all of its values.
#pragma once
#include <stdint.h>

#include "number/mx_table.cuh"

namespace e2m1 {

// 16 elements, two in a byte.
__device__ __forceinline__ uint4 to_e4m3(uint2 packed) {
    constexpr mx::Table table{0x3C383000, 0x4C484440};
    return make_uint4(table.elements(packed.x), table.elements(packed.x >> 16), table.elements(packed.y),
                      table.elements(packed.y >> 16));
}

}  // namespace e2m1
