// The fifth-generation tensor core of sm_100 and its tensor memory (PTX ISA 9.0, section 9.7.16).
//
// Tensor memory: 128 lanes x 512 columns of 32 bits; address = lane << 16 | column. A CTA computes on its own
// (cta_group::1); all tcgen05 instructions of a kernel name the same group.
#pragma once
#include <stdint.h>

#include "ptx/mbarrier.cuh"

namespace tcgen05 {

constexpr int kNumLanes = 128;
constexpr int kNumColumns = 512;

// Allocates columns and writes their address to shared memory; one converged warp. Blocks while another CTA of the
// SM holds them.
template <int kColumns>
__device__ __forceinline__ void allocate(uint32_t* address) {
    static_assert(kColumns >= 32 && kColumns <= kNumColumns && (kColumns & (kColumns - 1)) == 0,
                  "tensor memory is allocated in powers of two from 32 to 512 columns");
    asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], %1;" ::"r"(
                     mbarrier::shared_address(address)),
                 "n"(kColumns)
                 : "memory");
}

// No allocation may follow in this CTA; one converged warp.
__device__ __forceinline__ void relinquish_allocation() {
    asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;");
}

// Frees what allocate() gave; required before the CTA exits; one converged warp.
template <int kColumns>
__device__ __forceinline__ void free(uint32_t address) {
    asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, %1;" ::"r"(address), "n"(kColumns));
}

