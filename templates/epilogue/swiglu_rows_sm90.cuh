// Activates a gate and its up, which a thread has at the same place of two accumulators of wgmma, and quantises to
// E4M3.
#pragma once
#include <stdint.h>

#include "epilogue/quantize_rows_sm90.cuh"
#include "number/bias.cuh"
#include "number/swiglu.cuh"
#include "ptx/launch.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

template <class Config>
struct SwigluRowsSm90 {
    static constexpr bool kShared = Config::BLOCK_M == 64;
    static constexpr int kNumWarps = 0;  // of its own
    using Quantized = QuantizedRows<kShared>;
    static constexpr int kValues = Quantized::kValues;

    struct Params {
        const float* bias;        // [batch, 2, num_columns], of gates and of ups; null: none
        const float* row_weight;  // null: 1
        QuantizedOut out;
        swiglu::Type intermediate;  // of gate and up
        swiglu::Type activated;     // of the value before it is quantised
        swiglu::Parameters activation;
    };
    using Storage = typename Quantized::Storage;
    __device__ __forceinline__ static void init(Storage&) {}

    // What a warp that multiplies does with its tiles.
    class Consumer {
    public:
        __device__ __forceinline__ Consumer(Storage& shared, const Params& params)
            : quantized_(shared, params.out), params_(params) {}

        __device__ __forceinline__ void finish(const float (&sums)[2][2 * kValues], const schedule::Tile& tile) {
            const int warp = thread_index_again() / 32 - 4, lane = thread_index_again() % 32;
            float values[2][kValues];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float ups[kValues];
#pragma unroll
                for (int i = 0; i < kValues; ++i) {
                    values[half][i] = sums[0][i / 2 * 4 + half * 2 + i % 2];
                    ups[i] = sums[1][i / 2 * 4 + half * 2 + i % 2];
                }
                if (params_.bias != nullptr) {
                    add_bias(values[half], tile, 0, warp, lane);
                    add_bias(ups, tile, 1, warp, lane);
                }
                swiglu::round_to(values[half], params_.intermediate);
                swiglu::round_to(ups, params_.intermediate);
                swiglu::apply(values[half], ups, params_.activation);
                weigh(values[half], tile, Quantized::first_row(warp) + lane / 4 + half * 8);
                swiglu::round_to(values[half], params_.activated);
            }
            quantized_.store(values, tile, tile.column);
        }

    private:
        __device__ __forceinline__ void add_bias(float (&values)[kValues], const schedule::Tile& tile, int part,
                                                 int warp, int lane) const {
            const int num_columns = params_.out.num_columns;
            const float* const bias = params_.bias + int64_t(tile.batch * 2 + part) * num_columns;
#pragma unroll
            for (int i = 0; i < kValues; i += 2) {
                const int column = tile.column + Quantized::column(warp, lane, i);
                const float2 pair = bias::load_pair(bias, column, column < num_columns);
                values[i] = __fadd_rn(values[i], pair.x), values[i + 1] = __fadd_rn(values[i + 1], pair.y);
            }
        }

        __device__ __forceinline__ void weigh(float (&values)[kValues], const schedule::Tile& tile, int row) const {
            if (params_.row_weight == nullptr) return;
            const float weight = row < tile.num_rows ? params_.row_weight[tile.row + row] : 0;
#pragma unroll
            for (float& value : values) value = __fmul_rn(value, weight);
        }

        Quantized quantized_;
        const Params& params_;
    };
};

}  // namespace epilogue
