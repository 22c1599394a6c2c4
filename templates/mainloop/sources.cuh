// What a main loop loads by TMA, and how a stage of it is loaded, by one thread:
//     void prefetch() const;  Loads<Mainloop>(sources, num_columns);
//     Loads: tokens(places, full, tile, k), weights(the same);
//         static constexpr bool kChangesMaps; if so has_maps_of(tile), change_maps(tile)
#pragma once
#include <stdint.h>

#include "layout/scale_layout.cuh"
#include "layout/scale_rows.cuh"
#include "number/integer.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

// Addresses in shared memory: of pointers the loading thread would compute 64 bits for each load, most of its time.
struct StagePlaces {
    uint32_t weights, tokens, weight_scales, token_scales;

    __device__ __forceinline__ StagePlaces(const void* weights, const void* tokens, const void* weight_scales,
                                           const void* token_scales)
        : weights(mbarrier::shared_address(weights)),
          tokens(mbarrier::shared_address(tokens)),
          weight_scales(mbarrier::shared_address(weight_scales)),
          token_scales(mbarrier::shared_address(token_scales)) {}
};

// Tokens (a) and weights (b) without scales. Of the main loop:
//     static constexpr int BLOCK_M, BLOCK_N, BLOCK_K, WEIGHT_ATOMS, ROW_BYTES;
//     static constexpr bool kTokensMnMajor, kWeightsMnMajor;
//     static int token_coordinate(int k), weight_coordinate(int k), of element k of a row in its map
// A stage has rows of BLOCK_K elements. Of what is MN-major, K being the outer dimension, it has as many bytes: panels
// of BLOCK_K rows, 128 bytes of neighbouring tokens or weights each. Tokens that are MN-major are those of one matrix,
// and so are the weights with them: batches share these, and have parts of K; unless tokens have matrices, too (EachBatch).
struct PlainSources {
    static constexpr bool kTokenMatrices = false;  // the third coordinate of a, and that of b, is matrix()
    const tma::TensorMap &a, &b;

    __device__ __forceinline__ void prefetch() const {
        tma::prefetch(&a);
        tma::prefetch(&b);
    }

    template <class Mainloop>
    class Loads {
        static constexpr bool kTokenMatrices = Mainloop::Sources::kTokenMatrices;
        static constexpr int ATOM_ROWS = scale_layout::ATOM_ROWS;
        static constexpr int PANEL_ROWS = 128 * Mainloop::BLOCK_K / Mainloop::ROW_BYTES;
        static constexpr int PANEL_BYTES = 128 * Mainloop::BLOCK_K;

    public:
        static constexpr bool kChangesMaps = false;

        __device__ __forceinline__ Loads(const PlainSources& maps, int) : maps_(maps) {}

        __device__ __forceinline__ void tokens(const StagePlaces& places, mbarrier::Barrier* full,
                                               const schedule::Tile& tile, int k) const {
            if constexpr (Mainloop::kTokensMnMajor)
                for (int i = 0; i < Mainloop::BLOCK_M / PANEL_ROWS; ++i)
                    load_tokens(places.tokens + i * PANEL_BYTES, full, tile,
                                (kTokenMatrices ? tile.row : tile.scale_row) + i * PANEL_ROWS, k);
            else
                load_tokens(places.tokens, full, tile, Mainloop::token_coordinate(k), tile.row);
        }
        __device__ __forceinline__ void weights(const StagePlaces& places, mbarrier::Barrier* full,
                                                const schedule::Tile& tile, int k) const {
            if constexpr (Mainloop::kWeightsMnMajor)
                for (int i = 0; i < Mainloop::BLOCK_N / PANEL_ROWS; ++i)
                    tma::load_3d(places.weights + i * PANEL_BYTES, &maps_.b, full, tile.column + i * PANEL_ROWS, k,
                                 matrix(tile));
            else
                for (int i = 0; i < Mainloop::WEIGHT_ATOMS; ++i)
                    tma::load_3d(places.weights + i * ATOM_ROWS * Mainloop::ROW_BYTES, &maps_.b, full,
                                 Mainloop::weight_coordinate(k), tile.column + i * ATOM_ROWS, matrix(tile));
        }

    protected:
        // Of the weights.
        __device__ __forceinline__ static int matrix(const schedule::Tile& tile) {
            return Mainloop::kTokensMnMajor && !kTokenMatrices ? 0 : tile.batch;
        }

    private:
        __device__ __forceinline__ void load_tokens(uint32_t place, mbarrier::Barrier* full, const schedule::Tile& tile,
                                                    int x, int y) const {
            if constexpr (kTokenMatrices) tma::load_3d(place, &maps_.a, full, x, y, matrix(tile));
            else tma::load_2d(place, &maps_.a, full, x, y);
        }

        const PlainSources& maps_;
    };
};

// Sources whose tokens are matrices, one a batch, as the weights are: of each a map of three dimensions, whose strides
// are those of the call. A tile's row is that in its matrix.
template <class Sources>
struct EachBatch : Sources {
    static constexpr bool kTokenMatrices = true;
};

