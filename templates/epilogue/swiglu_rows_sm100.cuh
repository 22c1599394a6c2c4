// Activates gates and ups that lie in the same lane of two parts of an accumulator, and quantises to E4M3.
//
// A lane is a column of out, so the maximum of a token is that of four warps: each finds its own by exchanging halves,
// and they meet in shared memory. There, too, bytes become rows.
#pragma once
#include <stdint.h>

#include "epilogue/gated_rows.cuh"
#include "epilogue/spread_groups.cuh"
#include "number/fp8.cuh"
#include "number/minmax.cuh"
#include "number/swiglu.cuh"
#include "ptx/launch.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

template <class Config>
struct SwigluRowsSm100 {
    static constexpr int kChunk = 16, kNumWarps = 4;  // tokens at a time
    static constexpr int kStagingBytes = kChunk * (32 + sizeof(float));  // of a warp: E4M3, then maxima
    static_assert(32 * kNumWarps == fp8::kBlock, "the columns of a tile share a scale");
    using Params = GatedRows;

    // What a warp has of a tile: 32 columns of out, one a lane.
    class Warp {
    public:
        __device__ __forceinline__ Warp(const Params& params, const schedule::Tile& tile, int warp, uint8_t* staging)
            : params_(params), tile_(tile), staging_(staging), warp_(warp) {
#pragma unroll
            for (int part = 0; part < 2; ++part)
                bias_[part] = params.bias_of(tile, part, tile.column + warp * 32 + threadIdx.x % 32);
        }

        // Gates and ups of kChunk tokens of the tile, from `begin` on.
        __device__ __forceinline__ void store(const uint32_t (&sums)[2][kChunk], int begin) const {
            const int lane = threadIdx.x % 32;
            const float weight = params_.weight_of(tile_, begin + lane % kChunk);  // in flight
            float values[kChunk], ups[kChunk];
#pragma unroll
            for (int i = 0; i < kChunk; ++i) {
                values[i] = __fadd_rn(__uint_as_float(sums[0][i]), bias_[0]);
                ups[i] = __fadd_rn(__uint_as_float(sums[1][i]), bias_[1]);
            }
            params_.activate(values, ups);
#pragma unroll
            for (int i = 0; i < kChunk; ++i)
                values[i] = __fmul_rn(values[i], __shfl_sync(0xFFFFFFFF, weight, i));
            swiglu::round_to(values, params_.activated);
            const fp8::BlockScale scale = Params::scale(largest_of_all(values));
            if (warp_ == 0 && lane < kChunk && begin + lane < tile_.num_rows)
                params_.write_scale(tile_, begin + lane, Params::code(scale));
            stage(values, scale.multiplier);
            write(begin);
            synchronize();  // before the buffers are written again
        }

        __device__ __forceinline__ void clear(int, int) const {
            params_.clear_padding(tile_, threadIdx.x, 32 * kNumWarps);
        }

    private:
        __device__ __forceinline__ static void synchronize() { barrier_of<32 * kNumWarps>(2); }

        __device__ __forceinline__ float* maxima(int warp) const {
            return reinterpret_cast<float*>(staging_ + (warp - warp_) * kStagingBytes + kChunk * 32);
        }

        // Of token lane % kChunk, over the columns of the tile.
        __device__ __forceinline__ float largest_of_all(const float (&values)[kChunk]) const {
            const int token = threadIdx.x % kChunk;
            float magnitudes[kChunk];
#pragma unroll
            for (int i = 0; i < kChunk; ++i) magnitudes[i] = fabsf(values[i]);
            float result = swiglu::detail::maximum<swiglu::Layout<32, kChunk, 32, 1>>(magnitudes);
            if (threadIdx.x % 32 < kChunk) maxima(warp_)[token] = result;
            synchronize();
#pragma unroll
            for (int warp = 0; warp < kNumWarps; ++warp) result = max_nan(result, maxima(warp)[token]);
            return result;
        }

        // Lane i has the multiplier of token i.
        __device__ __forceinline__ void stage(const float (&values)[kChunk], float multiplier) const {
            uint8_t* const column = staging_ + threadIdx.x % 32;
#pragma unroll
            for (int i = 0; i < kChunk; i += 2) {
                const uint16_t pair =
                    fp8::pack_e4m3(__fmul_rn(values[i], __shfl_sync(0xFFFFFFFF, multiplier, i)),
                                   __fmul_rn(values[i + 1], __shfl_sync(0xFFFFFFFF, multiplier, i + 1)));
                column[i * 32] = pair & 0xFF, column[(i + 1) * 32] = pair >> 8;
            }
            __syncwarp();
        }

        // Half of a row a lane.
        __device__ __forceinline__ void write(int begin) const {
            const int lane = threadIdx.x % 32, row = begin + lane / 2;
            const int column = tile_.column + warp_ * 32 + lane % 2 * 16;
            if (row < tile_.num_rows && column < params_.num_columns)
                *reinterpret_cast<uint4*>(params_.place(tile_, row, column)) =
                    reinterpret_cast<const uint4*>(staging_)[lane];
        }

        const Params& params_;
        const schedule::Tile tile_;
        uint8_t* const staging_;
        const int warp_;
        float bias_[2];  // of this lane's gate and up
    };
};

}  // namespace epilogue
