// The loading thread of every main loop: weights and tokens, by TMA, into a ring of stages; with scales in blocks of
// 128 rows these, too.
//
// A main loop says where they go, and how many bytes a stage has:
//     struct Sources;  static constexpr int WEIGHT_ATOMS, ROW_BYTES, BYTES_PER_STAGE, SCALE_K (of an atom);
//     Storage::full, empty;  static StagePlaces places(Storage&, int stage);
//     static int coordinate(int k), of element k of a row in its tensor map, first_scale_word(int scale_row);
#pragma once
#include <stdint.h>

#include <type_traits>

#include "layout/scale_layout.cuh"
#include "number/integer.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

// Of tokens (a) and weights (b), with scales in blocks.
struct BlockScaledSources {
    const tma::TensorMap &a, &b, &a_scale, &b_scale;

    __device__ __forceinline__ void prefetch() const {
        for (const tma::TensorMap* map : {&a, &b, &a_scale, &b_scale}) tma::prefetch(map);
    }
};

struct StagePlaces {
    uint8_t *weights, *tokens, *weight_scales, *token_scales;
};

template <class Mainloop>
class Loader {
    using Storage = typename Mainloop::Storage;
    using Sources = typename Mainloop::Sources;
    static constexpr bool kLoadsScales = std::is_same_v<Sources, BlockScaledSources>;
    static constexpr int kNumStages = Mainloop::kNumStages, BLOCK_K = Mainloop::BLOCK_K;
    static constexpr int SCALE_K = Mainloop::SCALE_K;
    static constexpr int SCALE_BYTES = BLOCK_K / SCALE_K * scale_layout::ATOM_WORDS * 4;

public:
    __device__ __forceinline__ Loader(Storage& shared, const Sources& maps, int num_columns)
        : shared_(shared), maps_(maps), weight_atoms_(ceil_div(num_columns, scale_layout::ATOM_ROWS)) {}

    // The weights of the tile that is loaded next, as far as there are stages.
    __device__ __forceinline__ void load_weights_ahead(const schedule::Tile& tile) {
        const int blocks = min(kNumStages, ceil_div(tile.k_end - tile.k_begin, BLOCK_K));
        for (; ahead_ < blocks; ++ahead_) load_weights(tile, ahead_, tile.k_begin + ahead_ * BLOCK_K);
    }

    __device__ __forceinline__ void load(const schedule::Tile& tile) {
#pragma unroll 1  // the instruction cache is for the other roles
        for (int k = tile.k_begin; k < tile.k_end; k += BLOCK_K) {
            if (ahead_ > 0) {
                --ahead_;
            } else {
                mbarrier::wait(&shared_.empty[ring_.stage], ring_.parity ^ 1);
                load_weights(tile, ring_.stage, k);
            }
            const StagePlaces places = Mainloop::places(shared_, ring_.stage);
            mbarrier::Barrier* full = &shared_.full[ring_.stage];
            tma::load_2d(places.tokens, &maps_.a, full, Mainloop::coordinate(k), tile.row);
            if constexpr (kLoadsScales)
                tma::load_3d(places.token_scales, &maps_.a_scale, full, Mainloop::first_scale_word(tile.scale_row),
                             k / SCALE_K, tile.scale_row / scale_layout::ATOM_ROWS);
            ring_.advance();
        }
    }

    // The last commits arrive on barriers of this CTA, which must still be there.
    __device__ __forceinline__ void wait_for_commits() {
#pragma unroll 1
        for (int i = 0; i < kNumStages; ++i) {
            mbarrier::wait(&shared_.empty[ring_.stage], ring_.parity ^ 1);
            ring_.advance();
        }
    }

private:
    __device__ __forceinline__ void load_weights(const schedule::Tile& tile, int stage, int k) {
        const StagePlaces places = Mainloop::places(shared_, stage);
        mbarrier::Barrier* full = &shared_.full[stage];
        const int atom = tile.batch * weight_atoms_ + tile.column / scale_layout::ATOM_ROWS;
        mbarrier::arrive_expect_tx(full, Mainloop::BYTES_PER_STAGE);
        for (int i = 0; i < Mainloop::WEIGHT_ATOMS; ++i) {
            tma::load_3d(places.weights + i * scale_layout::ATOM_ROWS * Mainloop::ROW_BYTES, &maps_.b, full,
                         Mainloop::coordinate(k), tile.column + i * scale_layout::ATOM_ROWS, tile.batch);
            if constexpr (kLoadsScales)
                tma::load_3d(places.weight_scales + i * SCALE_BYTES, &maps_.b_scale, full, 0, k / SCALE_K, atom + i);
        }
    }

    Storage& shared_;
    const Sources& maps_;
    const int weight_atoms_;  // of one batch
    int ahead_ = 0;           // stages that have their weights already
    RingState<kNumStages> ring_;
};

}  // namespace mainloop
