// tcgen05 of a CTA pair (cta_group::2): two CTAs of a cluster whose ranks differ in the last bit compute one product. A
// has its rows, B its columns, half in the shared memory of each; each has the sums of its own rows, and scales of all
// columns, in its tensor memory. One thread of the CTA of even rank issues for both.
#pragma once
#include <stdint.h>

#include "ptx/mbarrier.cuh"
#include "ptx/tcgen05.cuh"

namespace tcgen05 {
namespace pair {

constexpr int kNumCtas = 2;

// As those of one CTA, by one warp of each; what one has freed, the other may no longer use.
template <int kColumns>
__device__ __forceinline__ void allocate(uint32_t* address) {
    static_assert(kColumns >= 32 && kColumns <= kNumColumns && (kColumns & (kColumns - 1)) == 0,
                  "tensor memory is allocated in powers of two from 32 to 512 columns");
    asm volatile("tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [%0], %1;" ::"r"(
                     mbarrier::shared_address(address)),
                 "n"(kColumns)
                 : "memory");
}
__device__ __forceinline__ void relinquish_allocation() {
    asm volatile("tcgen05.relinquish_alloc_permit.cta_group::2.sync.aligned;");
}
template <int kColumns>
__device__ __forceinline__ void free(uint32_t address) {
    asm volatile("tcgen05.dealloc.cta_group::2.sync.aligned.b32 %0, %1;" ::"r"(address), "n"(kColumns));
}

// One arrival on the barrier at this place in each CTA of a cluster of one pair.
__device__ __forceinline__ void commit(mbarrier::Barrier* barrier) {
    constexpr uint16_t kBoth = (1 << kNumCtas) - 1;
    asm volatile(
        "tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 [%0], %1;" ::"r"(
            mbarrier::shared_address(barrier)),
        "h"(kBoth)
        : "memory");
}

// One on the barrier of this CTA alone.
__device__ __forceinline__ void commit_here(uint32_t barrier) {
    asm volatile("tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(barrier)
                 : "memory");
}

// Each CTA copies from its own shared memory, by the one descriptor.
__device__ __forceinline__ void copy_scales(uint32_t columns, uint64_t descriptor) {
    asm volatile("tcgen05.cp.cta_group::2.32x128b.warpx4 [%0], %1;" ::"r"(columns), "l"(descriptor) : "memory");
}

// An instruction descriptor of either form, of twice the rows.
__device__ __forceinline__ constexpr uint32_t of_both(uint32_t instruction) {
    constexpr uint32_t kM = 128;
    return instruction + (kM >> 4 << 24);
}

#define BLOCK_SCALED_MMA(kind)                                                                               \
    asm volatile(                                                                                            \
        "{\n"                                                                                                \
        ".reg .pred accumulate;\n"                                                                           \
        "setp.ne.u32 accumulate, %6, 0;\n"                                                                   \
        "tcgen05.mma.cta_group::2.kind::" kind " [%0], %1, %2, %3, [%4], [%5], accumulate;\n"                \
        "}\n" ::"r"(d),                                                                                      \
        "l"(a), "l"(b), "r"(instruction), "r"(a_scale), "r"(b_scale), "r"(static_cast<uint32_t>(accumulate)) \
        : "memory")

// D[256 rows, n columns] (+)= A[256, 32 bytes] . B[n, 32 bytes]^T in fp32.
template <class Operands>
__device__ __forceinline__ void mma_block_scaled(uint32_t d, uint64_t a, uint64_t b, uint32_t instruction,
                                                 uint32_t a_scale, uint32_t b_scale, bool accumulate) {
    if constexpr (!Operands::PACKED) BLOCK_SCALED_MMA("mxf8f6f4.block_scale.block32");
    else if constexpr (Operands::POWER_SCALES) BLOCK_SCALED_MMA("mxf4.block_scale.block32");
    else BLOCK_SCALED_MMA("mxf4nvf4.block_scale.block16");
}

#undef BLOCK_SCALED_MMA

}  // namespace pair
}  // namespace tcgen05
