// Descriptors of wgmma operands whose rows have 32, 64 or 128 bytes (PTX ISA 9.0, section 9.7.15.5.1).
#pragma once
#include <stdint.h>

#include "ptx/mbarrier.cuh"

namespace wgmma {

// Of a K-major operand in rows of kRowBytes, as TMA writes them with a swizzle of as many bytes: 8 rows are 8 * kRowBytes
// apart, and the first row is where the swizzle begins.
template <int kRowBytes>
__device__ __forceinline__ uint64_t descriptor_of_rows(const void* rows) {
    static_assert(kRowBytes == 32 || kRowBytes == 64 || kRowBytes == 128, "the swizzle spans a row");
    constexpr uint64_t kSwizzle = uint64_t{kRowBytes == 128 ? 1 : kRowBytes == 64 ? 2 : 3} << 62;
    constexpr uint64_t kGroupStride = uint64_t{8 * kRowBytes >> 4} << 32, kLeading = uint64_t{1} << 16;
    return kSwizzle | kGroupStride | kLeading | ((mbarrier::shared_address(rows) & 0x3FFFF) >> 4);
}

}  // namespace wgmma
