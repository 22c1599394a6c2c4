// FP8 tokens with fp32 scales for 128 of K, and MXFP4 weights whose rows have a word of four scales for as much.
#pragma once
#include <stdint.h>

#include "mainloop/promoted_sources.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

struct PromotedFp4Sources : PromotedSources {  // whose b_scale_map is of words, [batch, K / 128, N]
    // Of a main loop whose tiles have 128 rows of weights and stages 128 of K.
    template <class Mainloop>
    class Loads : PromotedSources::Loads<Mainloop> {
        using Base = PromotedSources::Loads<Mainloop>;

    public:
        using Base::kChangesMaps, Base::tokens;

        __device__ __forceinline__ Loads(const PromotedFp4Sources& sources, int num_columns)
            : Base(sources, num_columns), sources_(sources) {}

        __device__ __forceinline__ void weights(const StagePlaces& places, mbarrier::Barrier* full,
                                                const schedule::Tile& tile, int k) const {
            tma::load_3d(places.weights, &sources_.b, full, k / 2, tile.column, tile.batch);
            tma::load_3d(places.weight_scales, sources_.b_scale_map, full, tile.column, k / Mainloop::BLOCK_K, tile.batch);
        }

    private:
        const PromotedFp4Sources& sources_;
    };
};

}  // namespace mainloop
