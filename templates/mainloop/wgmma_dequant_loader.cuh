// The loading thread of the main loop of sm_90: packed weights and tokens with their scales, by TMA.
#pragma once
#include <stdint.h>

#include "layout/scale_layout.cuh"
#include "number/integer.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

template <class Mainloop>
class WgmmaDequantLoader {
    using Storage = typename Mainloop::Storage;
    using Maps = typename Mainloop::Maps;
    static constexpr int kNumStages = Mainloop::kNumStages, BLOCK_K = Mainloop::BLOCK_K;

public:
    __device__ __forceinline__ WgmmaDequantLoader(Storage& shared, const Maps& maps, int num_columns)
        : shared_(shared), maps_(maps), weight_atoms_(ceil_div(num_columns, scale_layout::ATOM_ROWS)) {}

    // The weights of the tile that is loaded next, as far as there are stages.
    __device__ __forceinline__ void load_weights_ahead(const schedule::Tile& tile) {
        const int blocks = min(kNumStages, ceil_div(tile.k_end - tile.k_begin, BLOCK_K));
        for (; ahead_ < blocks; ++ahead_) load_weights(tile, ahead_, tile.k_begin + ahead_ * BLOCK_K);
    }

    __device__ __forceinline__ void load(const schedule::Tile& tile) {
#pragma unroll 1  // the instruction cache is for the other roles
        for (int k = tile.k_begin; k < tile.k_end; k += BLOCK_K) {
            const int s = ring_.stage;
            if (ahead_ > 0) {
                --ahead_;
            } else {
                mbarrier::wait(&shared_.empty_stage[s], ring_.parity ^ 1);
                load_weights(tile, s, k);
            }
            mbarrier::Barrier* full = &shared_.full_stage[s];
            tma::load_2d(shared_.packed_tokens[s], &maps_.a, full, k / 2, tile.row);
            tma::load_3d(shared_.token_scales[s], &maps_.a_scale, full,
                         Mainloop::TOKEN_SCALE_ROWS < 32 ? tile.scale_row % 32 * 4 : 0, k / 64,
                         tile.scale_row / scale_layout::ATOM_ROWS);
            ring_.advance();
        }
    }

private:
    __device__ __forceinline__ void load_weights(const schedule::Tile& tile, int s, int k) {
        constexpr int ROW_BYTES = Mainloop::ROW_BYTES;
        constexpr int BYTES_PER_STAGE = sizeof(Storage::weights[0]) + sizeof(Storage::packed_tokens[0]) +
                                        sizeof(Storage::weight_scales[0]) + sizeof(Storage::token_scales[0]);
        mbarrier::Barrier* full = &shared_.full_stage[s];
        const int atom = tile.batch * weight_atoms_ + tile.column / scale_layout::ATOM_ROWS;
        mbarrier::arrive_expect_tx(full, BYTES_PER_STAGE);
        for (int i = 0; i < Mainloop::WEIGHT_ATOMS; ++i) {
            tma::load_3d(shared_.weights[s] + i * 128 * ROW_BYTES, &maps_.b, full, k / 2, tile.column + i * 128,
                         tile.batch);
            tma::load_3d(shared_.weight_scales[s][i], &maps_.b_scale, full, 0, k / 64, atom + i);
        }
    }

    Storage& shared_;
    const Maps& maps_;
    const int weight_atoms_;  // of one batch
    int ahead_ = 0;           // stages that have their weights already
    RingState<kNumStages> ring_;
};

}  // namespace mainloop
