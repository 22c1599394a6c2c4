// Activates a gate and its up, which a thread has at the same place of two accumulators of wgmma, and stores what comes
// of it as StoreSm90 does: of 128 weight rows the first 64 are gates, and the others their ups.
#pragma once
#include <stdint.h>

#include "epilogue/store_sm90.cuh"
#include "number/bias.cuh"
#include "number/swiglu.cuh"
#include "ptx/launch.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

template <class Config, class Out>
struct StoreGatedSm90 {
    static_assert(Config::BLOCK_N == 256, "a warpgroup has a tile of gates and one of their ups");
    using Store = StoreSm90<Config, Out>;
    static constexpr int kNumWarps = 0;  // of its own
    static constexpr int kSums = Config::BLOCK_M / 2, kValues = Store::kTokens / 2;  // of a lane; that are stored at once

    struct Params {
        const float *alpha, *up_alpha;  // of gate, and of up; null: that of gate
        const float* bias;              // in the order of weight rows; null: none
        const float* row_weight;        // null: 1
        typename Store::Params out;
        swiglu::Type intermediate;  // of gate and up
        swiglu::Parameters activation;
    };
    using Storage = typename Store::Storage;
    __device__ __forceinline__ static void init(Storage& shared) { Store::init(shared); }

    // What a warp that multiplies does with its tiles.
    class Consumer {
    public:
        __device__ __forceinline__ Consumer(Storage& shared, const Params& params)
            : store_(shared, params.out), params_(params) {}

        __device__ __forceinline__ void finish(const float (&sums)[2][kSums], const schedule::Tile& tile) {
            const Affine gate(params_, tile, 0), up(params_, tile, 1);
            const int warp = thread_index_again() / 32 - 4;
            // As they are stored: of all at once, the sums would need registers of their own beside their products.
            store_.store(
                [&](int first) {
                    return activated(&sums[0][first / 2], &sums[1][first / 2], gate, up, tile, first);
                },
                tile, tile.column / 2 + warp / 4 * 64 + warp % 4 * 16, warp);
        }

    private:
        // What the sums of a lane get: of gates (part 0) or ups, in two rows of weights.
        struct Affine {
            float alpha, bias[2];

            __device__ __forceinline__ Affine(const Params& params, const schedule::Tile& tile, int part) {
                const int warp = thread_index_again() / 32 - 4, lane = thread_index_again() % 32;
                const int row = tile.column + warp / 4 * 128 + part * 64 + warp % 4 * 16 + lane / 4;
                const int num_rows = 2 * params.out.num_columns;
                alpha = __ldcg((part == 0 || params.up_alpha == nullptr ? params.alpha : params.up_alpha) + tile.batch);
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    bias[i] = bias::load(params.bias, static_cast<int64_t>(tile.batch) * num_rows + row + i * 8,
                                         row + i * 8 < num_rows);
            }
            __device__ __forceinline__ float of(float sum, int i) const {
                return bias::apply(alpha, sum, bias[i / 2 % 2]);
            }
        };

        struct Values {
            float values[kValues];

            __device__ __forceinline__ float operator[](int i) const { return values[i]; }
        };

        // Of the tokens from `first` on.
        __device__ __forceinline__ Values activated(const float* gate_sums, const float* up_sums, const Affine& gate,
                                                    const Affine& up, const schedule::Tile& tile, int first) const {
            Values result;
            float(&gates)[kValues] = result.values, ups[kValues];
#pragma unroll
            for (int i = 0; i < kValues; ++i) gates[i] = gate.of(gate_sums[i], i), ups[i] = up.of(up_sums[i], i);
            swiglu::round_to(gates, params_.intermediate);
            swiglu::round_to(ups, params_.intermediate);
            swiglu::apply(gates, ups, params_.activation);
            if (params_.row_weight != nullptr) weigh(gates, tile, first);
            return result;
        }

        __device__ __forceinline__ void weigh(float (&values)[kValues], const schedule::Tile& tile, int first) const {
#pragma unroll
            for (int i = 0; i < kValues; ++i) {
                const int token = first + i / 4 * 8 + thread_index_again() % 4 * 2 + i % 2;
                const float weight = token < tile.num_rows ? params_.row_weight[tile.row + token] : 0;
                values[i] = __fmul_rn(values[i], weight);
            }
        }

        typename Store::Consumer store_;
        const Params& params_;
    };
};

}  // namespace epilogue
