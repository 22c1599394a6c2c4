// Tensor memory accelerator: bulk tensor copies (PTX ISA 9.0, section 9.7.9.25).
#pragma once
#include <stdint.h>

#include "ptx/mbarrier.cuh"

// A box lands in this CTA's shared memory, said in the form that the target has: `.shared::cta` needs sm_100, and on
// sm_12x ptxas guards `.shared::cluster` with a call, which costs a stack frame.
#if __CUDA_ARCH__ >= 1200
#define TMA_DESTINATION ".shared::cta"
#else
#define TMA_DESTINATION ".shared::cluster"
#endif

namespace tma {

// The 128 opaque bytes that the host encodes; a kernel takes it as `const __grid_constant__ TensorMap`.
struct alignas(64) TensorMap {
    uint8_t bytes[128];
};

__device__ __forceinline__ void prefetch(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ __forceinline__ void load_1d(uint32_t destination, const TensorMap* map, mbarrier::Barrier* full, int x) {
    asm volatile(
        "cp.async.bulk.tensor.1d" TMA_DESTINATION ".global.tile.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%3}], [%2];" ::"r"(destination),
        "l"(map), "r"(mbarrier::shared_address(full)), "r"(x)
        : "memory");
}

__device__ __forceinline__ void load_2d(uint32_t destination, const TensorMap* map, mbarrier::Barrier* full, int x,
                                        int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d" TMA_DESTINATION ".global.tile.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%3, %4}], [%2];" ::"r"(destination),
        "l"(map), "r"(mbarrier::shared_address(full)), "r"(x), "r"(y)
        : "memory");
}

__device__ __forceinline__ void load_3d(uint32_t destination, const TensorMap* map, mbarrier::Barrier* full, int x, int y,
                                        int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d" TMA_DESTINATION ".global.tile.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(destination),
        "l"(map), "r"(mbarrier::shared_address(full)), "r"(x), "r"(y), "r"(z)
        : "memory");
}

// From shared memory, of which boxes in the map alone arrive. It is read until a wait for the group of the store is over.
__device__ __forceinline__ void store_2d(const TensorMap* map, const void* source, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
                 "r"(mbarrier::shared_address(source)), "r"(x), "r"(y)
                 : "memory");
}

__device__ __forceinline__ void store_3d(const TensorMap* map, const void* source, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
                 "r"(mbarrier::shared_address(source)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

// The same, added to what is there, as elements of the type that the map has.
__device__ __forceinline__ void add_2d(const TensorMap* map, const void* source, int x, int y) {
    asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
                 "r"(mbarrier::shared_address(source)), "r"(x), "r"(y)
                 : "memory");
}

__device__ __forceinline__ void add_3d(const TensorMap* map, const void* source, int x, int y, int z) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
        "r"(mbarrier::shared_address(source)), "r"(x), "r"(y), "r"(z)
        : "memory");
}

// Closes a group, of the stores of this thread so far.
__device__ __forceinline__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until all groups of this thread but the last kPending have been read.
template <int kPending>
__device__ __forceinline__ void wait_until_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// To a map in global memory, which one thread changes and uses.
__device__ __forceinline__ void copy(TensorMap* to, const TensorMap& from) {
#pragma unroll
    for (int i = 0; i < 8; ++i) reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(&from)[i];
}

// The map of a matrix of as many rows at `data`, each `pitch` elements of one byte. No load by the map may be on its way.
__device__ __forceinline__ void change(TensorMap* map, const void* data, int pitch) {
    asm volatile(
        "{\n.reg .u64 a;\ncvta.to.global.u64 a, %0;\n"
        "tensormap.replace.tile.global_address.global.b1024.b64 [a], %1;\n"
        "tensormap.replace.tile.global_dim.global.b1024.b32 [a], 0, %2;\n"
        "tensormap.replace.tile.global_stride.global.b1024.b64 [a], 0, %3;\n"
        "fence.proxy.tensormap::generic.release.gpu;\n"
        "fence.proxy.tensormap::generic.acquire.gpu [%0], 128;\n}\n" ::"l"(map),
        "l"(data), "r"(pitch), "l"(int64_t(pitch))
        : "memory");
}

}  // namespace tma

#undef TMA_DESTINATION
