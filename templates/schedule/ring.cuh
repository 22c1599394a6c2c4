// A ring of stages in shared memory: position and parity, advanced alike by who fills and who empties it.
#pragma once
#include <stdint.h>

template <int kNumStages>
struct RingState {
    int stage = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ int previous() const { return stage == 0 ? kNumStages - 1 : stage - 1; }

    __device__ __forceinline__ void advance() {
        if (++stage == kNumStages) {
            stage = 0;
            parity ^= 1;
        }
    }
    // By less than the whole ring.
    __device__ __forceinline__ void advance(int count) {
        stage += count;
        if (stage >= kNumStages) {
            stage -= kNumStages;
            parity ^= 1;
        }
    }
};
