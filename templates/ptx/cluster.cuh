// Clusters of CTAs and their shared memory (PTX ISA 9.0, sections 9.7.13.4, 9.7.9.12 and 9.7.13.15).
#pragma once
#include <stdint.h>

#include "ptx/mbarrier.cuh"

namespace cluster {

__device__ __forceinline__ uint32_t rank() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Of all threads of the cluster; whole warps call them, in turn. What was written before is seen behind it if it was
// fenced, as barriers are by mbarrier::fence_init().
__device__ __forceinline__ void arrive() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void wait() {
    __syncwarp();
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The place in the CTA `rank` of what is at `pointer` in this one.
__device__ __forceinline__ uint32_t place_in(uint32_t rank, const void* pointer) {
    uint32_t place;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(place) : "r"(mbarrier::shared_address(pointer)), "r"(rank));
    return place;
}

// Four values to a place of any CTA, whose barrier counts their 16 bytes when they are there.
__device__ __forceinline__ void store_async(uint32_t place, uint32_t barrier, float4 values) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(place),
                 "f"(values.x), "f"(values.y), "f"(values.z), "f"(values.w), "r"(barrier)
                 : "memory");
}

// On a barrier of any CTA, after what this thread has read. A release of the cluster's scope would wait for all memory.
__device__ __forceinline__ void arrive_on(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Waits for what other CTAs did before they arrived.
__device__ __forceinline__ void wait_on(mbarrier::Barrier* barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "WAIT:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra WAIT;\n"
        "}\n" ::"r"(mbarrier::shared_address(barrier)),
        "r"(parity)
        : "memory");
}

}  // namespace cluster
