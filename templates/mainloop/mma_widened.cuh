// Main loop of sm_12x: rows of bf16, widened in the registers that mma.sync reads, by weights in tf32.
#pragma once
#include <stdint.h>

#include "mainloop/widened_rows.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/mma_sync.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

template <class Config>
struct MmaWidened : WidenedRows<Config> {
    using Base = WidenedRows<Config>;
    using typename Base::Accumulators, typename Base::Fragment, typename Base::Storage;
    static constexpr int kNumStages = Base::kNumStages, BLOCK_K = Base::BLOCK_K;
    static constexpr int kColumnTiles = Base::Slots::kFours;

    // A warp that multiplies.
    class Multiplier {
    public:
        __device__ __forceinline__ explicit Multiplier(Storage& shared) : shared_(shared) {
            const uint32_t lane = threadIdx.x % 32;  // addresses a row of columns 0-7 (lanes 0-15) or 8-15, four of its k
            weights_ = ldmatrix::swizzled<Base::ROW_BYTES>(lane / 16 * 8 + lane % 8, lane / 8 % 2 * 16);
        }

        // Adds to the accumulators.
        __device__ __forceinline__ void multiply(Accumulators& accumulators, const schedule::Tile& tile) {
            if (tile.num_rows <= Base::Slots::first_token(warp_index(), 0)) {
                Base::skip(shared_, ring_, tile);
                return;
            }
            rows_.begin();
            for (int k = tile.k_begin; k < tile.k_end; k += BLOCK_K) {
                mbarrier::wait(&shared_.full[ring_.stage], ring_.parity);
#pragma unroll
                for (int step = 0; step < Base::kSteps; ++step) multiply_step(accumulators, step);
                Base::release(shared_, ring_.stage);
                ring_.advance();
            }
            rows_.give_squares(accumulators);
        }

    private:
        __device__ __forceinline__ void multiply_step(Accumulators& accumulators, int step) {
            Fragment rows;
            rows_.load(rows, shared_.tokens[ring_.stage], step);
            const uint32_t panel =
                mbarrier::shared_address(shared_.weights[ring_.stage][step / Base::kPanelSteps]) +
                (weights_ ^ ldmatrix::swizzled<Base::ROW_BYTES>(0, step % Base::kPanelSteps * 32));
#pragma unroll
            for (int tile = 0; tile < kColumnTiles; tile += 2) {
                uint32_t weights[2][2];
                ldmatrix::x4(weights[0], weights[1], panel + tile * 8 * Base::ROW_BYTES);
                mma_sync::tf32(accumulators[0][tile], rows, weights[0]);
                mma_sync::tf32(accumulators[0][tile + 1], rows, weights[1]);
            }
        }

        Storage& shared_;
        uint32_t weights_;
        typename Base::Rows rows_;
        RingState<kNumStages> ring_;
    };
};

}  // namespace mainloop