// Tokens and weights of matrices that follow each other along K: element k is in matrix k / depth. Batches are shares of
// K. A stage is in one matrix, where depth is whole stages; what is past a row, TMA fills with zeros.
struct ChainedSources : PlainSources {
    int depth;

    template <class Mainloop>
    class Loads {
        static_assert(!Mainloop::kTokensMnMajor && !Mainloop::kWeightsMnMajor, "rows along K follow each other");

    public:
        static constexpr bool kChangesMaps = false;

        __device__ __forceinline__ Loads(const ChainedSources& sources, int) : sources_(sources) {}

        __device__ __forceinline__ void tokens(const StagePlaces& places, mbarrier::Barrier* full,
                                               const schedule::Tile& tile, int k) const {
            tma::load_3d(places.tokens, &sources_.a, full, k % sources_.depth, tile.row, k / sources_.depth);
        }
        __device__ __forceinline__ void weights(const StagePlaces& places, mbarrier::Barrier* full,
                                                const schedule::Tile& tile, int k) const {
            for (int i = 0; i < Mainloop::WEIGHT_ATOMS; ++i)
                tma::load_3d(places.weights + i * scale_layout::ATOM_ROWS * Mainloop::ROW_BYTES, &sources_.b, full,
                             k % sources_.depth, tile.column + i * scale_layout::ATOM_ROWS, k / sources_.depth);
        }

    private:
        const ChainedSources& sources_;
    };
};

// The same with scales in blocks of 128 rows. Of the main loop also:
//     static constexpr int SCALE_K (of an atom);  static int first_scale_word(int scale_row)
struct BlockScaledSources : PlainSources {
    const tma::TensorMap &a_scale, &b_scale;

    __device__ __forceinline__ void prefetch() const {
        for (const tma::TensorMap* map : {&a, &b, &a_scale, &b_scale}) tma::prefetch(map);
    }

    template <class Mainloop>
    class Loads : public PlainSources::Loads<Mainloop> {
        using Base = PlainSources::Loads<Mainloop>;
        static constexpr int SCALE_K = Mainloop::SCALE_K, ATOM_ROWS = scale_layout::ATOM_ROWS;
        static constexpr int SCALE_BYTES = Mainloop::BLOCK_K / SCALE_K * scale_layout::ATOM_WORDS * 4;

    public:
        __device__ __forceinline__ Loads(const BlockScaledSources& maps, int num_columns)
            : Base(maps, num_columns), maps_(maps), weight_atoms_(ceil_div(num_columns, ATOM_ROWS)) {}

        __device__ __forceinline__ void tokens(const StagePlaces& places, mbarrier::Barrier* full,
                                               const schedule::Tile& tile, int k) const {
            Base::tokens(places, full, tile, k);
            tma::load_3d(places.token_scales, &maps_.a_scale, full, Mainloop::first_scale_word(tile.scale_row),
                         k / SCALE_K, tile.scale_row / ATOM_ROWS);
        }
        __device__ __forceinline__ void weights(const StagePlaces& places, mbarrier::Barrier* full,
                                                const schedule::Tile& tile, int k) const {
            Base::weights(places, full, tile, k);
            const int atom = tile.batch * weight_atoms_ + tile.column / ATOM_ROWS;
            for (int i = 0; i < Mainloop::WEIGHT_ATOMS; ++i)
                tma::load_3d(places.weight_scales + i * SCALE_BYTES, &maps_.b_scale, full, 0, k / SCALE_K, atom + i);
        }

    private:
        const BlockScaledSources& maps_;
        const int weight_atoms_;  // of one batch
    };
};

// The same with scales row by row, words for so much of K; a box of the tokens' starts at 16 bytes.
template <int kTokenWordK, int kWeightWordK>
struct RowScaledSources : PlainSources {
    const tma::TensorMap &a_scale, &b_scale;
    int token_stride;  // words of the tokens from one of K to the next

    __device__ __forceinline__ void prefetch() const {
        for (const tma::TensorMap* map : {&a, &b, &a_scale, &b_scale}) tma::prefetch(map);
    }

    template <class Mainloop>
    class Loads : public PlainSources::Loads<Mainloop> {
        using Base = PlainSources::Loads<Mainloop>;

    public:
        __device__ __forceinline__ Loads(const RowScaledSources& sources, int num_columns)
            : Base(sources, num_columns), sources_(sources) {}

        __device__ __forceinline__ void tokens(const StagePlaces& places, mbarrier::Barrier* full,
                                               const schedule::Tile& tile, int k) const {
            Base::tokens(places, full, tile, k);
            const int scale_row = tile.scale_row % sources_.token_stride;  // within a matrix
            tma::load_2d(places.token_scales, &sources_.a_scale, full, scale_row - scale_rows::first_word(scale_row),
                         tile.scale_row / sources_.token_stride + k / kTokenWordK);
        }
        __device__ __forceinline__ void weights(const StagePlaces& places, mbarrier::Barrier* full,
                                                const schedule::Tile& tile, int k) const {
            Base::weights(places, full, tile, k);
            tma::load_3d(places.weight_scales, &sources_.b_scale, full, tile.column, k / kWeightWordK,
                         Base::matrix(tile));
        }

    private:
        const RowScaledSources& sources_;
    };
};

}  // namespace mainloop