// Order this thread's tcgen05 operations against a barrier that it arrives at next, or has waited for.
__device__ __forceinline__ void fence_before_sync() { asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory"); }
__device__ __forceinline__ void fence_after_sync() { asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory"); }

// One arrival on `barrier` when all earlier mma and copy operations of this thread have completed.
__device__ __forceinline__ void commit(mbarrier::Barrier* barrier) {
    asm volatile("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(
                     mbarrier::shared_address(barrier))
                 : "memory");
}

// Shared-memory matrix descriptors (table 40) of a shared-memory address. Addresses and offsets are in units of 16
// bytes, so offset bytes further on is + (offset >> 4); bits 46-48 hold the constant 1; the base offset is 0, so a tile
// is aligned to the period of its swizzle.
constexpr uint32_t kAddressBits = 0x3FFFF;

// Rows of 128 bytes along K, 128-byte swizzle: 8 rows are 1024 bytes; the next step of K is 32 bytes further on.
// MN-major a row has 128 bytes of one k, the next step of K is as many rows further on, and the next 128 bytes of it
// are panel_bytes further on.
__device__ __forceinline__ uint64_t swizzle128_descriptor(uint32_t address, uint64_t panel_bytes = 0) {
    constexpr uint64_t kStride = 1024 >> 4, kSwizzle128 = 2;
    return kSwizzle128 << 61 | 1ull << 46 | kStride << 32 | panel_bytes >> 4 << 16 | address >> 4;
}

// Blocks of 32 rows of 16 bytes, contiguous, no swizzle: 8 rows are 128 bytes.
__device__ __forceinline__ uint64_t scale_descriptor(uint32_t address) {
    constexpr uint64_t kStride = 128 >> 4;
    return 1ull << 46 | kStride << 32 | address >> 4;
}

// 32 rows x 16 bytes of shared memory to 4 columns, the same 32 rows for each quarter of the lanes: one 512-byte block
// of the 128x4 scale layout becomes what mma expects (lane = row % 32, column = row / 32), without a shuffle.
__device__ __forceinline__ void copy_scales(uint32_t columns, uint64_t descriptor) {
    asm volatile("tcgen05.cp.cta_group::1.32x128b.warpx4 [%0], %1;" ::"r"(columns), "l"(descriptor) : "memory");
}

// Instruction descriptor of the block-scaled kinds (table 44): operands along K, M = 128.
template <class Operands>
__device__ __forceinline__ constexpr uint32_t block_scaled_descriptor(int n) {
    constexpr uint32_t kE2M1 = Operands::PACKED ? 1 : 5, kE4M3 = 0, kM = 128;
    constexpr uint32_t kA = Operands::WEIGHTS == decltype(Operands::WEIGHTS)::E2M1 ? kE2M1 : kE4M3;
    constexpr uint32_t kB = Operands::TOKENS == decltype(Operands::TOKENS)::E2M1 ? kE2M1 : kE4M3;
    return kM >> 7 << 27 | static_cast<uint32_t>(Operands::POWER_SCALES) << 23 |
           static_cast<uint32_t>(n) >> 3 << 17 | kB << 10 | kA << 7;
}

// The same of kind::f16 for bf16 (table 42), with sums in fp32.
__device__ __forceinline__ constexpr uint32_t bf16_descriptor(int n) {
    constexpr uint32_t kF32 = 1, kBf16 = 1, kM = 128;
    return kM >> 4 << 24 | static_cast<uint32_t>(n) >> 3 << 17 | kBf16 << 10 | kBf16 << 7 | kF32 << 4;
}

// The same of kind::tf32.
__device__ __forceinline__ constexpr uint32_t tf32_descriptor(int n) {
    constexpr uint32_t kF32 = 1, kTf32 = 2, kM = 128;
    return kM >> 4 << 24 | static_cast<uint32_t>(n) >> 3 << 17 | kTf32 << 10 | kTf32 << 7 | kF32 << 4;
}

// The fields of the others that say which operand is MN-major.
template <class Operands>
__device__ __forceinline__ constexpr uint32_t majors() {
    return static_cast<uint32_t>(Operands::TOKENS_MN_MAJOR) << 16 |
           static_cast<uint32_t>(Operands::WEIGHTS_MN_MAJOR) << 15;
}

// The fields of a block-scaled one that name the first byte of a word of scales.
__device__ __forceinline__ constexpr uint32_t scale_ids(uint32_t weights, uint32_t tokens) {
    return weights << 29 | tokens << 4;
}

#define BLOCK_SCALED_MMA(kind)                                                                               \
    asm volatile(                                                                                            \
        "{\n"                                                                                                \
        ".reg .pred accumulate;\n"                                                                           \
        "setp.ne.u32 accumulate, %6, 0;\n"                                                                   \
        "tcgen05.mma.cta_group::1.kind::" kind " [%0], %1, %2, %3, [%4], [%5], accumulate;\n"                \
        "}\n" ::"r"(d),                                                                                      \
        "l"(a), "l"(b), "r"(instruction), "r"(a_scale), "r"(b_scale), "r"(static_cast<uint32_t>(accumulate)) \
        : "memory")

// D[128 lanes, n columns] (+)= A[128, 32 bytes] . B[n, 32 bytes]^T in fp32; one thread issues it.
template <class Operands>
__device__ __forceinline__ void mma_block_scaled(uint32_t d, uint64_t a, uint64_t b, uint32_t instruction,
                                                 uint32_t a_scale, uint32_t b_scale, bool accumulate) {
    if constexpr (!Operands::PACKED) BLOCK_SCALED_MMA("mxf8f6f4.block_scale.block32");
    else if constexpr (Operands::POWER_SCALES) BLOCK_SCALED_MMA("mxf4.block_scale.block32");
    else BLOCK_SCALED_MMA("mxf4nvf4.block_scale.block16");
}

#undef BLOCK_SCALED_MMA

// The same of 16-bit elements without scales.
__device__ __forceinline__ void mma_f16(uint32_t d, uint64_t a, uint64_t b, uint32_t instruction, bool accumulate) {
    asm volatile(
        "{\n"
        ".reg .pred accumulate;\n"
        "setp.ne.u32 accumulate, %4, 0;\n"
        "tcgen05.mma.cta_group::1.kind::f16 [%0], %1, %2, %3, accumulate;\n"
        "}\n" ::"r"(d),
        "l"(a), "l"(b), "r"(instruction), "r"(static_cast<uint32_t>(accumulate))
        : "memory");
}

// The same of tf32, with A in tensor memory: 8 columns, those of the lanes of D.
__device__ __forceinline__ void mma_tf32(uint32_t d, uint32_t a, uint64_t b, uint32_t instruction, bool accumulate) {
    asm volatile(
        "{\n"
        ".reg .pred accumulate;\n"
        "setp.ne.u32 accumulate, %4, 0;\n"
        "tcgen05.mma.cta_group::1.kind::tf32 [%0], [%1], %2, %3, accumulate;\n"
        "}\n" ::"r"(d),
        "r"(a), "l"(b), "r"(instruction), "r"(static_cast<uint32_t>(accumulate))
        : "memory");
}

// Lane i of warp w reads lane 32 * (w % 4) + i of tensor memory, kCount consecutive columns. Asynchronous: the values
// are there after wait_loads().
template <int kCount>
__device__ __forceinline__ void load(uint32_t (&values)[kCount], uint32_t address);

template <>
__device__ __forceinline__ void load<8>(uint32_t (&v)[8], uint32_t address) {
    asm volatile("tcgen05.ld.sync.aligned.32x32b.x8.b32 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]), "=r"(v[4]), "=r"(v[5]), "=r"(v[6]), "=r"(v[7])
                 : "r"(address));
}

template <>
__device__ __forceinline__ void load<16>(uint32_t (&v)[16], uint32_t address) {
    asm volatile(
        "tcgen05.ld.sync.aligned.32x32b.x16.b32 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, [%16];"
        : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]), "=r"(v[4]), "=r"(v[5]), "=r"(v[6]), "=r"(v[7]), "=r"(v[8]),
          "=r"(v[9]), "=r"(v[10]), "=r"(v[11]), "=r"(v[12]), "=r"(v[13]), "=r"(v[14]), "=r"(v[15])
        : "r"(address));
}

// Waits for this thread's loads.
__device__ __forceinline__ void wait_loads() { asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory"); }

// The same way back: to be waited for before others are told.
__device__ __forceinline__ void store(uint32_t address, const uint32_t (&v)[16]) {
    asm volatile(
        "tcgen05.st.sync.aligned.32x32b.x16.b32 [%16], "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15};" ::"r"(v[0]),
        "r"(v[1]), "r"(v[2]), "r"(v[3]), "r"(v[4]), "r"(v[5]), "r"(v[6]), "r"(v[7]), "r"(v[8]), "r"(v[9]), "r"(v[10]),
        "r"(v[11]), "r"(v[12]), "r"(v[13]), "r"(v[14]), "r"(v[15]), "r"(address)
        : "memory");
}
__device__ __forceinline__ void wait_stores() { asm volatile("tcgen05.wait::st.sync.aligned;" ::: "memory"); }

}  // namespace tcgen05
