// 16-bit tokens, and FP4 weights in fragment order with scales in blocks of 128 rows.
#pragma once
#include <stdint.h>

#include "layout/scale_layout.cuh"
#include "mainloop/sources.cuh"
#include "number/integer.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

struct FragmentSources : PlainSources {
    const tma::TensorMap& b_scale;

    __device__ __forceinline__ void prefetch() const {
        for (const tma::TensorMap* map : {&a, &b, &b_scale}) tma::prefetch(map);
    }

    // A stage has 128 bytes of a token in one panel, and the next 128 in another. There are as many boxes of tokens as the
    // tile has rows for, so they are announced here, weights by the Loader: `full` waits for two arrivals.
    template <class Mainloop>
    class Loads : public PlainSources::Loads<Mainloop> {
        using Base = PlainSources::Loads<Mainloop>;
        static constexpr int SCALE_K = Mainloop::SCALE_K, ATOM_ROWS = scale_layout::ATOM_ROWS;
        static constexpr int BOX_ROWS = Mainloop::BOX_ROWS, BOX_BYTES = BOX_ROWS * 128;
        static constexpr int NUM_PANELS = Mainloop::BLOCK_K / Mainloop::PANEL_K;
        static constexpr int SCALE_BYTES = Mainloop::BLOCK_K / SCALE_K * scale_layout::ATOM_WORDS * 4;

    public:
        __device__ __forceinline__ Loads(const FragmentSources& maps, int num_columns)
            : Base(maps, num_columns), maps_(maps), weight_atoms_(ceil_div(num_columns, ATOM_ROWS)) {}

        __device__ __forceinline__ void tokens(const StagePlaces& places, mbarrier::Barrier* full,
                                               const schedule::Tile& tile, int k) const {
            const int boxes = max(ceil_div(tile.num_rows, BOX_ROWS), Mainloop::LEAST_BOXES);
            mbarrier::arrive_expect_tx(full, NUM_PANELS * BOX_BYTES * boxes);
#pragma unroll 1
            for (int box = 0; box < boxes; ++box)
                for (int i = 0; i < NUM_PANELS; ++i)
                    tma::load_2d(places.tokens + i * Mainloop::PANEL_BYTES + box * BOX_BYTES, &maps_.a, full,
                                 k + i * Mainloop::PANEL_K, tile.row + box * BOX_ROWS);
        }
        __device__ __forceinline__ void weights(const StagePlaces& places, mbarrier::Barrier* full,
                                                const schedule::Tile& tile, int k) const {
            Base::weights(places, full, tile, k);
            const int atom = tile.batch * weight_atoms_ + tile.column / ATOM_ROWS;
            for (int i = 0; i < Mainloop::WEIGHT_ATOMS; ++i)
                tma::load_3d(places.weight_scales + i * SCALE_BYTES, &maps_.b_scale, full, 0, k / SCALE_K, atom + i);
        }

    private:
        const FragmentSources& maps_;
        const int weight_atoms_;  // of one batch
    };
};

}  // namespace mainloop
