// K-major FP8 operands of groups along K, one [rows, K of the group] matrix behind the other: each group has a pitch of its
// own, so a CTA has tensor maps in global memory and changes them when it goes on to the next group.
#pragma once
#include <stdint.h>

#include "mainloop/wgmma_promote.cuh"
#include "ptx/tma.cuh"

namespace mainloop {

// a and b are maps of any group: box, type and rows count.
struct KGroupSources : PromotedSources {
    const uint8_t *a_data, *b_data;
    tma::TensorMap* maps;  // two of each CTA
    int num_rows;

    template <class Mainloop>
    class Loads {
        static constexpr int kBoxRows = 128;

    public:
        static constexpr bool kChangesMaps = true;

        __device__ __forceinline__ Loads(const KGroupSources& sources, int num_columns)
            : sources_(sources), num_columns_(num_columns), a_(sources.maps + blockIdx.x * 2), b_(a_ + 1) {
            tma::copy(a_, sources.a);
            tma::copy(b_, sources.b);
        }

        __device__ __forceinline__ bool has_maps_of(const schedule::Tile& tile) const {
            return tile.batch == batch_ || tile.k_begin == tile.k_end;
        }
        // No load by the maps may be on its way.
        __device__ __forceinline__ void change_maps(const schedule::Tile& tile) {
            const int depth = tile.k_end - tile.k_begin;
            batch_ = tile.batch;
            tma::change(a_, sources_.a_data + int64_t(tile.k_begin) * sources_.num_rows, depth);
            tma::change(b_, sources_.b_data + int64_t(tile.k_begin) * num_columns_, depth);
        }

        __device__ __forceinline__ void tokens(const StagePlaces& places, mbarrier::Barrier* full,
                                               const schedule::Tile& tile, int k) const {
            tma::load_2d(places.tokens, a_, full, k - tile.k_begin, tile.scale_row);
            sources_.template load_token_scales<Mainloop>(places, full, tile, k);
        }
        __device__ __forceinline__ void weights(const StagePlaces& places, mbarrier::Barrier* full,
                                                const schedule::Tile& tile, int k) const {
            for (int i = 0; i < Mainloop::BLOCK_N / kBoxRows; ++i)
                tma::load_2d(places.weights + i * kBoxRows * Mainloop::ROW_BYTES, b_, full, k - tile.k_begin,
                             tile.column + i * kBoxRows);
            sources_.template load_weight_scales<Mainloop>(places, full, tile, k);
        }

    private:
        const KGroupSources& sources_;
        const int num_columns_;
        tma::TensorMap *const a_, *const b_;
        int batch_ = -1;
    };
};

}  // namespace mainloop
