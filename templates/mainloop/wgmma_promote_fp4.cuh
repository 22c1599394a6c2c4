// Main loop of sm_90 for FP8 tokens with a scale for 128 of K and MXFP4 weights: weights . tokens^T by wgmma on E4M3.
//
// Weights are the 64 rows of the instruction. They become E4M3 in its registers, which is exact, and the tensor core
// sums a block of 32 that shares a scale. fp32 adds the four blocks of a stage, each times its scale, then the stage,
// times that of the token. While a block is multiplied the next ones are converted.
//
// Roles: one thread loads by TMA, two warpgroups convert weights and multiply.
#pragma once
#include <math.h>
#include <stdint.h>

#include "mainloop/promoted_fp4_sources.cuh"
#include "number/element.cuh"
#include "number/fp8.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma_e4m3.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

template <class Config>
struct WgmmaPromoteFp4 {
    using Sources = PromotedFp4Sources;
    static constexpr int BLOCK_M = Config::BLOCK_M, BLOCK_N = Config::BLOCK_N, BLOCK_K = Config::BLOCK_K;
    static constexpr int kNumStages = Config::kNumStages, kNumConsumerWarps = 8;
    static constexpr int kScaleK = 32, kBlocks = BLOCK_K / kScaleK;  // of a stage, by their scales
    static constexpr int kRunning = BLOCK_M == 16 || BLOCK_M == 64 ? 4 : 1;  // products, as registers allow
    static constexpr int PACKED_BYTES = BLOCK_K / 2, kTokenScales = (BLOCK_M + 4 + 31) / 32 * 32;
    static constexpr int BYTES_PER_STAGE =
        BLOCK_M * BLOCK_K + BLOCK_N * (PACKED_BYTES + kBlocks) + (BLOCK_M + 4) * sizeof(float);
    static constexpr bool kTokensMnMajor = false, kWeightsMnMajor = false;
    static_assert(kBlocks == 4, "a stage is a word of scales");
    static_assert(BLOCK_N == 128, "a warpgroup multiplies 64 rows");

    struct Storage {  // aligned to 1024 bytes, where the swizzle repeats
        uint8_t weights[kNumStages][BLOCK_N * PACKED_BYTES];
        uint8_t tokens[kNumStages][BLOCK_M * BLOCK_K];
        alignas(128) float token_scales[kNumStages][kTokenScales];  // TMA writes to multiples of 128 bytes
        uint32_t weight_scales[kNumStages][BLOCK_N];
        mbarrier::Barrier full[kNumStages], empty[kNumStages];
    };
    using Sums = float[BLOCK_M / 2];
    using Accumulators = Sums[1];

    __device__ __forceinline__ static void init(Storage& shared) {
        for (int s = 0; s < kNumStages; ++s) {
            mbarrier::init(&shared.full[s], 1);
            mbarrier::init(&shared.empty[s], kNumConsumerWarps);
        }
    }

    __device__ __forceinline__ static StagePlaces places(Storage& shared, int stage) {
        return {shared.weights[stage], shared.tokens[stage], reinterpret_cast<uint8_t*>(shared.weight_scales[stage]),
                reinterpret_cast<uint8_t*>(shared.token_scales[stage])};
    }
    // Of element k of a token in its map.
    __device__ __forceinline__ static int coordinate(int k) { return k; }

    // Nothing is left for a warp beside the one that loads.
    template <class Tiles>
    __device__ __forceinline__ static void assist(Storage&, Tiles tiles, int) {
        while (tiles.wait()) tiles.release();
    }

    // The two warpgroups that multiply.
    class Multiplier {
    public:
        __device__ __forceinline__ Multiplier(Storage& shared, const Sources&, int, int)
            : shared_(shared),
              tokens_(wgmma::descriptor_128b(shared.tokens[0])),
              row_((threadIdx.x / 32 - 4) * 16 + threadIdx.x % 32 / 4) {
            // Block 0 of the row, under the 64-byte swizzle: another block flips two bits.
            weights_begin_ = row_ * PACKED_BYTES + (row_ / 2 % 4 << 4) + threadIdx.x % 4 * 2;
        }

        // The sums of the tile; those of rows that it does not have are anything.
        __device__ __forceinline__ void multiply(Accumulators& sums, const schedule::Tile& tile) {
#pragma unroll
            for (float& sum : sums[0]) sum = 0;
            first_token_ = tile.scale_row % 4;
            for (int left = tile.k_end - tile.k_begin; left > 0; left -= BLOCK_K) {
                mbarrier::wait(&shared_.full[ring_.stage], ring_.parity);
                multiply_stage(sums[0], left);
                __syncwarp();
                if (threadIdx.x % 32 == 0) mbarrier::arrive(&shared_.empty[ring_.stage]);
                ring_.advance();
            }
            // A scale that is no number has left infinity, or NaN already.
#pragma unroll
            for (float& sum : sums[0]) sum = fabsf(sum) < INFINITY ? sum : NAN;
        }

