// Main loop of sm_90: rows of bf16, widened in the registers that wgmma reads, by weights in tf32 in shared memory.
//
// Half a stage is one group of products. Fragments of the next half are filled while the ones of this half are read, and
// they are others: what was last read from them is waited for first.
#pragma once
#include <stdint.h>

#include "mainloop/widened_rows.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma_tf32.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

template <class Config>
struct WgmmaWidened : WidenedRows<Config> {
    using Base = WidenedRows<Config>;
    using typename Base::Accumulators, typename Base::Fragment, typename Base::Storage;
    static constexpr int kNumStages = Base::kNumStages, BLOCK_K = Base::BLOCK_K, BLOCK_N = Base::BLOCK_N;
    static constexpr int kSteps = Base::kPanelSteps;  // of half a stage, a panel of weights

    // The two warpgroups that multiply.
    class Multiplier {
    public:
        __device__ __forceinline__ explicit Multiplier(Storage& shared)
            : shared_(shared), weights_(wgmma::descriptor_128b(shared.weights[0])) {}

        // Adds to the accumulators.
        __device__ __forceinline__ void multiply(Accumulators& accumulators, const schedule::Tile& tile) {
            if (tile.num_rows <= Base::Slots::first_token(warp_index() / 4 * 4, 0)) {
                Base::skip(shared_, ring_, tile);
                return;
            }
            Fragment fragments[2][kSteps];
            rows_.begin();
            bool first = true;
            for (int k = tile.k_begin; k < tile.k_end; k += BLOCK_K) {
                mbarrier::wait(&shared_.full[ring_.stage], ring_.parity);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    wgmma::wait<1>();  // the products that read these fragments are over
                    if (half == 1 && !first) Base::release(shared_, ring_.previous());  // and those before
                    multiply_half(accumulators, fragments[half], half);
                }
                first = false;
                ring_.advance();
            }
            wgmma::wait<0>();
            wgmma::fence_values<BLOCK_N / 2>(accumulators[0][0]);
            Base::release(shared_, ring_.previous());
            rows_.give_squares(accumulators);
        }

    private:
        __device__ __forceinline__ void multiply_half(Accumulators& accumulators, Fragment (&fragments)[kSteps],
                                                      int half) {
#pragma unroll
            for (int step = 0; step < kSteps; ++step)
                rows_.load(fragments[step], shared_.tokens[ring_.stage], half * kSteps + step);
            const uint64_t weights = wgmma::advance(weights_, (2 * ring_.stage + half) * Base::PANEL_BYTES);
            wgmma::fence();
#pragma unroll
            for (int step = 0; step < kSteps; ++step)
                wgmma::mma_tf32<BLOCK_N>(accumulators[0][0], fragments[step], wgmma::advance(weights, step * 32), true);
            wgmma::commit();
        }

        Storage& shared_;
        const uint64_t weights_;
        typename Base::Rows rows_;
        RingState<kNumStages> ring_;
    };
};

}  // namespace mainloop
