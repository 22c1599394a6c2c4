// NVFP4 of SwiGLU from tensor memory, whose lanes are gates and ups in turn.
//
// The 32 lanes of a warp are the gates and ups of one block of 16 results of every token. Two lanes with a gate and its
// up take turns in activating tokens; in shared memory the results become rows, and two lanes quantise the block of a
// token.
#pragma once
#include <stdint.h>

#include "epilogue/swiglu_quantize.cuh"
#include "number/bias.cuh"
#include "number/minmax.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

template <class Config>
struct SwigluQuantizeSm100 {
    static constexpr int kStagingBytes = 1024;  // of a warp
    static constexpr int kStagingTokens = kStagingBytes / (nvfp4::kBlock * sizeof(float));
    static constexpr int kChunk = Config::BLOCK_M < kStagingTokens ? Config::BLOCK_M : kStagingTokens;  // tokens
    static_assert(2 * nvfp4::kBlock == 32 && 2 * kStagingTokens == 32, "two lanes a result, and two a token");
    using Params = swiglu::Epilogue;

    // Where a warp's blocks of a tile go, one of each token.
    class Warp {
    public:
        __device__ __forceinline__ Warp(const Params& params, const schedule::Tile& tile, int warp, uint8_t* staging)
            : params_(params), tile_(tile), staging_(reinterpret_cast<float*>(staging)) {
            const int lane = threadIdx.x % 32;
            group_ = tile.column / 32 + warp;
            alpha_ = params.alpha_of(lane % 2)[tile.batch];
            bias_ = bias::load(params.bias, params.bias_index(tile.batch, group_ * nvfp4::kBlock) + lane,
                               group_ < params.num_groups);
            encode_scale_ = nvfp4::encode_scale(params.global_scale[tile.batch], params.decode);
        }

        // kChunk tokens of the tile, from `begin` on.
        __device__ __forceinline__ void store(const uint32_t (&values)[kChunk], int begin) const {
            const int token = begin + threadIdx.x % 32 / 2;
            const float weight = token < tile_.num_rows ? params_.row_weight[tile_.row + token] : 0;  // in flight
            activate(values);
            __syncwarp();
            quantize(token, weight);
            __syncwarp();  // before the buffer is written again
        }

    private:
        // Activates kChunk tokens of one gate or up a lane, and leaves a row of kBlock results of each in the staging
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
                staging_[(2 * i + odd) * nvfp4::kBlock + (element ^ i % 2 * 4)] = gates[i];
        }

        // Quantises and stores these tokens; two lanes a token, whose weight they have.
        __device__ __forceinline__ void quantize(int token, float weight) const {
            const uint32_t row = threadIdx.x % 32 / 2, half = threadIdx.x % 2;
            float results[8];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const uint32_t vector = row % kChunk * 4 + (half * 2 + i ^ row / 2 % 2);
                const float4 four = reinterpret_cast<const float4*>(staging_)[vector];
                results[4 * i] = four.x, results[4 * i + 1] = four.y;
                results[4 * i + 2] = four.z, results[4 * i + 3] = four.w;
            }
#pragma unroll
            for (float& result : results) result = __fmul_rn(result, weight);
            swiglu::round_to(results, params_.activated);
            float amax = 0;
#pragma unroll
            for (const float result : results) amax = max_nan(amax, fabsf(result));
            amax = max_nan(amax, __shfl_xor_sync(0xFFFFFFFF, amax, 1));
            const nvfp4::BlockScale scale = nvfp4::block_scale(amax, encode_scale_, params_.ieee);
#pragma unroll
            for (float& result : results) result = __fmul_rn(result, scale.multiplier);
            const uint32_t packed = nvfp4::pack_e2m1(results);
            if (token >= tile_.num_rows) return;
            if (group_ < params_.num_groups) {
                const int64_t block = static_cast<int64_t>(tile_.row + token) * params_.num_groups + group_;
                reinterpret_cast<uint32_t*>(params_.out)[2 * block + half] = packed;
            }
            if (half == 0) params_.write_scale(tile_.scale_row + token, group_, scale.byte);
        }

        const Params& params_;
        const schedule::Tile tile_;
        float* const staging_;
        int group_;  // those after the last one are padding
        float alpha_, bias_, encode_scale_;  // alpha and bias of this lane's gate or up
    };
};

}  // namespace epilogue
