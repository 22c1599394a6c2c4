// Main loop of sm_100: rows of bf16, widened into tensor memory, by weights in tf32 in shared memory.
//
// A lane has a row: it reads the row's elements of a stage, and stores them to its lane of tensor memory, where the
// instruction reads them. There is a ring of buffers for them, of which a stage has the same one each time. One lane of
// the first warp issues the products of a stage when all four warps have stored theirs.
#pragma once
#include <stdint.h>

#include "layout/row_slots.cuh"
#include "mainloop/widened_stages.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tcgen05.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

template <class Config>
struct UmmaWidened : WidenedStages<Config> {
    using Base = WidenedStages<Config>;
    using Slots = layout::RowLanes<Config::BLOCK_N>;
    using Accumulators = typename Slots::Accumulators;
    static constexpr int kNumStages = Base::kNumStages, BLOCK_K = Base::BLOCK_K, BLOCK_N = Base::BLOCK_N;
    static constexpr int kNumThreads = 32 * Slots::kNumWarps;
    static constexpr int kNumBuffers = kNumStages <= 4 ? kNumStages : kNumStages / 2;
    static constexpr int kFirstBuffer = 128;  // column; sums are in front of it
    static_assert(kNumStages % kNumBuffers == 0, "a stage keeps its buffer");
    static_assert(kFirstBuffer + kNumBuffers * BLOCK_K <= tcgen05::kNumColumns, "sums and buffers share 512 columns");

    struct Storage : Base::Operands {
        mbarrier::Barrier full[kNumStages];   // TMA has written the stage
        mbarrier::Barrier ready[kNumStages];  // its rows are in tensor memory
        mbarrier::Barrier empty[kNumStages];  // all rows have been read, and its products have completed
        mbarrier::Barrier sums;               // the products of a tile have
        uint32_t tensor_memory;
    };

    __device__ __forceinline__ static void init(Storage& shared) {
        for (int stage = 0; stage < kNumStages; ++stage) {
            mbarrier::init(&shared.full[stage], 1);
            mbarrier::init(&shared.ready[stage], kNumThreads);
            mbarrier::init(&shared.empty[stage], Slots::kNumWarps + 1);
        }
        mbarrier::init(&shared.sums, 1);
    }

    // The four warps that store the results; the first one owns tensor memory.
    class Multiplier {
    public:
        __device__ __forceinline__ explicit Multiplier(Storage& shared)
            : shared_(shared), warp_(warp_index()), row_(Slots::first_token(warp_, threadIdx.x % 32)) {
            if (warp_ == 0) {
                tcgen05::allocate<tcgen05::kNumColumns>(&shared.tensor_memory);
                tcgen05::relinquish_allocation();
                tcgen05::fence_before_sync();
            }
            barrier_of<kNumThreads>();
            tcgen05::fence_after_sync();
            own_lanes_ = shared.tensor_memory + (warp_ * 32 << 16);
        }

        // The last commits arrive on barriers of this CTA, which must still be there.
        __device__ __forceinline__ ~Multiplier() {
#pragma unroll 1
            for (int i = 0; i < kNumStages; ++i) {
                mbarrier::wait(&shared_.empty[ring_.stage], ring_.parity ^ 1);
                ring_.advance();
            }
            tcgen05::fence_before_sync();
            barrier_of<kNumThreads>();
            if (warp_ == 0) tcgen05::free<tcgen05::kNumColumns>(shared_.tensor_memory);
        }

        __device__ __forceinline__ void multiply(Accumulators& accumulators, const schedule::Tile& tile) {
            squares_[0] = squares_[1] = 0;
#pragma unroll 1
            for (int k = tile.k_begin; k < tile.k_end; k += BLOCK_K) {
                widen_stage();
                if (warp_ == 0) multiply_stage(k > tile.k_begin, k + BLOCK_K >= tile.k_end);
                ring_.advance();
            }
            mbarrier::wait(&shared_.sums, sums_parity_);
            sums_parity_ ^= 1;
            tcgen05::fence_after_sync();
            load_sums(accumulators);
            accumulators[0][Slots::kFours][0] = squares_[0] + squares_[1];
        }

