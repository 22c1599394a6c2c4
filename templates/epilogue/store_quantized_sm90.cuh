// E4M3 of alpha * sums + bias, with its scales, from the accumulators of wgmma, whose rows are rows of out.
#pragma once
#include <stdint.h>

#include "epilogue/quantize_rows_sm90.cuh"
#include "number/bias.cuh"
#include "ptx/launch.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

template <class Config>
struct StoreQuantizedSm90 {
    static constexpr int kNumWarps = 0;  // of its own
    using Quantized = QuantizedRows<Config::BLOCK_M == 64>;
    static constexpr int kValues = Quantized::kValues;

    struct Params {
        const float *alpha, *bias;  // of each batch; bias of each column, too, or null
        QuantizedOut out;
    };
    using Storage = typename Quantized::Storage;
    __device__ __forceinline__ static void init(Storage&) {}

    // What a warp that multiplies does with its tiles.
    class Consumer {
    public:
        __device__ __forceinline__ Consumer(Storage& shared, const Params& params)
            : quantized_(shared, params.out), params_(params) {}

        template <int kTiles>
        __device__ __forceinline__ void finish(const float (&sums)[kTiles][2 * kValues], const schedule::Tile& tile) {
            const int warp = thread_index_again() / 32 - 4, lane = thread_index_again() % 32;
            const int num_columns = params_.out.num_columns;
            const float alpha = params_.alpha == nullptr ? 1 : params_.alpha[tile.batch];
            const float* const bias =
                params_.bias == nullptr ? nullptr : params_.bias + int64_t(tile.batch) * num_columns;
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
                const int first = tile.column + t * fp8::kBlock;
                if (first >= num_columns) return;  // of all warps
                float values[2][kValues];
#pragma unroll
                for (int i = 0; i < kValues; i += 2) {
                    const int column = first + Quantized::column(warp, lane, i);
                    const float2 pair = bias::load_pair(bias, column, column < num_columns);
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float* const two = &sums[t][i * 2 + half * 2];
                        values[half][i] = bias::apply(alpha, two[0], pair.x);
                        values[half][i + 1] = bias::apply(alpha, two[1], pair.y);
                    }
                }
                quantized_.store(values, tile, first);
            }
        }

    private:
        Quantized quantized_;
        const Params& params_;
    };
};

}  // namespace epilogue
