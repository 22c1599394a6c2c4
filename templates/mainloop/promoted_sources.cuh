// FP8 operands with fp32 scales for 128 of K, of rows by TMA with the operands, of blocks by those who multiply.
#pragma once
#include <stdint.h>

#include "mainloop/sources.cuh"
#include "number/integer.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

// Scales are fp32. Those of rows are a vector, block after block of K, `stride` apart, which is a multiple of 4. A box
// starts at 16 bytes: it has 4 rows more than a tile, which starts at one of the first.
struct PromotedSources : PlainSources {
    const tma::TensorMap& a_scale;
    int a_stride;
    const float* b_scale;  // of blocks, [batch, N / 128, K / 128], or
    const tma::TensorMap* b_scale_map;  // of rows
    int b_stride, b_rows;  // b_rows: of scales, from a batch to the next one

    // Of the i-th 128 rows of a tile's weights; a batch has `blocks` of them.
    __device__ __forceinline__ static int weight_block(const schedule::Tile& tile, int i, int blocks) {
        return tile.batch * blocks + min(tile.column / 128 + i, blocks - 1);  // the last one may be past the matrix
    }

    template <class Mainloop>
    __device__ __forceinline__ void load_token_scales(const StagePlaces& places, mbarrier::Barrier* full,
                                                      const schedule::Tile& tile, int k) const {
        tma::load_1d(places.token_scales, &a_scale, full, tile.scale_row / 4 * 4 + k / Mainloop::BLOCK_K * a_stride);
    }
    template <class Mainloop>
    __device__ __forceinline__ void load_weight_scales(const StagePlaces& places, mbarrier::Barrier* full,
                                                       const schedule::Tile& tile, int k) const {
        if constexpr (Mainloop::kWeightRowScales)
            tma::load_1d(places.weight_scales, b_scale_map, full,
                         tile.batch * b_rows + tile.column + k / Mainloop::BLOCK_K * b_stride);
    }

    template <class Mainloop>
    class Loads : PlainSources::Loads<Mainloop> {
        using Base = PlainSources::Loads<Mainloop>;

    public:
        using Base::kChangesMaps;

        __device__ __forceinline__ Loads(const PromotedSources& sources, int num_columns)
            : Base(sources, num_columns), sources_(sources) {}

        __device__ __forceinline__ void tokens(const StagePlaces& places, mbarrier::Barrier* full,
                                               const schedule::Tile& tile, int k) const {
            Base::tokens(places, full, tile, k);
            sources_.template load_token_scales<Mainloop>(places, full, tile, k);
        }
        __device__ __forceinline__ void weights(const StagePlaces& places, mbarrier::Barrier* full,
                                                const schedule::Tile& tile, int k) const {
            Base::weights(places, full, tile, k);
            sources_.template load_weight_scales<Mainloop>(places, full, tile, k);
        }

    private:
        const PromotedSources& sources_;
    };
};

}  // namespace mainloop
