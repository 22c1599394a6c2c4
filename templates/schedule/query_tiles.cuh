// Persistent schedule of queries by the keys of one matrix: kQueries neighbouring queries and a share of the keys a tile.
//
// All shares are equally long and begin at the same keys for all queries, and the CTAs that run at the same time have
// the same share: these keys stay in L2. Of its share a tile has the keys that any of its queries sees, so many tiles
// have none. Which CTA has which tile turns with each round, or a CTA could get a long one every time.
//
// Of a Tile: row and num_rows are of queries, k_begin and k_end of keys; column and num_stored are the share.
#pragma once
#include <limits.h>
#include <stdint.h>

#include "number/integer.cuh"
#include "schedule/keys.cuh"
#include "schedule/tile.cuh"

namespace schedule {

// Keys of each query, in memory: from starts[query] on, before ends[query].
struct StartsAndEnds {
    const int *starts, *ends;

    // Past L1, for an earlier grid may have written where they are.
    __device__ __forceinline__ KeyRange of(int query, int num_keys) const {
        const int begin = max(0, min(__ldcg(starts + query), num_keys));
        return {begin, max(begin, min(__ldcg(ends + query), num_keys))};
    }
};

template <int kQueries, class Ranges = StartsAndEnds>
class QueryTiles {
    static_assert(kQueries <= 32, "a lane of the warp has a query");
    static constexpr unsigned kTurn = 37;

public:
    struct Params {
        Ranges ranges;  // which keys a query sees
        int num_queries, num_keys, share;
        bool all;  // also tiles without keys
    };

    __device__ __forceinline__ explicit QueryTiles(const Params& params)
        : params_(params), query_tiles_(ceil_div(params.num_queries, kQueries)) {}

    __device__ __forceinline__ static KeyRange range(const Params& params, int query) {
        return params.ranges.of(query, params.num_keys);
    }

    // A whole warp: the CTA's next tile; false when there is none left.
    __device__ __forceinline__ bool next(Tile& tile) {
        const int tiles = query_tiles_ * ceil_div(params_.num_keys, params_.share);
        for (;;) {
            const int index = first_ + (blockIdx.x + turn_) % gridDim.x;
            if (index >= tiles) return false;
            first_ += gridDim.x;
            turn_ += kTurn;
            describe(tile, index % query_tiles_ * kQueries, index / query_tiles_ * params_.share);
            if (params_.all || tile.k_begin < tile.k_end) return true;
        }
    }

private:
    __device__ __forceinline__ void describe(Tile& tile, int query, int key) const {
        const int own = query + threadIdx.x % 32;
        KeyRange seen{INT_MAX, 0};
        if (threadIdx.x % 32 < kQueries && own < params_.num_queries) {
            const KeyRange range = QueryTiles::range(params_, own);
            if (range.begin < range.end) seen = range;
        }
        tile.batch = 0;
        tile.row = query;
        tile.num_rows = min(kQueries, params_.num_queries - query);
        tile.column = key;
        tile.num_stored = min(params_.share, params_.num_keys - key);
        tile.scale_row = 0;
        tile.k_begin = max(key, least_of_warp(seen.begin) / kKeyBlock * kKeyBlock);
        tile.k_end = min(key + tile.num_stored, most_of_warp(seen.end));
        if (tile.k_begin >= tile.k_end) tile.k_begin = tile.k_end = key;
    }

    const Params params_;
    const int query_tiles_;
    int first_ = 0;
    unsigned turn_ = 0;
};

}  // namespace schedule
