// FP8 tokens with fp32 scales for 128 of K, and MXFP4 weights whose rows have a word of four scales for as much.
#pragma once
#include <stdint.h>

#include "mainloop/sources.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

struct PromotedFp4Sources : PlainSources {
    const tma::TensorMap& a_scale;
    int a_stride;
    const tma::TensorMap& b_scale;  // words, [batch, K / 128, N]

    // Of a main loop whose tiles have 128 rows of weights and stages 128 of K.
    template <class Mainloop>
    class Loads : public PlainSources::Loads<Mainloop> {
        using Base = PlainSources::Loads<Mainloop>;

    public:
        __device__ __forceinline__ Loads(const PromotedFp4Sources& sources, int num_columns)
            : Base(sources, num_columns), sources_(sources) {}

        __device__ __forceinline__ void tokens(const StagePlaces& places, mbarrier::Barrier* full,
                                               const schedule::Tile& tile, int k) const {
            Base::tokens(places, full, tile, k);
            tma::load_1d(places.token_scales, &sources_.a_scale, full,  // a box starts at 16 bytes
                         tile.scale_row / 4 * 4 + k / Mainloop::BLOCK_K * sources_.a_stride);
        }
        __device__ __forceinline__ void weights(const StagePlaces& places, mbarrier::Barrier* full,
                                                const schedule::Tile& tile, int k) const {
            tma::load_3d(places.weights, &sources_.b, full, k / 2, tile.column, tile.batch);
            tma::load_3d(places.weight_scales, &sources_.b_scale, full, tile.column, k / Mainloop::BLOCK_K, tile.batch);
        }

    private:
        const PromotedFp4Sources& sources_;
    };
};

}  // namespace mainloop
