// ldmatrix: 8x8 matrices of 16-bit elements from shared memory to MMA fragments (PTX ISA 9.0, section 9.7.14.5.15), and
// the addresses of rows that TMA stored with a swizzle.
#pragma once
#include <stdint.h>

namespace ldmatrix {

// Lane i gives the address of 16-byte row i % 8 of matrix i / 8. Lane 4 r + c receives bytes 4 c .. 4 c + 3 of row r.
__device__ __forceinline__ void x2(uint32_t (&registers)[2], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(registers[0]), "=r"(registers[1])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void x4(uint32_t (&first)[2], uint32_t (&second)[2], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(first[0]), "=r"(first[1]), "=r"(second[0]), "=r"(second[1])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void x4(uint32_t (&registers)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(address)
                 : "memory");
}

// The same transposed: lane 4 r + c receives elements 2 c and 2 c + 1 of column r.
__device__ __forceinline__ void x2_transposed(uint32_t (&registers)[2], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(registers[0]), "=r"(registers[1])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void x4_transposed(uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3,
                                              uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)
                 : "r"(address)
                 : "memory");
}

// Two 16x16 matrices of bytes, transposed: lane i gives the address of row i % 16 of matrix i / 16. Of each matrix lane
// 4 r + c receives bytes 4 c .. 4 c + 3 of column r, then of column r + 8.
__device__ __forceinline__ void x2_transposed_bytes(uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3,
                                                    uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m16n16.x2.trans.shared.b8 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)
                 : "r"(address)
                 : "memory");
}

// E2M1 as ldmatrix unpacks it becomes bytes as mma.sync reads them: an element lies in bits 2 to 5.
template <int kCount>
__device__ __forceinline__ void shift_e2m1(uint32_t (&registers)[kCount]) {
    for (uint32_t& elements : registers) elements <<= 2;
}

// The same as x2 and x4 of rows of 16 E2M1 elements in the first 8 of 16 bytes.
__device__ __forceinline__ void x2_of_e2m1(uint32_t (&registers)[2], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n16.x2.shared.b8x16.b4x16_p64 {%0, %1}, [%2];"
                 : "=r"(registers[0]), "=r"(registers[1])
                 : "r"(address)
                 : "memory");
    shift_e2m1(registers);
}

__device__ __forceinline__ void x4_of_e2m1(uint32_t (&first)[2], uint32_t (&second)[2], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n16.x4.shared.b8x16.b4x16_p64 {%0, %1, %2, %3}, [%4];"
                 : "=r"(first[0]), "=r"(first[1]), "=r"(second[0]), "=r"(second[1])
                 : "r"(address)
                 : "memory");
    shift_e2m1(first), shift_e2m1(second);
}

__device__ __forceinline__ void x4_of_e2m1(uint32_t (&registers)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n16.x4.shared.b8x16.b4x16_p64 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(address)
                 : "memory");
    shift_e2m1(registers);
}

// Offset of a byte of a row in a box that TMA stored with a swizzle as wide as the row (32, 64 or 128 bytes), from a base
// aligned to 1024 bytes. Linear in the bits of its arguments: swizzled(r ^ s, b ^ c) = swizzled(r, b) ^ swizzled(s, c).
template <int ROW_BYTES>
__device__ __forceinline__ constexpr uint32_t swizzled(uint32_t row, uint32_t byte) {
    static_assert(ROW_BYTES == 32 || ROW_BYTES == 64 || ROW_BYTES == 128, "16-byte chunks move within such a row");
    const uint32_t line = row * ROW_BYTES / 128;
    return row * ROW_BYTES ^ byte ^ line % (ROW_BYTES / 16) * 16;
}

}  // namespace ldmatrix
