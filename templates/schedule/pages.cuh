// Persistent schedule of requests whose keys lie in pages: kQueries queries of a request, and its keys, a tile.
//
// A table says where the share of each CTA begins, in requests (by their first query) and blocks of keys; it ends where
// that of the next one begins. What is wrong in it leads to wrong shares, never out of the buffers. Queries of a request
// are next_n neighbours, or, where there are indices, neighbours with the same one; each sees the first keys, as many as
// its own length says.
//
// Of a Tile: batch is the row of the block table, row and num_rows are of queries, k_begin and k_end of keys.
#pragma once
#include <stdint.h>

#include "schedule/keys.cuh"
#include "schedule/tile.cuh"

namespace schedule {

template <int kQueries>
class PageTiles {
public:
    struct Params {
        const int* table;    // first query of a request and block, of each CTA, and of one more
        const int* lengths;  // of each query
        const int* indices;  // nullptr: requests have next_n queries each
        int num_queries, next_n, num_keys;  // at most so many keys of a query count
    };

    __device__ __forceinline__ explicit PageTiles(const Params& params)
        : params_(params), row_(first_query(blockIdx.x)), block_(block(blockIdx.x)), end_row_(first_query(blockIdx.x + 1)),
          end_block_(block(blockIdx.x + 1)) {}

    // The keys that a query sees.
    __device__ __forceinline__ static KeyRange range(const Params& params, int query) {
        return {0, max(0, min(__ldcg(params.lengths + query), params.num_keys))};
    }

    // A whole warp: the CTA's next tile; false when there is none left.
    __device__ __forceinline__ bool next(Tile& tile) {
        for (;;) {
            while (left_ == 0)
                if (!next_request()) return false;
            const int count = min(kQueries, left_), row = tile_row_;
            tile_row_ += count;
            left_ -= count;
            tile = {params_.indices != nullptr ? request_ : request_ / params_.next_n, row, count, 0, 0, 0, begin_,
                    min(end_, most_of_warp(length(row, count)))};
            if (tile.k_begin < tile.k_end) return true;
        }
    }

private:
    // Of the table; past L1, as all that an earlier grid may have written.
    __device__ __forceinline__ int first_query(int cta) const {
        const int row = max(0, min(__ldcg(params_.table + 2 * cta), params_.num_queries));
        return params_.indices != nullptr ? row : row / params_.next_n * params_.next_n;
    }
    __device__ __forceinline__ int block(int cta) const {
        return max(0, min(__ldcg(params_.table + 2 * cta + 1), params_.num_keys / kKeyBlock + 1));
    }

    // Of the lane's query, one of `count` from `first` on; 0 of others.
    __device__ __forceinline__ int length(int first, int count) const {
        const int lane = threadIdx.x % 32;
        return lane < count && first + lane < params_.num_queries ? range(params_, first + lane).end : 0;
    }

    // Whether there is one; the next one may be without keys.
    __device__ __forceinline__ bool next_request() {
        const bool is_last = row_ == end_row_;
        if (row_ >= params_.num_queries || row_ > end_row_ || (is_last && end_block_ == 0)) return false;
        request_ = tile_row_ = row_;
        int longest;
        left_ = params_.indices != nullptr ? run(longest) : regular(longest);
        begin_ = block_ * kKeyBlock;
        end_ = is_last ? min(longest, end_block_ * kKeyBlock) : longest;
        row_ += left_;
        block_ = 0;
        if (begin_ >= end_) left_ = 0;
        return true;
    }
    // How many queries the request has, and the longest one's length. Requests without keys count as one, if many.
    __device__ __forceinline__ int regular(int& longest) const {
        longest = most_of_warp(length(row_, params_.next_n));
        return longest == 0 && row_ + 32 <= end_row_ && most_of_warp(length(row_, 32)) == 0
                   ? 32 / params_.next_n * params_.next_n
                   : params_.next_n;
    }
    __device__ __forceinline__ int run(int& longest) const {
        const int index = __ldcg(params_.indices + row_);
        int count = 0;
        longest = 0;
        for (bool goes_on = true; goes_on;) {
            const int first = row_ + count, own = first + threadIdx.x % 32;
            const unsigned same =
                __ballot_sync(0xFFFFFFFF, own < params_.num_queries && __ldcg(params_.indices + own) == index);
            const int more = same == 0xFFFFFFFF ? 32 : __ffs(~same) - 1;
            longest = max(longest, most_of_warp(length(first, more)));
            count += more;
            goes_on = more == 32;
        }
        return count;
    }

    const Params params_;
    int row_, block_;  // of the next request
    const int end_row_, end_block_;
    int request_ = 0, left_ = 0, tile_row_ = 0;  // the request, and its queries that are in no tile yet
    int begin_ = 0, end_ = 0;                    // its keys
};

}  // namespace schedule
