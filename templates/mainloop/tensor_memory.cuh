// How a GEMM of sm_100 divides the 512 columns of tensor memory: two accumulators, then a ring of scales. Each part of
// 128 weights of a tile has its own columns of an accumulator, and its own scales.
#pragma once
#include <stdint.h>

#include "layout/scale_layout.cuh"
#include "ptx/tcgen05.cuh"

namespace mainloop {

template <class Config, int kWords>
struct TensorMemory {
    static constexpr int BLOCK_M = Config::BLOCK_M, kNumStages = Config::kNumStages;
    static constexpr int kParts = Config::BLOCK_N / tcgen05::kNumLanes;
    static constexpr int kScaleWords = kWords;  // of a row and a stage
    static constexpr int kTokenAtoms = (BLOCK_M + scale_layout::ATOM_ROWS - 1) / scale_layout::ATOM_ROWS;

    // A scale atom fills 4 columns. Nothing orders a copy after the products that read the columns it overwrites
    // (9.7.16.6.2 lists mma -> mma and copy -> mma only), so scales have a ring of their own. As long as the ring of
    // stages it needs no wait: the stage was only loaded again after the commit of those products.
    // Four words a row of tokens and weights in each stage of the widest tile would exceed the columns.
    static constexpr int kAtomColumns = 4;
    static constexpr int kWordColumns = kAtomColumns * (kParts + kTokenAtoms);
    static constexpr int kScaleColumns = kWordColumns * kScaleWords;
    static constexpr int kNumScaleBuffers = BLOCK_M <= 128 || kScaleWords < 4 ? kNumStages : 2;
    static constexpr int kFirstScaleColumn = tcgen05::kNumColumns - kNumScaleBuffers * kScaleColumns;
    static_assert(kNumStages % kNumScaleBuffers == 0, "a stage keeps its scale buffer");

    // Two accumulators of 256 columns and the scales exceed 512, so at BLOCK_M = 256 the accumulators overlap by
    // kOverlapColumns. The epilogue reads these first and then frees the other accumulator. Smaller tiles do not
    // overlap, and there a drained accumulator is itself free.
    static constexpr bool kOverlap = BLOCK_M > 128;
    static constexpr int kPartColumns = BLOCK_M < 32 ? 32 : BLOCK_M;
    static constexpr int kSecondAccumulator = kOverlap ? kFirstScaleColumn - BLOCK_M : kParts * kPartColumns;
    static constexpr int kOverlapColumns = kOverlap ? BLOCK_M - kSecondAccumulator : 0;
    static_assert(kParts == 1 || !kOverlap, "accumulators of several parts do not overlap");
    static_assert(kSecondAccumulator + (kParts - 1) * kPartColumns + BLOCK_M <= kFirstScaleColumn,
                  "accumulators and scales share 512 columns");

    // First column of the scales of a stage.
    __device__ __forceinline__ static uint32_t scales(int stage) {
        const int buffer = kNumScaleBuffers < kNumStages ? stage % kNumScaleBuffers : stage;
        return kFirstScaleColumn + buffer * kScaleColumns;
    }
};

}  // namespace mainloop
