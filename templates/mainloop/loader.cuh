// The loading thread of every main loop: weights and tokens, and their scales, by TMA, into a ring of stages.
//
// A main loop says where they go, and how many bytes a stage has:
//     static constexpr int kNumStages, BLOCK_K, BYTES_PER_STAGE;  Storage::full, empty;
//     static StagePlaces places(Storage&, int stage);
//     struct Sources with Loads<Mainloop>(sources, num_columns): tokens(places, full, tile, k), weights(the same);
//         static constexpr bool kChangesMaps; if so has_maps_of(tile), change_maps(tile)
#pragma once
#include <stdint.h>

#include "layout/scale_layout.cuh"
#include "number/integer.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

struct StagePlaces {
    uint8_t *weights, *tokens, *weight_scales, *token_scales;
};

// Tokens (a) and weights (b), K-major, with scales in blocks of 128 rows. Of the main loop:
//     static constexpr int WEIGHT_ATOMS, ROW_BYTES, SCALE_K (of an atom);
//     static int coordinate(int k), of element k of a row in its tensor map, first_scale_word(int scale_row);
struct BlockScaledSources {
    const tma::TensorMap &a, &b, &a_scale, &b_scale;

    __device__ __forceinline__ void prefetch() const {
        for (const tma::TensorMap* map : {&a, &b, &a_scale, &b_scale}) tma::prefetch(map);
    }

    template <class Mainloop>
    class Loads {
        static constexpr int SCALE_K = Mainloop::SCALE_K, ATOM_ROWS = scale_layout::ATOM_ROWS;
        static constexpr int SCALE_BYTES = Mainloop::BLOCK_K / SCALE_K * scale_layout::ATOM_WORDS * 4;

    public:
        static constexpr bool kChangesMaps = false;

        __device__ __forceinline__ Loads(const BlockScaledSources& maps, int num_columns)
            : maps_(maps), weight_atoms_(ceil_div(num_columns, ATOM_ROWS)) {}

        __device__ __forceinline__ void tokens(const StagePlaces& places, mbarrier::Barrier* full,
                                               const schedule::Tile& tile, int k) const {
            tma::load_2d(places.tokens, &maps_.a, full, Mainloop::coordinate(k), tile.row);
            tma::load_3d(places.token_scales, &maps_.a_scale, full, Mainloop::first_scale_word(tile.scale_row),
                         k / SCALE_K, tile.scale_row / ATOM_ROWS);
        }

        __device__ __forceinline__ void weights(const StagePlaces& places, mbarrier::Barrier* full,
                                                const schedule::Tile& tile, int k) const {
            const int atom = tile.batch * weight_atoms_ + tile.column / ATOM_ROWS;
            for (int i = 0; i < Mainloop::WEIGHT_ATOMS; ++i) {
                tma::load_3d(places.weights + i * ATOM_ROWS * Mainloop::ROW_BYTES, &maps_.b, full,
                             Mainloop::coordinate(k), tile.column + i * ATOM_ROWS, tile.batch);
                tma::load_3d(places.weight_scales + i * SCALE_BYTES, &maps_.b_scale, full, 0, k / SCALE_K, atom + i);
            }
        }

    private:
        const BlockScaledSources& maps_;
        const int weight_atoms_;  // of one batch
    };
};

template <class Mainloop>
class Loader {
    using Storage = typename Mainloop::Storage;
    using Sources = typename Mainloop::Sources;
    using Loads = typename Sources::template Loads<Mainloop>;
    static constexpr int kNumStages = Mainloop::kNumStages, BLOCK_K = Mainloop::BLOCK_K;

public:
    __device__ __forceinline__ Loader(Storage& shared, const Sources& sources, int num_columns)
        : shared_(shared), loads_(sources, num_columns) {}

    // The weights of the tile that is loaded next, as far as there are stages.
    __device__ __forceinline__ void load_weights_ahead(const schedule::Tile& tile) {
        prepare_maps(tile);
        const int blocks = min(kNumStages, ceil_div(tile.k_end - tile.k_begin, BLOCK_K));
        for (; ahead_ < blocks; ++ahead_) load_weights(tile, ahead_, tile.k_begin + ahead_ * BLOCK_K);
    }

    __device__ __forceinline__ void load(const schedule::Tile& tile) {
        prepare_maps(tile);
#pragma unroll 1  // the instruction cache is for the other roles
        for (int k = tile.k_begin; k < tile.k_end; k += BLOCK_K) {
            if (ahead_ > 0) {
                --ahead_;
            } else {
                mbarrier::wait(&shared_.empty[ring_.stage], ring_.parity ^ 1);
                load_weights(tile, ring_.stage, k);
            }
            loads_.tokens(Mainloop::places(shared_, ring_.stage), &shared_.full[ring_.stage], tile, k);
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
    __device__ __forceinline__ void prepare_maps(const schedule::Tile& tile) {
        if constexpr (Loads::kChangesMaps) {
            if (loads_.has_maps_of(tile)) return;
#pragma unroll 1
            for (int stage = 0; stage < kNumStages; ++stage)  // all loads so far are over
                mbarrier::wait(&shared_.full[stage], stage < ring_.stage ? ring_.parity : ring_.parity ^ 1);
            loads_.change_maps(tile);
        }
    }

    __device__ __forceinline__ void load_weights(const schedule::Tile& tile, int stage, int k) {
        mbarrier::arrive_expect_tx(&shared_.full[stage], Mainloop::BYTES_PER_STAGE);
        loads_.weights(Mainloop::places(shared_, stage), &shared_.full[stage], tile, k);
    }

    Storage& shared_;
    Loads loads_;
    int ahead_ = 0;  // stages that have their weights already
    RingState<kNumStages> ring_;
};

}  // namespace mainloop
