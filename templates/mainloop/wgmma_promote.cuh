// Main loop of sm_90 for FP8 operands with a scale for 128 of K: a token has one a block, 128 rows of weights share one.
//
// The tensor core sums 128 of K; fp32 adds these sums, times both scales, as DeepGEMM does. So the sums of one block
// and of all blocks take registers both, and one m64 tile is multiplied at a time: the two warpgroups fill each
// other's gaps.
//
// Roles: one thread loads operands by TMA, three warps the scales of every third stage, two warpgroups multiply.
#pragma once
#include <stdint.h>

#include "mainloop/shared_operands.cuh"
#include "number/integer.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

// Scales are fp32: of tokens [K / 128, rows up to a multiple of 4], of weights [batch, N / 128, K / 128].
struct PromotedSources {
    const tma::TensorMap &a, &b;
    const float *a_scale, *b_scale;
    int token_stride;  // from a block of K to the next

    __device__ __forceinline__ void prefetch() const {
        tma::prefetch(&a);
        tma::prefetch(&b);
    }
};

template <class Config>
struct WgmmaPromote : SharedOperands<Config, 32, 128> {
    using Base = SharedOperands<Config, 32, 128>;
    using Sources = PromotedSources;
    using typename Base::Accumulators;
    static constexpr int BLOCK_M = Base::BLOCK_M, BLOCK_N = Base::BLOCK_N, BLOCK_K = Base::BLOCK_K;
    using typename Base::Sums;
    static constexpr int kNumStages = Base::kNumStages, kTiles = Base::kTiles;
    static constexpr int kNumAssistants = Config::kNumTokenWarps, WEIGHT_BLOCKS = BLOCK_N / 128;
    static_assert(BLOCK_K == 128, "a stage is a block of scales");
    static_assert(kNumStages >= kNumAssistants, "a warp that sees every third use of a barrier is never a round behind");

    struct Storage : Base::Storage {
        // Products of a token's and the weights' scale.
        alignas(16) float scales[kNumStages][WEIGHT_BLOCKS][BLOCK_M];
    };

    // Warp token_warp of kNumAssistants: every kNumAssistants-th stage, so that loads of several are on their way.
    template <class Tiles>
    __device__ __forceinline__ static void assist(Storage& shared, const Sources& sources, Tiles tiles,
                                                  int num_columns, int depth, int token_warp) {
        const int lane = threadIdx.x % 32, blocks_of_row = ceil_div(depth, BLOCK_K);
        const int blocks_of_batch = ceil_div(num_columns, 128);
        RingState<kNumStages> ring;
        int turn = token_warp;
        for (; tiles.wait(); tiles.release()) {
            const schedule::Tile tile = tiles.tile();
            const int row_block = tile.batch * blocks_of_batch + tile.column / 128;
            for (int k = tile.k_begin; k < tile.k_end; k += BLOCK_K) {
                if (turn == 0) {
                    const int block = k / BLOCK_K;
                    const float* weights = sources.b_scale + int64_t(row_block) * blocks_of_row + block;
                    const float* tokens = sources.a_scale + tile.scale_row + int64_t(block) * sources.token_stride;
                    float of_weights[WEIGHT_BLOCKS], of_tokens[(BLOCK_M + 31) / 32];
#pragma unroll
                    for (int i = 0; i < WEIGHT_BLOCKS; ++i)  // the last block of columns may be past the matrix
                        of_weights[i] = tile.column / 128 + i < blocks_of_batch ? __ldg(weights + i * blocks_of_row) : 0;
#pragma unroll
                    for (int i = 0; i < (BLOCK_M + 31) / 32; ++i)
                        of_tokens[i] = i * 32 + lane < tile.num_rows ? __ldcg(tokens + i * 32 + lane) : 0;
                    mbarrier::wait(&shared.empty[ring.stage], ring.parity ^ 1);
#pragma unroll
                    for (int i = 0; i < WEIGHT_BLOCKS; ++i)
#pragma unroll
                        for (int j = 0; j < (BLOCK_M + 31) / 32; ++j)
                            if (j * 32 + lane < BLOCK_M)
                                shared.scales[ring.stage][i][j * 32 + lane] = of_weights[i] * of_tokens[j];
                    mbarrier::arrive(&shared.full[ring.stage]);  // every lane, of what it wrote
                    turn = kNumAssistants;
                }
                --turn;
                ring.advance();
            }
        }
    }

    // The two warpgroups that multiply.
    class Multiplier {
    public:
        __device__ __forceinline__ explicit Multiplier(Storage& shared) : shared_(shared), products_(shared) {}

        // The sums of the tile; those of rows that it does not have are anything.
        __device__ __forceinline__ void multiply(Accumulators& sums, const schedule::Tile& tile) {
#pragma unroll
            for (auto& of_tile : sums)
#pragma unroll
                for (float& sum : of_tile) sum = 0;
            const int k_end = tile.k_end;
            for (int k = tile.k_begin; k < k_end; k += BLOCK_K) {
                mbarrier::wait(&shared_.full[ring_.stage], ring_.parity);
#pragma unroll
                for (int t = 0; t < kTiles; ++t) {
                    Sums block;
                    wgmma::fence();
                    products_.issue(block, ring_.stage, t, false);
                    wgmma::commit();
                    if constexpr (Base::kTokenRows) {
                        const float2 scales = row_scales(t);
                        wgmma::wait<0>();
                        if (t == kTiles - 1) free_stage();
                        wgmma::fence_values<Base::kColumns / 2>(block);
                        promote_rows(sums[t], block, scales);
                    } else {
                        wgmma::wait<0>();
                        wgmma::fence_values<Base::kColumns / 2>(block);
                        promote_columns(sums[t], block);
                        if (t == kTiles - 1) free_stage();
                    }
                }
                ring_.advance();
            }
        }

    private:
        __device__ __forceinline__ void free_stage() const {
            __syncwarp();
            if (threadIdx.x % 32 == 0) mbarrier::arrive(&shared_.empty[ring_.stage]);
        }

        // Of the two tokens of a thread, eight rows apart.
        __device__ __forceinline__ float2 row_scales(int t) const {
            const int row = Base::Products::warpgroup() * 64 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
            const float* scales = shared_.scales[ring_.stage][t] + row;
            return make_float2(scales[0], scales[8]);
        }
        // sums += scale * block.
        __device__ __forceinline__ static void promote_rows(Sums& sums, const Sums& block, float2 scales) {
#pragma unroll
            for (int i = 0; i < Base::kColumns / 2; ++i) sums[i] += (i / 2 % 2 ? scales.y : scales.x) * block[i];
        }

        // The same where a thread has two neighbouring tokens in eight.
        __device__ __forceinline__ void promote_columns(Sums& sums, const Sums& block) const {
            const int weight_block = Base::Products::warpgroup() * kTiles / 2;
            const float* scales = shared_.scales[ring_.stage][weight_block] + threadIdx.x % 4 * 2;
#pragma unroll
            for (int j = 0; j < BLOCK_M / 8; ++j) {
                const float2 scale = *reinterpret_cast<const float2*>(scales + j * 8);
                sums[j * 4] += scale.x * block[j * 4];
                sums[j * 4 + 1] += scale.y * block[j * 4 + 1];
                sums[j * 4 + 2] += scale.x * block[j * 4 + 2];
                sums[j * 4 + 3] += scale.y * block[j * 4 + 3];
            }
        }

        Storage& shared_;
        const typename Base::Products products_;
        RingState<kNumStages> ring_;
    };
};

}  // namespace mainloop
