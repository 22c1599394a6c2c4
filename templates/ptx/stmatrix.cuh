// stmatrix: 8x8 matrices of 16-bit elements from MMA fragments to shared memory (PTX ISA 9.0, section 9.7.14.5.16).
#pragma once
#include <stdint.h>

namespace stmatrix {

// Lane i gives the address of 16-byte row i % 8 of matrix i / 8. Lane 4 r + c has elements 2 c and 2 c + 1 of row r.
__device__ __forceinline__ void store(uint32_t address, const uint32_t (&registers)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(registers[0]),
                 "r"(registers[1]), "r"(registers[2]), "r"(registers[3])
                 : "memory");
}

// The same where lane 4 r + c has elements r of rows 2 c and 2 c + 1.
__device__ __forceinline__ void store_transposed(uint32_t address, const uint32_t (&registers)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(registers[0]), "r"(registers[1]), "r"(registers[2]), "r"(registers[3])
                 : "memory");
}
__device__ __forceinline__ void store_transposed(uint32_t address, const uint32_t (&registers)[2]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(registers[0]),
                 "r"(registers[1])
                 : "memory");
}

}  // namespace stmatrix