    private:
        __device__ __forceinline__ uint32_t buffer() const {
            return kFirstBuffer + ring_.stage % kNumBuffers * BLOCK_K;
        }

        __device__ __forceinline__ void widen_stage() {
            if constexpr (kNumBuffers < kNumStages) {  // the products that read the buffer have completed
                mbarrier::wait(&shared_.empty[retired_.stage], retired_.parity);
                retired_.advance();
            }
            mbarrier::wait(&shared_.full[ring_.stage], ring_.parity);
            tcgen05::fence_after_sync();
            const uint4* const row = reinterpret_cast<const uint4*>(shared_.tokens[ring_.stage]) + row_ * 8;
#pragma unroll
            for (int chunk = 0; chunk < 8; chunk += 2) {
                uint32_t values[16];
                widen(&values[0], row[chunk ^ row_ % 8]);
                widen(&values[8], row[(chunk + 1) ^ row_ % 8]);
                tcgen05::store(own_lanes_ + buffer() + chunk * 8, values);
            }
            tcgen05::wait_stores();
            tcgen05::fence_before_sync();
            mbarrier::arrive(&shared_.ready[ring_.stage]);
            __syncwarp();
            if (threadIdx.x % 32 == 0) mbarrier::arrive(&shared_.empty[ring_.stage]);
        }

        __device__ __forceinline__ void widen(uint32_t* values, uint4 chunk) {
            const uint32_t pairs[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                values[i] = i % 2 == 0 ? pairs[i / 2] << 16 : pairs[i / 2] & 0xFFFF0000;
                const float value = __uint_as_float(values[i]);
                squares_[i % 2] = __fmaf_rn(value, value, squares_[i % 2]);
            }
        }

        // The first warp.
        __device__ __forceinline__ void multiply_stage(bool accumulate, bool is_last) {
            mbarrier::wait(&shared_.ready[ring_.stage], ring_.parity);
            tcgen05::fence_after_sync();
            if (elect_one()) {
                // In a cluster an address has the CTA's rank above these bits, a descriptor has not.
                const uint32_t weights =
                    mbarrier::shared_address(shared_.weights[ring_.stage]) & tcgen05::kAddressBits;
#pragma unroll
                for (int step = 0; step < Base::kSteps; ++step) {
                    const uint64_t panel = tcgen05::swizzle128_descriptor(
                        weights + step / Base::kPanelSteps * Base::PANEL_BYTES);
                    tcgen05::mma_tf32(own_lanes_, own_lanes_ + buffer() + step * Base::STEP_K,
                                      panel + step % Base::kPanelSteps * (32 >> 4), tcgen05::tf32_descriptor(BLOCK_N),
                                      accumulate || step > 0);
                }
                tcgen05::commit(&shared_.empty[ring_.stage]);
                if (is_last) tcgen05::commit(&shared_.sums);
            }
            __syncwarp();
        }

        __device__ __forceinline__ void load_sums(Accumulators& accumulators) const {
#pragma unroll
            for (int column = 0; column < BLOCK_N; column += 16) {
                uint32_t sums[16];
                tcgen05::load(sums, own_lanes_ + column);
                tcgen05::wait_loads();
#pragma unroll
                for (int i = 0; i < 16; ++i) accumulators[0][(column + i) / 4][i % 4] = __uint_as_float(sums[i]);
            }
        }

        Storage& shared_;
        const uint32_t warp_, row_;
        uint32_t own_lanes_, sums_parity_ = 0;
        float squares_[2];
        RingState<kNumStages> ring_, retired_{kNumStages - kNumBuffers, 1};
    };
};

}  // namespace mainloop
