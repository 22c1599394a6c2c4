// mma.sync with block scaling: warp-level tensor core instructions of sm_12x (PTX ISA 9.0, section 9.7.14.5.14).
#pragma once
#include <stdint.h>

namespace mma_sync {

// d += (a * scale_a) (b * scale_b): 16x8x64, E2M1 operands, one UE4M3 scale per 16 along k (NVFP4). With g = lane / 4:
// a: rows g and g + 8, b: column g, 8 neighbouring k a register; d: rows g and g + 8, columns 2 (lane % 4) and + 1.
// A scale register holds the four scales of one row: lane 4 g that of row g of a and of column g of b, lane 4 g + 1
// that of row g + 8 of a; the other lanes' are not read (selectors 0).
__device__ __forceinline__ void nvfp4_m16n8k64(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                               uint32_t scale_a, uint32_t scale_b) {
    asm(
        "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, %10, {0, 0}, %11, {0, 0};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(scale_a), "r"(scale_b));
}

}  // namespace mma_sync
