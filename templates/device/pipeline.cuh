// A ring of shared-memory stages: position and parity, advanced alike by the producer and every consumer.
#pragma once
#include <stdint.h>

template <int kNumStages>
struct PipelineState {
    int stage = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == kNumStages) {
            stage = 0;
            parity ^= 1;
        }
    }
};
