// Main loop of sm_90 for FP8 tokens with a scale for 128 of K and MXFP4 weights: weights . tokens^T by wgmma, E5M2 . E4M3.
//
// Weights are the 64 rows of the instruction. In its registers they become E5M2, which has room for what the scales of a
// stage's four blocks differ by: they are exact down to 2^26 below the largest, and nothing below that. So the tensor core
// sums 128 of K, as it does of FP8, and fp32 adds these sums, times a scale of the row and that of the token. While a
// stage is multiplied the next one is converted.
//
// Roles: one thread loads by TMA, three warps turn the scales of a row into tables of E5M2, two warpgroups convert
// weights and multiply.
#pragma once
#include <stdint.h>

#include "mainloop/promoted_fp4_sources.cuh"
#include "number/element.cuh"
#include "number/integer.cuh"
#include "number/mx_table.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma_e5m2.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

template <class Config>
struct WgmmaPromoteFp4 {
    using Sources = PromotedFp4Sources;
    static constexpr int BLOCK_M = Config::BLOCK_M, BLOCK_N = Config::BLOCK_N, BLOCK_K = Config::BLOCK_K;
    static constexpr int kNumStages = Config::kNumStages, kNumConsumerWarps = 8;
    static constexpr int kScaleK = 32, kBlocks = BLOCK_K / kScaleK;  // of a stage, by their scales
    static constexpr int PACKED_BYTES = BLOCK_K / 2, kTokenScales = (BLOCK_M + 4 + 31) / 32 * 32;
    static constexpr int BYTES_PER_STAGE =
        BLOCK_M * BLOCK_K + BLOCK_N * (PACKED_BYTES + kBlocks) + (BLOCK_M + 4) * sizeof(float);
    static constexpr bool kTokensMnMajor = false, kWeightsMnMajor = false;
    static_assert(kBlocks == 4, "a stage is a word of scales");
    static_assert(BLOCK_N == 128, "a warpgroup multiplies 64 rows");

    struct Storage {  // aligned to 1024 bytes, where the swizzle repeats
        uint8_t weights[kNumStages][BLOCK_N * PACKED_BYTES];
        uint8_t tokens[kNumStages][BLOCK_M * BLOCK_K];
        mx::Table tables[kNumStages][kBlocks / 2][BLOCK_N][2];  // of two blocks a row has its tables side by side
        alignas(128) float token_scales[kNumStages][kTokenScales];  // TMA writes to multiples of 128 bytes
        uint32_t weight_scales[kNumStages][BLOCK_N];
        float common_scales[kNumStages][BLOCK_N];
        mbarrier::Barrier full[kNumStages], ready[kNumStages], empty[kNumStages];
    };
    using Sums = float[BLOCK_M / 2];
    using Accumulators = Sums[1];

    // Every lane arrives: racecheck does not see what lanes have read before one of them arrives for all.
    __device__ __forceinline__ static void init(Storage& shared, int part, int parts) {
        for (int s = part; s < kNumStages; s += parts) {
            mbarrier::init(&shared.full[s], 1);
            mbarrier::init(&shared.ready[s], 32);
            mbarrier::init(&shared.empty[s], kNumConsumerWarps * 32);
        }
    }

    __device__ __forceinline__ static StagePlaces places(Storage& shared, int stage) {
        return {shared.weights[stage], shared.tokens[stage], shared.weight_scales[stage], shared.token_scales[stage]};
    }
    // Of element k of a token in its map.
    __device__ __forceinline__ static int token_coordinate(int k) { return k; }
    __device__ __forceinline__ static int weight_coordinate(int k) { return k; }

    // Tables of a stage by one warp, the same one each time around the ring.
    template <class Tiles>
    __device__ __forceinline__ static void assist(Storage& shared, Tiles tiles, int table_warp) {
        RingState<kNumStages> ring;
        for (; tiles.wait(); tiles.release()) {
            for (int left = tiles.tile().k_end - tiles.tile().k_begin; left > 0; left -= BLOCK_K) {
                if (ring.stage % Config::kNumTokenWarps == table_warp) {
                    mbarrier::wait(&shared.full[ring.stage], ring.parity);
                    write_tables(shared, ring.stage, left);
                    mbarrier::arrive(&shared.ready[ring.stage]);
                }
                ring.advance();
            }
        }
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
            int stages = ceil_div(tile.k_end - tile.k_begin, BLOCK_K);
            Elements elements[2][kBlocks];  // being multiplied, and being filled
            if (stages > 0) convert(elements[0]);  // a share of K may be empty
#pragma unroll 1
            for (; stages > 1; stages -= 2) {
                multiply_stage(sums[0], elements[0], elements[1], true);
                multiply_stage(sums[0], elements[1], elements[0], stages > 2);
            }
            if (stages > 0) multiply_stage(sums[0], elements[0], elements[1], false);
        }