    private:
        using Elements = uint32_t[4];  // of a block, as the instruction takes them

        // sums += the products of a stage, of which `left` of K are there.
        __device__ __forceinline__ void multiply_stage(Sums& sums, int left) const {
            uint32_t packed[2][4];  // a block is loaded while the one before is converted
            load(packed[0], 0);
            float2 scales[kBlocks];
            load_scales(scales, left);
            Sums products[kRunning], stage_sums;
            Elements elements[kRunning];
#pragma unroll
            for (int i = 0; i < kBlocks + kRunning - 1; ++i) {
                if (i + 1 < kBlocks) load(packed[(i + 1) % 2], i + 1);
                if (i < kBlocks) start(products[i % kRunning], elements[i % kRunning], packed[i % 2], i);
                const int done = i - (kRunning - 1);
                if (done < 0) continue;
                wait_for(products[done % kRunning], min(kBlocks - 1, i) - done);
                add(stage_sums, products[done % kRunning], scales[done], done > 0);
            }
            promote(sums, stage_sums);
        }

        __device__ __forceinline__ void start(Sums& products, Elements& elements, const uint32_t (&packed)[4],
                                              int i) const {
#pragma unroll
            for (int j = 0; j < 4; ++j) elements[j] = from_e2m1_(packed[j]);
            wgmma::fence();
            wgmma::mma_e4m3<BLOCK_M>(products, elements,
                                     tokens_ + ring_.stage * (BLOCK_M * BLOCK_K >> 4) + i * (kScaleK >> 4));
            wgmma::commit();
        }

        // Products behind which `later` others are running.
        __device__ __forceinline__ static void wait_for(Sums& products, int later) {
            if (later == 0) wgmma::wait<0>();
            else if (later == 1) wgmma::wait<1>();
            else if (later == 2) wgmma::wait<2>();
            else wgmma::wait<3>();
            wgmma::fence_values<BLOCK_M / 2>(products);
        }

        // What a thread has of block i: of its two rows four neighbours in either half.
        __device__ __forceinline__ void load(uint32_t (&packed)[4], int i) const {
            const uint8_t* block = shared_.weights[ring_.stage] + (weights_begin_ ^ i << 4);
#pragma unroll
            for (int j = 0; j < 4; ++j)
                packed[j] = *reinterpret_cast<const uint16_t*>(block + j % 2 * (8 * PACKED_BYTES) + j / 2 * 8);
        }

        // Of the two rows, block by block; 0 is 0, and 0xFF infinite. Behind K they may be anything.
        __device__ __forceinline__ void load_scales(float2 (&scales)[kBlocks], int left) const {
            const uint32_t* words = shared_.weight_scales[ring_.stage] + row_;
            uint32_t first = words[0], second = words[8];
            if (left < BLOCK_K) {
                const uint32_t there = (1u << left / kScaleK * 8) - 1;
                first &= there, second &= there;
            }
#pragma unroll
            for (int i = 0; i < kBlocks; ++i) scales[i] = make_float2(scale(first, i), scale(second, i));
        }
        __device__ __forceinline__ static float scale(uint32_t word, int i) {
            return __uint_as_float(i < 3 ? (word & 0xFFu << 8 * i) << (23 - 8 * i) : word >> 1 & 0x7F800000);
        }

        // sums (+)= scales * products, of the two rows.
        __device__ __forceinline__ static void add(Sums& sums, const Sums& products, float2 scales, bool accumulate) {
#pragma unroll
            for (int j = 0; j < BLOCK_M / 2; ++j) {
                const float scale = j % 4 < 2 ? scales.x : scales.y;
                sums[j] = accumulate ? sums[j] + scale * products[j] : scale * products[j];
            }
        }

        // sums += scales of tokens * those of the stage; a thread has two neighbouring tokens in eight.
        __device__ __forceinline__ void promote(Sums& sums, const Sums& of_stage) const {
            const float* tokens = shared_.token_scales[ring_.stage] + threadIdx.x % 4 * 2 + first_token_;
#pragma unroll
            for (int j = 0; j < BLOCK_M / 2; ++j) sums[j] += tokens[j / 4 * 8 + j % 2] * of_stage[j];
        }

        Storage& shared_;
        const uint64_t tokens_;
        const int row_;
        const fp8::FromE2m1 from_e2m1_;
        int weights_begin_;
        int first_token_;  // of the scales of the tile
        RingState<kNumStages> ring_;
    };
};

}  // namespace mainloop
