// Products of E4M3 without scales in tensor memory, of operands whose rows have 32, 64 or 128 bytes (PTX ISA 9.0,
// section 9.7.16), and loads of 32 columns.
#pragma once
#include <stdint.h>

#include "ptx/mbarrier.cuh"
#include "ptx/tcgen05.cuh"

namespace tcgen05 {

// Shared-memory descriptor (table 40) of a K-major operand in rows of kRowBytes, as TMA writes them with a swizzle of
// as many bytes: 8 rows are 8 * kRowBytes apart. The next step of K is 32 bytes further on.
template <int kRowBytes>
__device__ __forceinline__ uint64_t descriptor_of_rows(const void* rows) {
    static_assert(kRowBytes == 32 || kRowBytes == 64 || kRowBytes == 128, "the swizzle spans a row");
    constexpr uint64_t kSwizzle = kRowBytes == 128 ? 2 : kRowBytes == 64 ? 4 : 6, kStride = 8 * kRowBytes >> 4;
    return kSwizzle << 61 | 1ull << 46 | kStride << 32 | mbarrier::shared_address(rows) >> 4;
}

// Instruction descriptor of kind::f8f6f4 (table 42) for E4M3, with sums in fp32, operands along K, M = 128.
__device__ __forceinline__ constexpr uint32_t e4m3_descriptor(int n) {
    constexpr uint32_t kF32 = 1, kE4M3 = 0, kM = 128;
    return kM >> 4 << 24 | static_cast<uint32_t>(n) >> 3 << 17 | kE4M3 << 10 | kE4M3 << 7 | kF32 << 4;
}

// D[128 lanes, n columns] (+)= A[128, 32 bytes] . B[n, 32 bytes]^T in fp32; one thread issues it.
__device__ __forceinline__ void mma_e4m3(uint32_t d, uint64_t a, uint64_t b, uint32_t instruction, bool accumulate) {
    asm volatile(
        "{\n"
        ".reg .pred accumulate;\n"
        "setp.ne.u32 accumulate, %4, 0;\n"
        "tcgen05.mma.cta_group::1.kind::f8f6f4 [%0], %1, %2, %3, accumulate;\n"
        "}\n" ::"r"(d),
        "l"(a), "l"(b), "r"(instruction), "r"(static_cast<uint32_t>(accumulate))
        : "memory");
}

template <>
__device__ __forceinline__ void load<32>(uint32_t (&v)[32], uint32_t address) {
    asm volatile(
        "tcgen05.ld.sync.aligned.32x32b.x32.b32 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, [%32];"
        : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]), "=r"(v[4]), "=r"(v[5]), "=r"(v[6]), "=r"(v[7]), "=r"(v[8]),
          "=r"(v[9]), "=r"(v[10]), "=r"(v[11]), "=r"(v[12]), "=r"(v[13]), "=r"(v[14]), "=r"(v[15]), "=r"(v[16]),
          "=r"(v[17]), "=r"(v[18]), "=r"(v[19]), "=r"(v[20]), "=r"(v[21]), "=r"(v[22]), "=r"(v[23]), "=r"(v[24]),
          "=r"(v[25]), "=r"(v[26]), "=r"(v[27]), "=r"(v[28]), "=r"(v[29]), "=r"(v[30]), "=r"(v[31])
        : "r"(address));
}

}  // namespace tcgen05
