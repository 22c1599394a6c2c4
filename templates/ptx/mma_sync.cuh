// mma.sync: warp-level tensor core instructions of sm_12x (PTX ISA 9.0, sections 9.7.14.5.8 and 9.7.14.5.14).
#pragma once
#include <stdint.h>

namespace mma_sync {

// byte: the selector, a number or the operand %12 that follows.
#define BLOCK_SCALED_MMA(form, byte, ...)                                                                         \
    asm("mma.sync.aligned." form " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, %10, {" byte   \
        ", 0}, %11, {" byte ", 0};"                                                                               \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                          \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(scale_a), "r"(scale_b), ##__VA_ARGS__)

// d += (a * scale_a) (b * scale_b): 16x8 and 32 bytes along k. With g = lane / 4: a: rows g and g + 8, b: column g, 4
// neighbouring bytes of k a register; d: rows g and g + 8, columns 2 (lane % 4) and + 1. A scale register holds four
// scales of one row, of which the instruction takes those from scale_byte on, a constant: lane 4 g that of row g of a
// and of column g of b, lane 4 g + 1 that of row g + 8 of a; the other lanes' are not read (thread selectors 0).
template <class Operands>
__device__ __forceinline__ void block_scaled(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                             uint32_t scale_a, uint32_t scale_b, uint16_t scale_byte) {
    if constexpr (Operands::UNPACKED_WEIGHTS)
        BLOCK_SCALED_MMA("m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32.e2m1.e4m3.f32.ue8m0", "%12",
                         "h"(scale_byte));
    else if constexpr (!Operands::PACKED)
        BLOCK_SCALED_MMA("m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32.e4m3.e4m3.f32.ue8m0", "%12",
                         "h"(scale_byte));
    else if constexpr (Operands::POWER_SCALES)
        BLOCK_SCALED_MMA("m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0", "%12",
                         "h"(scale_byte));
    else
        BLOCK_SCALED_MMA("m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3", "0");
}

#undef BLOCK_SCALED_MMA

// The same without scales: two bf16 a register.
__device__ __forceinline__ void bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9},"
        " {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace mma_sync
