// mma.sync: warp-level tensor core instructions of sm_12x (PTX ISA 9.0, sections 9.7.14.5.8 and 9.7.14.5.14).
#pragma once
#include <stdint.h>

namespace mma_sync {

// byte_a, byte_b: the selectors, numbers or the operands %12 and %13 that follow.
#define BLOCK_SCALED_MMA(form, byte_a, byte_b, ...)                                                               \
    asm("mma.sync.aligned." form " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, %10, {" byte_a \
        ", 0}, %11, {" byte_b ", 0};"                                                                             \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                          \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(scale_a), "r"(scale_b), ##__VA_ARGS__)
#define BLOCK_SCALED_MMA_OF_BYTES(types)                                                                         \
    BLOCK_SCALED_MMA("m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32." types ".f32.ue8m0", "%12", \
                     "%13", "h"(byte_a), "h"(byte_b))

// d += (a * scale_a) (b * scale_b): 16x8 and 32 bytes along k. With g = lane / 4: a: rows g and g + 8, b: column g, 4
// neighbouring bytes of k a register; d: rows g and g + 8, columns 2 (lane % 4) and + 1. A scale register holds four
// scales of one row, of which the instruction takes those from byte_a or byte_b on, constants: lane 4 g that of row g
// of a and of column g of b, lane 4 g + 1 that of row g + 8 of a; the other lanes' are not read (thread selectors 0).
template <class Operands>
__device__ __forceinline__ void block_scaled(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                             uint32_t scale_a, uint32_t scale_b, uint16_t byte_a, uint16_t byte_b) {
    if constexpr (Operands::UNPACKED_WEIGHTS)
        BLOCK_SCALED_MMA_OF_BYTES("e2m1.e4m3");
    else if constexpr (Operands::UNPACKED_TOKENS)
        BLOCK_SCALED_MMA_OF_BYTES("e4m3.e2m1");
    else if constexpr (!Operands::PACKED)
        BLOCK_SCALED_MMA_OF_BYTES("e4m3.e4m3");
    else if constexpr (Operands::POWER_SCALES)
        BLOCK_SCALED_MMA("m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0", "%12",
                         "%13", "h"(byte_a), "h"(byte_b));
    else
        BLOCK_SCALED_MMA("m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3", "0", "0");
}

#undef BLOCK_SCALED_MMA_OF_BYTES
#undef BLOCK_SCALED_MMA

// The same without scales: two bf16 a register.
__device__ __forceinline__ void bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9},"
        " {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same of tf32, 8 along k: a register has one element, k = lane % 4, or 4 more in the second half of a and of b.
__device__ __forceinline__ void tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9},"
        " {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace mma_sync
