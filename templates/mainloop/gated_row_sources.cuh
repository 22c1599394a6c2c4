// Weights of a gate and of what it multiplies, [batch, 2, columns, K], with scales row by row: a tile takes the same
// 128 rows of both. A box has kBoxRows rows of gates and behind them those of the ups, and so has one of scales.
#pragma once
#include <stdint.h>

#include "layout/scale_rows.cuh"
#include "mainloop/sources.cuh"
#include "ptx/tma.cuh"

namespace mainloop {

template <int kBoxRows>
struct GatedRowSources : RowScaledSources<4 * scale_rows::STAGE_K, 4 * scale_rows::STAGE_K> {
    using Rows = RowScaledSources<4 * scale_rows::STAGE_K, 4 * scale_rows::STAGE_K>;

    template <class Mainloop>
    class Loads : public Rows::Loads<Mainloop> {
        static constexpr int kColumns = Mainloop::BLOCK_N / 2;
        static_assert(kColumns % kBoxRows == 0, "a tile has whole boxes");

    public:
        __device__ __forceinline__ Loads(const GatedRowSources& sources, int num_columns)
            : Rows::Loads<Mainloop>(sources, num_columns), sources_(sources) {}

        // Either map ends where the columns do, in gates and in ups.
        __device__ __forceinline__ void weights(const StagePlaces& places, mbarrier::Barrier* full,
                                                const schedule::Tile& tile, int k) const {
            for (int first = 0; first < kColumns; first += kBoxRows) {
                const int column = tile.column + first, gates = tile.batch * 2;
                tma::load_3d(places.weights + first * 2 * Mainloop::ROW_BYTES, &sources_.b, full, k, column, gates);
                tma::load_3d(places.weight_scales + first * 2 * 4, &sources_.b_scale, full, column,
                             k / (4 * scale_rows::STAGE_K), gates);
            }
        }

    private:
        const GatedRowSources& sources_;
    };
};

}  // namespace mainloop
