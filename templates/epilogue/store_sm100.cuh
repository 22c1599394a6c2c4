// out (+)= alpha * sums + bias from tensor memory, where the output lies transposed: a warp turns its 32 columns of out
// in shared memory, 1 KB at a time, and stores 16-byte vectors.
#pragma once
#include <stdint.h>

#include "epilogue/store_params.cuh"
#include "number/bias.cuh"
#include "number/output.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

template <class Config, class Out>
struct StoreSm100 {
    static constexpr int kStagingBytes = 1024;  // of a warp
    static constexpr int kVector = 16 / sizeof(Out), kRowVectors = 32 / kVector;
    static constexpr int kStagingTokens = kStagingBytes / (32 * sizeof(Out));
    static constexpr int kChunk = Config::BLOCK_M < kStagingTokens ? Config::BLOCK_M : kStagingTokens;  // tokens

    using Params = StoreParams<Out>;

    // What a warp has of a tile: 32 columns of out, one a lane.
    class Warp {
    public:
        __device__ __forceinline__ Warp(const Params& params, const schedule::Tile& tile, int warp, uint8_t* staging)
            : staging_(staging),
              stride_(params.stride()),
              num_rows_(tile.num_rows),
              accumulate_(params.accumulate),
              heads_(params.heads),
              first_column_(tile.column + warp * 32) {
            const int column = first_column_, own_column = column + threadIdx.x % 32;
            alpha_ = params.factor(tile.batch);
            bias_ = bias::load(params.bias, static_cast<int64_t>(tile.batch) * params.num_columns + own_column,
                               own_column < params.num_columns);
            num_columns_ = params.num_columns - column;
            out_ = params.out_of(tile.batch) + static_cast<int64_t>(tile.row) * stride_ + column;
        }

        // kChunk tokens of the tile, from `begin` on.
        __device__ __forceinline__ void store(const uint32_t (&values)[kChunk], int begin) const {
            const int lane = threadIdx.x % 32;
            Out before[kChunk];
            if (accumulate_) fetch(before, begin);
#pragma unroll
            for (int token = 0; token < kChunk; ++token) {
                float value = bias::apply(alpha_, __uint_as_float(values[token]), bias_);
                if (accumulate_) value += static_cast<float>(before[token]);
                reinterpret_cast<Out*>(staging_)[token * 32 + lane] = output::convert<Out>(value);
            }
            __syncwarp();
#pragma unroll
            for (int vector = lane; vector < kChunk * kRowVectors; vector += 32) {
                const int row = begin + vector / kRowVectors, column = vector % kRowVectors * kVector;
                if (row < num_rows_ && column < num_columns_)
                    *vector_of_out(row, column) = reinterpret_cast<const uint4*>(staging_)[vector];
            }
            __syncwarp();  // before the buffer is written again
        }

        // Zeros in the rows from `begin` to `end`, which are padding.
        __device__ __forceinline__ void clear(int begin, int end) const {
            for (int vector = begin * kRowVectors + threadIdx.x % 32; vector < end * kRowVectors; vector += 32)
                if (const int column = vector % kRowVectors * kVector; column < num_columns_)
                    *vector_of_out(vector / kRowVectors, column) = uint4{};
        }

    private:
        // What out holds of the tokens from `begin` on, in the lane's column.
        __device__ __forceinline__ void fetch(Out (&elements)[kChunk], int begin) const {
            const int lane = threadIdx.x % 32;
#pragma unroll
            for (int vector = lane; vector < kChunk * kRowVectors; vector += 32) {
                const int row = begin + vector / kRowVectors, column = vector % kRowVectors * kVector;
                reinterpret_cast<uint4*>(staging_)[vector] =
                    row < num_rows_ && column < num_columns_ ? *vector_of_out(row, column) : uint4{};
            }
            __syncwarp();
#pragma unroll
            for (int token = 0; token < kChunk; ++token)
                elements[token] = reinterpret_cast<const Out*>(staging_)[token * 32 + lane];
            __syncwarp();  // before the buffer is written again
        }
        __device__ __forceinline__ uint4* vector_of_out(int row, int column) const {
            const int place = heads_.place(first_column_ + column) - first_column_;
            return reinterpret_cast<uint4*>(out_ + static_cast<int64_t>(row) * stride_ + place);
        }

        uint8_t* const staging_;
        const int stride_, num_rows_;
        const bool accumulate_;
        const HeadSplit heads_;
        const int first_column_;
        int num_columns_;  // from the warp's first on
        float alpha_, bias_;
        Out* out_;
    };
};

}  // namespace epilogue
