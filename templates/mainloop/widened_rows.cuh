// Rows in the registers of wgmma and mma.sync: eight warps have 16 rows each, and all columns. Of a step along K lane
// 4 g + l has elements l and l + 4 of rows g and g + 8.
#pragma once
#include <stdint.h>

#include "layout/row_slots.cuh"
#include "mainloop/widened_stages.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

template <class Config>
struct WidenedRows : WidenedStages<Config> {
    using Base = WidenedStages<Config>;
    using Slots = layout::RowSlots<Config::BLOCK_N>;
    using Accumulators = typename Slots::Accumulators;
    using Fragment = uint32_t[4];  // of a step
    static constexpr int kNumStages = Base::kNumStages, ROW_BYTES = Base::ROW_BYTES;

    struct Storage : Base::Operands {
        mbarrier::Barrier full[kNumStages], empty[kNumStages];
    };

    __device__ __forceinline__ static void init(Storage& shared) {
        for (int stage = 0; stage < kNumStages; ++stage) {
            mbarrier::init(&shared.full[stage], 1);
            mbarrier::init(&shared.empty[stage], Slots::kNumWarps);
        }
    }

    // Every lane has read the stage.
    __device__ __forceinline__ static void release(Storage& shared, int stage) {
        __syncwarp();
        if (threadIdx.x % 32 == 0) mbarrier::arrive(&shared.empty[stage]);
    }

    // A tile of whose rows a warp has none.
    __device__ __forceinline__ static void skip(Storage& shared, RingState<kNumStages>& ring,
                                                const schedule::Tile& tile) {
        for (int k = tile.k_begin; k < tile.k_end; k += Base::BLOCK_K) {
            mbarrier::wait(&shared.full[ring.stage], ring.parity);
            release(shared, ring.stage);
            ring.advance();
        }
    }

    // Those of a thread.
    class Rows {
    public:
        __device__ __forceinline__ Rows() {
            const uint32_t lane = threadIdx.x % 32, g = lane / 4;
            first_ = Slots::first_token(warp_index(), g) * ROW_BYTES + lane % 4 * 2;
            swizzle_ = g * 16;  // of rows g and g + 8 alike
        }

        // A step is one chunk of 16 bytes of a row; eight rows have it in different banks.
        __device__ __forceinline__ void load(Fragment& fragment, const uint8_t* tokens, int step) {
            const uint8_t* const place = tokens + first_ + (step * 16 ^ swizzle_);
#pragma unroll
            for (int i = 0; i < 4; ++i) {  // row g + 8 for odd i, k + 4 from 2 on
                const auto* element = reinterpret_cast<const uint16_t*>(place + i % 2 * 8 * ROW_BYTES + i / 2 * 8);
                fragment[i] = static_cast<uint32_t>(*element) << 16;
                const float value = __uint_as_float(fragment[i]);
                squares_[i % 2] = __fmaf_rn(value, value, squares_[i % 2]);
            }
        }

        __device__ __forceinline__ void begin() { squares_[0] = squares_[1] = 0; }
        __device__ __forceinline__ void give_squares(Accumulators& accumulators) const {
#pragma unroll
            for (int i = 0; i < 2; ++i) accumulators[0][Slots::kFours][i] = squares_[i];
        }

    private:
        uint32_t first_, swizzle_;
        float squares_[2];
    };
};

}  // namespace mainloop
