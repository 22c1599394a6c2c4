// Weights of a gate and of what it multiplies, [batch, 2, columns, K]: a tile takes the same 128 rows of both, one
// behind the other. Each has its own scales of 128 x 128, and neither reaches into the other where a tile ends.
#pragma once
#include <stdint.h>

#include "mainloop/wgmma_promote.cuh"
#include "ptx/tma.cuh"

namespace mainloop {

struct GatedSources : PromotedSources {
    // Of gates for half 0, of ups for half 1.
    __device__ __forceinline__ static int weight_block(const schedule::Tile& tile, int half, int blocks) {
        return (tile.batch * 2 + half) * blocks + tile.column / 128;
    }

    template <class Mainloop>
    class Loads : PromotedSources::Loads<Mainloop> {
        using Base = PromotedSources::Loads<Mainloop>;
        static constexpr int kHalfBytes = Mainloop::BLOCK_N / 2 * Mainloop::ROW_BYTES;
        static_assert(Mainloop::BLOCK_N == 256, "a box of gates and one of ups");

    public:
        using Base::kChangesMaps, Base::tokens;

        __device__ __forceinline__ Loads(const GatedSources& sources, int num_columns)
            : Base(sources, num_columns), maps_(sources) {}

        __device__ __forceinline__ void weights(const StagePlaces& places, mbarrier::Barrier* full,
                                                const schedule::Tile& tile, int k) const {
            for (int half = 0; half < 2; ++half)
                tma::load_3d(places.weights + half * kHalfBytes, &maps_.b, full, k, tile.column, tile.batch * 2 + half);
        }

    private:
        const GatedSources& maps_;
    };
};

}  // namespace mainloop
