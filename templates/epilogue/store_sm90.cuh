// out = alpha * sums + bias from the accumulators of wgmma, whose rows are columns of out; zeros in rows of padding.
//
// A warp has 16 weight rows of each token. It turns a few tokens at a time in shared memory and stores 16-byte vectors.
#pragma once
#include <stdint.h>

#include "epilogue/store_params.cuh"
#include "layout/weight_rows.cuh"
#include "number/bias.cuh"
#include "number/output.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/stmatrix.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

template <class Config, class Out, class Rows = layout::PlainRows<Config::BLOCK_K / 2, Config::BLOCK_N / 128>>
struct StoreSm90 {
    static constexpr int BLOCK_M = Config::BLOCK_M;
    static constexpr int kNumConsumerWarps = 8, kTiles = Config::BLOCK_N / 128;
    static constexpr int kNumWarps = 0;  // of its own
    static constexpr int kTokens = BLOCK_M < 16 || sizeof(Out) == 4 ? 8 : 16;  // one vector a lane where possible
    static constexpr int ROW_BYTES = 16 * sizeof(Out) + 16;  // 16 weight rows; the pad keeps tokens off others' banks
    using WeightRows = Rows;

    using Params = StoreParams<Out>;
    struct alignas(16) Storage {
        uint8_t staging[kNumConsumerWarps][kTokens * ROW_BYTES];
    };
    __device__ __forceinline__ static void init(Storage&) {}

    // What a warp that multiplies does with its tiles.
    class Consumer {
    public:
        __device__ __forceinline__ Consumer(Storage& shared, const Params& params) : shared_(shared), params_(params) {}

        __device__ __forceinline__ void finish(const float (&accumulators)[kTiles][BLOCK_M / 2],
                                               const schedule::Tile& tile) {
            const int warp = thread_index_again() / 32 - 4;
#pragma unroll
            for (int t = 0; t < kTiles; ++t)
                store([&](int first) { return &accumulators[t][first / 2]; }, tile,
                      tile.column + (warp / 4 * kTiles + t) * 64 + warp % 4 * 16, warp);
        }

        // Of 16 columns of out; sums(first)[i]: a lane's of kTokens tokens from `first` on.
        template <class Sums>
        __device__ __forceinline__ void store(const Sums& sums, const schedule::Tile& tile, int column, int warp) {
            const int lane = thread_index_again() % 32, num_tokens = tile.num_stored, num_columns = params_.num_columns;
            const float alpha = params_.factor(tile.batch);
            uint8_t* const staging = shared_.staging[warp];
            float bias[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int row = column + WeightRows::permuted(lane / 4) + i * 8;
                bias[i] = bias::load(params_.bias, static_cast<int64_t>(tile.batch) * num_columns + row,
                                     row < num_columns);
            }
            Out* const out = params_.out_of(tile.batch) + static_cast<int64_t>(tile.row) * params_.stride();
#pragma unroll
            for (int first = 0; first < BLOCK_M; first += kTokens) {
                if (first < num_tokens) {
                    if (params_.accumulate) {
                        each_vector(lane, [&](int token, int part) {
                            const bool exists = first + token < tile.num_rows && column + part < num_columns;
                            place(staging, token, part) = exists ? *vector_of(out, first + token, column + part) : uint4{};
                        });
                        __syncwarp();
                    }
                    stage(staging, sums(first), alpha, bias, lane);
                    __syncwarp();
                    each_vector(lane, [&](int token, int part) {
                        if (first + token < num_tokens && column + part < num_columns)
                            *vector_of(out, first + token, column + part) =
                                first + token < tile.num_rows ? place(staging, token, part) : uint4{};
                    });
                    __syncwarp();
                }
            }
        }

    private:
        // Calls with every token of kTokens and every first column of 16 that a lane has a vector of. Neighbouring
        // lanes have neighbouring tokens: with the pad, eight of them touch every bank once.
        template <class Function>
        __device__ __forceinline__ static void each_vector(int lane, const Function& function) {
            constexpr int VECTOR = 16 / sizeof(Out), VECTORS_PER_TOKEN = 16 / VECTOR;
#pragma unroll
            for (int v = lane; v < kTokens * VECTORS_PER_TOKEN; v += 32) function(v % kTokens, v / kTokens * VECTOR);
        }
        __device__ __forceinline__ static uint4& place(uint8_t* staging, int token, int part) {
            return *reinterpret_cast<uint4*>(staging + token * ROW_BYTES + part * sizeof(Out));
        }
        __device__ __forceinline__ uint4* vector_of(Out* out, int token, int column) const {
            return reinterpret_cast<uint4*>(out + static_cast<int64_t>(token) * params_.stride() +
                                            params_.heads.place(column));
        }

        template <class Sums>
        __device__ __forceinline__ void stage(uint8_t* staging, const Sums& sums, float alpha, const float (&bias)[2],
                                              int lane) const {
            float values[kTokens / 2];
#pragma unroll
            for (int i = 0; i < kTokens / 2; ++i) {
                values[i] = bias::apply(alpha, sums[i], bias[i / 2 % 2]);
                if (params_.accumulate) values[i] += static_cast<float>(element(staging, i, lane));
            }
            if (params_.accumulate) __syncwarp();
            if constexpr (WeightRows::kInOrder && sizeof(Out) == 2) {
                uint32_t pairs[kTokens / 4];  // of eight tokens and eight weight rows each, the rows first
#pragma unroll
                for (int i = 0; i < kTokens / 4; ++i) pairs[i] = output::pack<Out>(values[2 * i], values[2 * i + 1]);
                stmatrix::store_transposed(mbarrier::shared_address(staging + (lane / 16 * 8 + lane % 8) * ROW_BYTES +
                                                                    lane / 8 % 2 * 16), pairs);
            } else {
#pragma unroll
                for (int i = 0; i < kTokens / 2; ++i) element(staging, i, lane) = output::convert<Out>(values[i]);
            }
        }
        // Of sum i of a lane.
        __device__ __forceinline__ static Out& element(uint8_t* staging, int i, int lane) {
            const int token = i / 4 * 8 + lane % 4 * 2 + i % 2, row = WeightRows::permuted(lane / 4) + i / 2 % 2 * 8;
            return *reinterpret_cast<Out*>(staging + token * ROW_BYTES + row * sizeof(Out));
        }

        Storage& shared_;
        const Params& params_;
    };
};

}  // namespace epilogue
