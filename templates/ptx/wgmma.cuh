// wgmma: asynchronous warpgroup matrix products (PTX ISA 9.0, section 9.7.15).
#pragma once
#include <stdint.h>

#include "ptx/mbarrier.cuh"

namespace wgmma {

// Orders this warpgroup's register accesses before its following wgmma.
__device__ __forceinline__ void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending of the committed groups are in flight.
template <int kPending>
__device__ __forceinline__ void wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving values to other registers before the wait in front of this.
template <int kCount>
__device__ __forceinline__ void fence_values(float* values) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

// Values that are anything, and not what registers held before.
template <int kCount>
__device__ __forceinline__ void define_values(float* values) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "=f"(values[i]));
}

// Shared-memory matrix descriptor (section 9.7.15.5.1.2.2) of an operand in rows of 128 bytes, 128-byte swizzle,
// 1024-byte aligned: 8-row groups are 1024 bytes apart. A row is of K, or, where M or N is the contiguous dimension, 64 of
// these; then the next 64 are 8192 bytes further.
__device__ __forceinline__ uint64_t descriptor_128b(const void* panel, bool mn_major = false) {
    constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kGroupStride = uint64_t{1024 >> 4} << 32;
    const uint64_t leading = uint64_t{mn_major ? 8192u >> 4 : 1u} << 16;
    return kSwizzle128 | kGroupStride | leading | ((mbarrier::shared_address(panel) & 0x3FFFF) >> 4);
}

// The operand so many bytes further. Nothing is carried out of an address, so the upper half of a descriptor stays a
// constant, and the sum is one of 32 bits.
__device__ __forceinline__ uint64_t advance(uint64_t descriptor, int bytes) {
    return descriptor >> 32 << 32 | static_cast<uint32_t>(static_cast<uint32_t>(descriptor) + (bytes >> 4));
}

// d[64 x kN] (+)= a[64 x 16] . b[kN x 16]^T: f16 operands, f32 accumulators, a in registers, b K-major in shared
// memory. d and a are distributed as in section 9.7.15.5.1.1: kN / 2 values of d a thread. With accumulate false, d is
// overwritten.
template <int kN>
__device__ __forceinline__ void mma_f16(float* d, const uint32_t (&a)[4], uint64_t b, bool accumulate);

// Inline PTX knows its operands by number: WGMMA_D<n> and WGMMA_R<n> are the first n of d and their numbers; those of
// a, b and accumulate follow.
#define WGMMA_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_D4 WGMMA_4(0)
#define WGMMA_R4 "%0, %1, %2, %3"
#define WGMMA_D8 WGMMA_D4, WGMMA_4(4)
#define WGMMA_R8 WGMMA_R4 ", %4, %5, %6, %7"
#define WGMMA_D12 WGMMA_D8, WGMMA_4(8)
#define WGMMA_R12 WGMMA_R8 ", %8, %9, %10, %11"
#define WGMMA_D16 WGMMA_D12, WGMMA_4(12)
#define WGMMA_R16 WGMMA_R12 ", %12, %13, %14, %15"
#define WGMMA_D20 WGMMA_D16, WGMMA_4(16)
#define WGMMA_R20 WGMMA_R16 ", %16, %17, %18, %19"
#define WGMMA_D24 WGMMA_D20, WGMMA_4(20)
#define WGMMA_R24 WGMMA_R20 ", %20, %21, %22, %23"
#define WGMMA_D28 WGMMA_D24, WGMMA_4(24)
#define WGMMA_R28 WGMMA_R24 ", %24, %25, %26, %27"
#define WGMMA_D32 WGMMA_D28, WGMMA_4(28)
#define WGMMA_R32 WGMMA_R28 ", %28, %29, %30, %31"
#define WGMMA_D36 WGMMA_D32, WGMMA_4(32)
#define WGMMA_R36 WGMMA_R32 ", %32, %33, %34, %35"
#define WGMMA_D40 WGMMA_D36, WGMMA_4(36)
#define WGMMA_R40 WGMMA_R36 ", %36, %37, %38, %39"
#define WGMMA_D44 WGMMA_D40, WGMMA_4(40)
#define WGMMA_R44 WGMMA_R40 ", %40, %41, %42, %43"
#define WGMMA_D48 WGMMA_D44, WGMMA_4(44)
#define WGMMA_R48 WGMMA_R44 ", %44, %45, %46, %47"
#define WGMMA_D52 WGMMA_D48, WGMMA_4(48)
#define WGMMA_R52 WGMMA_R48 ", %48, %49, %50, %51"
#define WGMMA_D56 WGMMA_D52, WGMMA_4(52)
#define WGMMA_R56 WGMMA_R52 ", %52, %53, %54, %55"
#define WGMMA_D60 WGMMA_D56, WGMMA_4(56)
#define WGMMA_R60 WGMMA_R56 ", %56, %57, %58, %59"
#define WGMMA_D64 WGMMA_D60, WGMMA_4(60)
#define WGMMA_R64 WGMMA_R60 ", %60, %61, %62, %63"
#define WGMMA_D68 WGMMA_D64, WGMMA_4(64)
#define WGMMA_R68 WGMMA_R64 ", %64, %65, %66, %67"
#define WGMMA_D72 WGMMA_D68, WGMMA_4(68)
#define WGMMA_R72 WGMMA_R68 ", %68, %69, %70, %71"
#define WGMMA_D76 WGMMA_D72, WGMMA_4(72)
#define WGMMA_R76 WGMMA_R72 ", %72, %73, %74, %75"
#define WGMMA_D80 WGMMA_D76, WGMMA_4(76)
#define WGMMA_R80 WGMMA_R76 ", %76, %77, %78, %79"
#define WGMMA_D84 WGMMA_D80, WGMMA_4(80)
#define WGMMA_R84 WGMMA_R80 ", %80, %81, %82, %83"
#define WGMMA_D88 WGMMA_D84, WGMMA_4(84)
#define WGMMA_R88 WGMMA_R84 ", %84, %85, %86, %87"
#define WGMMA_D92 WGMMA_D88, WGMMA_4(88)
#define WGMMA_R92 WGMMA_R88 ", %88, %89, %90, %91"
#define WGMMA_D96 WGMMA_D92, WGMMA_4(92)
#define WGMMA_R96 WGMMA_R92 ", %92, %93, %94, %95"
#define WGMMA_D100 WGMMA_D96, WGMMA_4(96)
#define WGMMA_R100 WGMMA_R96 ", %96, %97, %98, %99"
#define WGMMA_D104 WGMMA_D100, WGMMA_4(100)
#define WGMMA_R104 WGMMA_R100 ", %100, %101, %102, %103"
#define WGMMA_D108 WGMMA_D104, WGMMA_4(104)
#define WGMMA_R108 WGMMA_R104 ", %104, %105, %106, %107"
#define WGMMA_D112 WGMMA_D108, WGMMA_4(108)
#define WGMMA_R112 WGMMA_R108 ", %108, %109, %110, %111"
#define WGMMA_D116 WGMMA_D112, WGMMA_4(112)
#define WGMMA_R116 WGMMA_R112 ", %112, %113, %114, %115"
#define WGMMA_D120 WGMMA_D116, WGMMA_4(116)
#define WGMMA_R120 WGMMA_R116 ", %116, %117, %118, %119"
#define WGMMA_D124 WGMMA_D120, WGMMA_4(120)
#define WGMMA_R124 WGMMA_R120 ", %120, %121, %122, %123"
#define WGMMA_D128 WGMMA_D124, WGMMA_4(124)
#define WGMMA_R128 WGMMA_R124 ", %124, %125, %126, %127"

