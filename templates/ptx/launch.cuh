// Programmatic dependent launch (PTX ISA 9.0, section 9.7.13.13) and warp-level odds and ends of every kernel.
#pragma once
#include <stdint.h>

// Blocks until the grids that this one depends on have completed and their writes are visible. Every thread that
// touches what the previous grid writes, or writes what it reads, calls it first or is told by one that did. A CTA that
// left without it would let dependents of this grid run before the work this grid waits for, so every CTA calls it,
// also one without work.
__device__ __forceinline__ void wait_for_previous_grid() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets the next grid of the stream start its own prologue; it waits for this one as above. Every kernel calls it after
// its own wait. So when a grid starts, all grids but the previous one have completed, and what those wrote may be read
// before the wait; past L1, which nothing has invalidated by then.
__device__ __forceinline__ void allow_next_grid() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// True in one lane of a converged warp.
__device__ __forceinline__ bool elect_one() {
    uint32_t elected;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "elect.sync _|p, 0xFFFFFFFF;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(elected));
    return elected != 0;
}

// Uniform warp index, so that the compiler sees role dispatch as uniform.
__device__ __forceinline__ int warp_index() { return __shfl_sync(0xFFFFFFFF, threadIdx.x / 32, 0); }

// threadIdx.x read anew: what is computed from it does not occupy registers through the loop before.
__device__ __forceinline__ int thread_index_again() {
    int index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    return index;
}

// Like __syncthreads(), of some warps of the CTA that have kNumThreads together.
template <int kNumThreads>
__device__ __forceinline__ void barrier_of() {
    asm volatile("barrier.cta.sync 1, %0;" ::"n"(kNumThreads) : "memory");
}
// By another barrier than 1.
template <int kNumThreads>
__device__ __forceinline__ void barrier_of(int number) {
    asm volatile("barrier.cta.sync %0, %1;" ::"r"(number), "n"(kNumThreads) : "memory");
}
