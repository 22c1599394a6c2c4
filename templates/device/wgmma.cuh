// wgmma: asynchronous warpgroup matrix products (PTX ISA 9.0, section 9.7.15).
#pragma once
#include <stdint.h>

#include "device/mbarrier.cuh"

namespace wgmma {

// Orders this warpgroup's register accesses before its following wgmma.
__device__ __forceinline__ void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending of the committed groups are in flight.
template <int kPending>
__device__ __forceinline__ void wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Shared-memory matrix descriptor (section 9.7.15.5.1.2.2) of a K-major operand in rows of 128 bytes, 128-byte
// swizzle, 1024-byte aligned: 8-row groups are 1024 bytes apart. Along k it advances by the bytes >> 4.
__device__ __forceinline__ uint64_t descriptor_128b(const void* panel) {
    constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kGroupStride = uint64_t{1024 >> 4} << 32;
    constexpr uint64_t kLeading = uint64_t{1} << 16;
    return kSwizzle128 | kGroupStride | kLeading | ((mbarrier::shared_address(panel) & 0x3FFFF) >> 4);
}

#define WGMMA_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_F16(i) WGMMA_F4(i), WGMMA_F4(i + 4), WGMMA_F4(i + 8), WGMMA_F4(i + 12)
#define WGMMA_F64(i) WGMMA_F16(i), WGMMA_F16(i + 16), WGMMA_F16(i + 32), WGMMA_F16(i + 48)

#define WGMMA_R0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_R1 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_R2 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_R3 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_R4 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_R5 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_R6 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_R7 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// d[64 x kN] (+)= a[64 x 16] . b[kN x 16]^T: f16 operands, f32 accumulators, a in registers, b K-major in shared
// memory. d and a are distributed as in section 9.7.15.5.1.1. With accumulate false, d is overwritten.
template <int kN>
__device__ __forceinline__ void mma_f16(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate);

template <>
__device__ __forceinline__ void mma_f16<8>(float (&d)[4], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {" "%0, %1, %2, %3" "}, "
        "{%4, %5, %6, %7}, %8, p, 1, 1, 0;\n}\n"
        : WGMMA_F4(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

template <>
__device__ __forceinline__ void mma_f16<16>(float (&d)[8], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {" "%0, %1, %2, %3, %4, %5, %6, %7" "}, "
        "{%8, %9, %10, %11}, %12, p, 1, 1, 0;\n}\n"
        : WGMMA_F4(0), WGMMA_F4(4)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

template <>
__device__ __forceinline__ void mma_f16<32>(float (&d)[16], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {" WGMMA_R0 "}, "
        "{%16, %17, %18, %19}, %20, p, 1, 1, 0;\n}\n"
        : WGMMA_F16(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

template <>
__device__ __forceinline__ void mma_f16<64>(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" WGMMA_R0 ", " WGMMA_R1 "}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"
        : WGMMA_F16(0), WGMMA_F16(16)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

template <>
__device__ __forceinline__ void mma_f16<128>(float (&d)[64], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" WGMMA_R0 ", " WGMMA_R1 ", " WGMMA_R2 ", " WGMMA_R3 "}, "
        "{%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}\n"
        : WGMMA_F64(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

template <>
__device__ __forceinline__ void mma_f16<256>(float (&d)[128], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {" WGMMA_R0 ", " WGMMA_R1 ", " WGMMA_R2 ", " WGMMA_R3 ", "
        WGMMA_R4 ", " WGMMA_R5 ", " WGMMA_R6 ", " WGMMA_R7 "}, "
        "{%128, %129, %130, %131}, %132, p, 1, 1, 0;\n}\n"
        : WGMMA_F64(0), WGMMA_F64(64)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

#undef WGMMA_F4
#undef WGMMA_F16
#undef WGMMA_F64
#undef WGMMA_R0
#undef WGMMA_R1
#undef WGMMA_R2
#undef WGMMA_R3
#undef WGMMA_R4
#undef WGMMA_R5
#undef WGMMA_R6
#undef WGMMA_R7

}  // namespace wgmma