// function<n>(): the instruction of these types with its rows in registers; flags are what follows the signs of both.
#define WGMMA_OF_REGISTERS(function, types, flags, n, values, a_numbers, b_number, p_number)                        \
    template <>                                                                                                     \
    __device__ __forceinline__ void function<n>(float* d, const uint32_t (&a)[4], uint64_t b, bool accumulate) {    \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p_number                                                   \
                     ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n types " {" WGMMA_R##values "}, {" a_numbers       \
                     "}, " b_number ", p, 1, 1" flags ";\n}\n"                                                      \
                     : WGMMA_D##values                                                                              \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));      \
    }
#define WGMMA_F16(...) WGMMA_OF_REGISTERS(mma_f16, "k16.f32.f16.f16", ", 0", __VA_ARGS__)
WGMMA_F16(8, 4, "%4, %5, %6, %7", "%8", "%9")
WGMMA_F16(16, 8, "%8, %9, %10, %11", "%12", "%13")
WGMMA_F16(24, 12, "%12, %13, %14, %15", "%16", "%17")
WGMMA_F16(32, 16, "%16, %17, %18, %19", "%20", "%21")
WGMMA_F16(40, 20, "%20, %21, %22, %23", "%24", "%25")
WGMMA_F16(48, 24, "%24, %25, %26, %27", "%28", "%29")
WGMMA_F16(56, 28, "%28, %29, %30, %31", "%32", "%33")
WGMMA_F16(64, 32, "%32, %33, %34, %35", "%36", "%37")
WGMMA_F16(72, 36, "%36, %37, %38, %39", "%40", "%41")
WGMMA_F16(80, 40, "%40, %41, %42, %43", "%44", "%45")
WGMMA_F16(88, 44, "%44, %45, %46, %47", "%48", "%49")
WGMMA_F16(96, 48, "%48, %49, %50, %51", "%52", "%53")
WGMMA_F16(104, 52, "%52, %53, %54, %55", "%56", "%57")
WGMMA_F16(112, 56, "%56, %57, %58, %59", "%60", "%61")
WGMMA_F16(120, 60, "%60, %61, %62, %63", "%64", "%65")
WGMMA_F16(128, 64, "%64, %65, %66, %67", "%68", "%69")
WGMMA_F16(136, 68, "%68, %69, %70, %71", "%72", "%73")
WGMMA_F16(144, 72, "%72, %73, %74, %75", "%76", "%77")
WGMMA_F16(152, 76, "%76, %77, %78, %79", "%80", "%81")
WGMMA_F16(160, 80, "%80, %81, %82, %83", "%84", "%85")
WGMMA_F16(168, 84, "%84, %85, %86, %87", "%88", "%89")
WGMMA_F16(176, 88, "%88, %89, %90, %91", "%92", "%93")
WGMMA_F16(184, 92, "%92, %93, %94, %95", "%96", "%97")
WGMMA_F16(192, 96, "%96, %97, %98, %99", "%100", "%101")
WGMMA_F16(200, 100, "%100, %101, %102, %103", "%104", "%105")
WGMMA_F16(208, 104, "%104, %105, %106, %107", "%108", "%109")
WGMMA_F16(216, 108, "%108, %109, %110, %111", "%112", "%113")
WGMMA_F16(224, 112, "%112, %113, %114, %115", "%116", "%117")
WGMMA_F16(232, 116, "%116, %117, %118, %119", "%120", "%121")
WGMMA_F16(240, 120, "%120, %121, %122, %123", "%124", "%125")
WGMMA_F16(248, 124, "%124, %125, %126, %127", "%128", "%129")
WGMMA_F16(256, 128, "%128, %129, %130, %131", "%132", "%133")
#undef WGMMA_F16

}  // namespace wgmma
