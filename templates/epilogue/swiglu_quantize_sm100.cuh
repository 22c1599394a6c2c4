// Quantised SwiGLU from tensor memory, whose lanes are gates and ups in turn.
//
// The 32 lanes of a warp are the gates and ups of 16 results of every token. Two lanes with a gate and its up take
// turns in activating tokens; in shared memory the results become rows, and each lane quantises 8 of them. A block of
// 32 is of two warps, which share the tokens: each quantises the blocks of one half.
#pragma once
#include <stdint.h>

#include "epilogue/swiglu_quantize.cuh"
#include "number/bias.cuh"
#include "number/minmax.cuh"
#include "ptx/launch.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

template <class Config, class Result>
struct SwigluQuantizeSm100 {
    static constexpr int kStagingBytes = 1024;  // of a warp
    static constexpr int kResults = 16, kStagingTokens = kStagingBytes / (kResults * sizeof(float));
    static constexpr int kChunk = Config::BLOCK_M < kStagingTokens ? Config::BLOCK_M : kStagingTokens;  // tokens
    static constexpr int kBlockWarps = Result::kBlock / kResults, kBlockLanes = Result::kBlock / 8;  // of a block
    static_assert(2 * kResults == 32 && 2 * kStagingTokens == 32, "two lanes a result, and two a token");
    static_assert(kBlockWarps == 1 || kChunk == kStagingTokens, "warps share whole chunks");
    using Params = swiglu::Epilogue<Result>;

    // Where a warp's results of a tile go.
    class Warp {
    public:
        __device__ __forceinline__ Warp(const Params& params, const schedule::Tile& tile, int warp, uint8_t* staging)
            : params_(params),
              tile_(tile),
              staging_(reinterpret_cast<float*>(staging)),
              warp_(warp % kBlockWarps),
              group_((tile.column / 32 + warp) / kBlockWarps),
              alpha_(params.alpha_of(threadIdx.x % 2)[tile.batch]),
              bias_(bias::load(params.bias,
                               params.bias_index(tile.batch, (tile.column / 32 + warp) * kResults) + threadIdx.x % 32,
                               group_ < params.num_groups)),
              result_(params.result, tile.batch) {}

        // kChunk tokens of the tile, from `begin` on.
        __device__ __forceinline__ void store(const uint32_t (&values)[kChunk], int begin) const {
            const int row = warp_ * (kStagingTokens / kBlockWarps) + threadIdx.x % 32 / kBlockLanes;
            const int token = begin + row;
            const float weight = token < tile_.num_rows ? params_.row_weight[tile_.row + token] : 0;  // in flight
            activate(values);
            synchronize();
            quantize(row, token, weight);
            synchronize();  // before the buffer is written again
        }

    private:
        // The warps of a block; they have barriers of their own.
        __device__ __forceinline__ static void synchronize() {
            if constexpr (kBlockWarps == 1) __syncwarp();
            else barrier_of<32 * kBlockWarps>(2 + threadIdx.x / (32 * kBlockWarps));
        }

        // Activates kChunk tokens of one gate or up a lane, and leaves a row of kResults of each in the staging
        // buffer. The vectors of 4 of every other pair of rows change places, so that they are read without bank
        // conflicts.
        __device__ __forceinline__ void activate(const uint32_t (&values)[kChunk]) const {
            const int element = threadIdx.x % 32 / 2, odd = threadIdx.x % 2;  // odd lanes have ups and take odd tokens
            float gates[kChunk / 2], ups[kChunk / 2];
#pragma unroll
            for (int i = 0; i < kChunk / 2; ++i) {
                const float even_token = bias::apply(alpha_, __uint_as_float(values[2 * i]), bias_);
                const float odd_token = bias::apply(alpha_, __uint_as_float(values[2 * i + 1]), bias_);
                const float received = __shfl_xor_sync(0xFFFFFFFF, odd ? even_token : odd_token, 1);
                gates[i] = odd ? received : even_token;
                ups[i] = odd ? odd_token : received;
            }
            swiglu::round_to(gates, params_.intermediate);
            swiglu::round_to(ups, params_.intermediate);
            swiglu::apply(gates, ups, params_.activation);
#pragma unroll
            for (int i = 0; i < kChunk / 2; ++i)
                staging_[(2 * i + odd) * kResults + (element ^ i % 2 * 4)] = gates[i];
        }

        // Quantises and stores 8 results of a token, `row` of the chunk, whose weight the lane has.
        __device__ __forceinline__ void quantize(uint32_t row, int token, float weight) const {
            const uint32_t part = threadIdx.x % kBlockLanes, half = part % 2;
            const float* const staging = staging_ + (static_cast<int>(part / 2) - warp_) * (kStagingBytes / 4);
            float results[8];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const uint32_t vector = row % kChunk * 4 + (half * 2 + i ^ row / 2 % 2);
                const float4 four = reinterpret_cast<const float4*>(staging)[vector];
                results[4 * i] = four.x, results[4 * i + 1] = four.y;
                results[4 * i + 2] = four.z, results[4 * i + 3] = four.w;
            }
#pragma unroll
            for (float& result : results) result = __fmul_rn(result, weight);
            swiglu::round_to(results, params_.activated);
            float amax = 0;
#pragma unroll
            for (const float result : results) amax = max_nan(amax, fabsf(result));
#pragma unroll
            for (int distance = 1; distance < kBlockLanes; distance *= 2)
                amax = max_nan(amax, __shfl_xor_sync(0xFFFFFFFF, amax, distance));
            const auto scale = result_.scale(amax);
#pragma unroll
            for (float& result : results) result = __fmul_rn(result, scale.multiplier);
            const typename Result::Packed packed = Result::pack(results);
            if (token >= tile_.num_rows) return;
            if (group_ < params_.num_groups) {
                const int64_t block = static_cast<int64_t>(tile_.row + token) * params_.num_groups + group_;
                reinterpret_cast<typename Result::Packed*>(params_.out)[kBlockLanes * block + part] = packed;
            }
            if (part == 0) params_.write_scale(tile_.scale_row + token, group_, scale.byte);
        }

        const Params& params_;
        const schedule::Tile tile_;
        float* const staging_;
        const int warp_;            // of those of a block
        const int group_;           // those after the last one are padding
        const float alpha_, bias_;  // of this lane's gate or up
        const typename Result::OfBatch result_;
    };
};

}  // namespace epilogue