    private:
        using Elements = uint32_t[4];  // of a block, as the instruction takes them

        // sums += the products of a stage; meanwhile the next one is converted, if there is another.
        __device__ __forceinline__ void multiply_stage(Sums& sums, const Elements (&elements)[kBlocks],
                                                       Elements (&next)[kBlocks], bool another) {
            Sums products;
            const int stage = ring_.previous();
            wgmma::fence();
#pragma unroll
            for (int i = 0; i < kBlocks; ++i)
                wgmma::mma_e5m2<BLOCK_M>(products, elements[i],
                                         tokens_ + stage * (BLOCK_M * BLOCK_K >> 4) + i * (kScaleK >> 4), i > 0);
            wgmma::commit();
            if (another) convert(next);
            wgmma::wait<0>();
            wgmma::fence_values<BLOCK_M / 2>(products);
            promote(sums, products, stage);
            mbarrier::arrive(&shared_.empty[stage]);
        }

        // What a thread has of a stage: in each block, of its two rows four neighbours in either half.
        __device__ __forceinline__ void convert(Elements (&elements)[kBlocks]) {
            mbarrier::wait(&shared_.ready[ring_.stage], ring_.parity);
#pragma unroll
            for (int pair = 0; pair < kBlocks / 2; ++pair) {
                mx::Table tables[2][2];
                load_tables(tables[0], pair, row_);
                load_tables(tables[1], pair, row_ + 8);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int block = pair * 2 + i;
                    const uint8_t* packed = shared_.weights[ring_.stage] + (weights_begin_ ^ block << 4);
#pragma unroll
                    for (int j = 0; j < 4; ++j)
                        elements[block][j] = tables[j % 2][i].elements(*reinterpret_cast<const uint16_t*>(
                            packed + j % 2 * (8 * PACKED_BYTES) + j / 2 * 8));
                }
            }
            ring_.advance();
        }
        __device__ __forceinline__ void load_tables(mx::Table (&tables)[2], int pair, int row) const {
            const uint4 both = *reinterpret_cast<const uint4*>(shared_.tables[ring_.stage][pair][row]);
            tables[0] = {both.x, both.y}, tables[1] = {both.z, both.w};
        }

        // sums += scales of both * products; a thread has two rows, and two neighbouring tokens in eight.
        __device__ __forceinline__ void promote(Sums& sums, const Sums& products, int stage) const {
            const float* rows = shared_.common_scales[stage] + row_;
            const float first = rows[0], second = rows[8];
            const float* tokens = shared_.token_scales[stage] + threadIdx.x % 4 * 2 + first_token_;
#pragma unroll
            for (int j = 0; j < BLOCK_M / 2; ++j)
                sums[j] += (j % 4 < 2 ? first : second) * tokens[j / 4 * 8 + j % 2] * products[j];
        }

        Storage& shared_;
        const uint64_t tokens_;
        const int row_;
        int weights_begin_;
        int first_token_;  // of the scales of the tile
        RingState<kNumStages> ring_;  // what is converted next
    };

private:
    // Of a stage, of which `left` of K are there; a warp.
    __device__ __forceinline__ static void write_tables(Storage& shared, int stage, int left) {
        const int lane = threadIdx.x % 32;
        const uint32_t there = left < BLOCK_K ? (1u << left / kScaleK * 8) - 1 : ~0u;  // behind K they may be anything
        uint32_t scales[BLOCK_N / 32];
#pragma unroll
        for (int i = 0; i < BLOCK_N / 32; ++i) scales[i] = shared.weight_scales[stage][i * 32 + lane] & there;
#pragma unroll
        for (int i = 0; i < BLOCK_N / 32; ++i) {
            const int row = i * 32 + lane;
            const mx::CommonScale common(scales[i]);
            shared.common_scales[stage][row] = common.value();
#pragma unroll
            for (int block = 0; block < kBlocks; block += 2) {
                const mx::Table first = common.table(scales[i] >> 8 * block & 0xFF);
                const mx::Table second = common.table(scales[i] >> 8 * block + 8 & 0xFF);
                *reinterpret_cast<uint4*>(shared.tables[stage][block / 2][row]) =
                    make_uint4(first.smaller, first.larger, second.smaller, second.larger);
            }
        }
    }
};

}  // namespace mainloop
