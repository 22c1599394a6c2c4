// out = alpha * sums + bias from the accumulators of wgmma, whose rows are rows of out, 64 for both warpgroups, which
// have half of the columns each; zeros in rows of padding.
//
// These are tiles of few columns, many of which make one wave: a thread stores the two neighbours that it has of a row,
// since bringing rows in order takes longer than what is stored.
#pragma once
#include <stdint.h>

#include "epilogue/store_params.cuh"
#include "number/output.cuh"
#include "ptx/launch.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

template <class Config, class Out>
struct StorePairsSm90 {
    static constexpr int kNumWarps = 0;  // of its own
    static constexpr int kColumns = Config::BLOCK_N / 2;  // of a warpgroup
    static constexpr int kSums = kColumns / 2;            // of a thread: two rows, two columns in eight
    static_assert(Config::BLOCK_M <= 64, "both warpgroups have all rows");

    using Params = StoreParams<Out>;
    struct Storage {};
    __device__ __forceinline__ static void init(Storage&) {}

    // What a warp that multiplies does with its tiles.
    class Consumer {
    public:
        __device__ __forceinline__ Consumer(Storage&, const Params& params) : params_(params) {}

        __device__ __forceinline__ void finish(const float (&sums)[1][kSums], const schedule::Tile& tile) const {
            if (params_.bias == nullptr && !params_.accumulate) store<false>(sums[0], tile);
            else store<true>(sums[0], tile);
        }

    private:
        template <bool kAdds>
        __device__ __forceinline__ void store(const float (&sums)[kSums], const schedule::Tile& tile) const {
            const int warp = thread_index_again() / 32 - 4, lane = thread_index_again() % 32;
            const int first_column = tile.column + warp / 4 * kColumns + lane % 4 * 2;
            const float alpha = params_.factor(tile.batch);
            const float* const bias = params_.bias_of(tile.batch);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = warp % 4 * 16 + lane / 4 + half * 8;
                Out* const out = params_.out_of(tile.batch) + int64_t(tile.row + row) * params_.stride();
#pragma unroll
                for (int i = 0; i < kColumns / 8; ++i) {
                    const int column = first_column + i * 8;
                    if (row >= tile.num_stored || column >= params_.num_columns) continue;
                    Out* const place = out + params_.heads.place(column);
                    const float2 pair = make_float2(sums[i * 4 + half * 2], sums[i * 4 + half * 2 + 1]);
                    float2 result = make_float2(alpha * pair.x, alpha * pair.y);
                    if constexpr (kAdds) result = params_.add(pair, alpha, bias, column, place);
                    if (row >= tile.num_rows) result = make_float2(0, 0);
                    output::store_pair(place, result.x, result.y);
                }
            }
        }

        const Params& params_;
    };
};

}  // namespace epilogue
