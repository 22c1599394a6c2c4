// Tiles of CTA pairs: both CTAs of a cluster walk the same ones, each with its own half of the columns.
#pragma once
#include "ptx/cluster.cuh"
#include "schedule/grouped.cuh"
#include "schedule/tile.cuh"

namespace schedule {

// BLOCK_N: columns of the pair.
template <class Rows, int BLOCK_M, int BLOCK_N>
class Pairs : public Grouped<Rows, BLOCK_M, BLOCK_N, 2> {
    using Base = Grouped<Rows, BLOCK_M, BLOCK_N, 2>;
    static_assert(!Rows::kDividesK, "K of a tile is that of the problem");

public:
    static constexpr int kSplits = 1;

    __device__ __forceinline__ Pairs(const typename Base::Storage& storage, const Rows& rows, int num_columns,
                                     int depth)
        : Base(storage, rows, num_columns, depth), depth_(depth) {}

    __device__ __forceinline__ bool next(Tile& tile) {
        if (!Base::next(tile)) return false;
        tile.column += cluster::rank() * (BLOCK_N / 2);
        tile.k_begin = 0;  // no share of K: the CTAs have parts of both operands instead
        tile.k_end = tile.num_rows > 0 ? depth_ : 0;
        return true;
    }

private:
    int depth_;
};

}  // namespace schedule
