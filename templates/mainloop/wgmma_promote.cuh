// Main loop of sm_90 for FP8 operands with a scale for 128 of K: a token has one a block; 128 rows of weights share one,
// or each has its own (Config::kWeightRowScales).
//
// The tensor core sums 128 of K; fp32 adds these sums, times both scales, as DeepGEMM does. So the sums of one block
// and of all blocks take registers both. Where they leave room, with one m64 tile a warpgroup, a few blocks are multiplied
// one behind the other, and added meanwhile; of two tiles one is multiplied at a time, and the two warpgroups fill each
// other's gaps.
//
// Roles: one thread loads operands and scales of rows by TMA, two warpgroups multiply, and read the scales of blocks.
#pragma once
#include <stdint.h>

#include "mainloop/promoted_sources.cuh"
#include "mainloop/shared_operands.cuh"
#include "number/integer.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

// Columns of weights of an instruction whose rows are tokens: all where the warpgroups share K, at most half a block
// where they share these, and else as many as leave registers for sums of a block and of all.
template <class Config>
constexpr int kPromotedColumns = Config::kSharesK       ? Config::BLOCK_N
                                 : Config::BLOCK_M <= 64 ? 64
                                 : Config::BLOCK_N > 128 ? Config::BLOCK_N / 2
                                                         : Config::BLOCK_N;

template <class Config, class OwnSources = PromotedSources>
struct WgmmaPromote : SharedOperands<Config, kPromotedColumns<Config>> {
    using Base = SharedOperands<Config, kPromotedColumns<Config>>;
    using Sources = OwnSources;
    using typename Base::Accumulators, typename Base::Sums;
    static constexpr int BLOCK_M = Base::BLOCK_M, BLOCK_N = Base::BLOCK_N, BLOCK_K = Base::BLOCK_K;
    static constexpr int kNumStages = Base::kNumStages, kTiles = Base::kTiles;
    static constexpr bool kTokenRows = Base::kTokenRows, kWeightRowScales = Config::kWeightRowScales;
    static constexpr int kTokenScales = (BLOCK_M + 4 + 31) / 32 * 32, kWeightScales = kWeightRowScales ? BLOCK_N : 0;
    static constexpr int BYTES_PER_STAGE = Base::BYTES_PER_STAGE + (BLOCK_M + 4 + kWeightScales) * 4;
    static_assert(BLOCK_K == 128, "a stage is a block of scales");
    static_assert(kTokenRows || kTiles == 1, "a thread has two rows of a stage");

    struct Storage : Base::Storage {
        alignas(128) float scales[kNumStages][kTokenScales + kWeightScales];  // TMA writes to multiples of 128 bytes
    };

    __device__ __forceinline__ static StagePlaces places(Storage& shared, int stage) {
        return {shared.weights[stage], shared.tokens[stage], shared.scales[stage] + kTokenScales, shared.scales[stage]};
    }

    // The two warpgroups that multiply.
    class Multiplier {
    public:
        __device__ __forceinline__ Multiplier(Storage& shared, const Sources& sources, int num_columns, int depth)
            : shared_(shared),
              sources_(sources),
              products_(shared),
              num_columns_(num_columns),
              depth_(depth),
              own_row_((Base::kSharesTokens ? threadIdx.x / 32 % (BLOCK_M / 16) : threadIdx.x / 32 - 4) * 16 +
                       threadIdx.x % 32 / 4) {}

        // The sums of the tile; those of rows that it does not have are anything.
        __device__ __forceinline__ void multiply(Accumulators& sums, const schedule::Tile& tile) {
#pragma unroll
            for (auto& of_tile : sums)
#pragma unroll
                for (float& sum : of_tile) sum = 0;
            const BlockScales weights(*this, tile);
            first_token_ = tile.scale_row % 4;
            const int blocks = ceil_div(tile.k_end - tile.k_begin, BLOCK_K);  // as many as are loaded
            const int first = tile.k_begin / BLOCK_K, end = first + blocks, block = first + stages_.begin(blocks);
            if constexpr (kTiles == 1) multiply_in_batches(sums[0], weights, block, end);
            else multiply_in_turn(sums, weights, block, end);
        }

    private:
        // Of the instruction: its columns have scales of their own, or share that of a block of weights.
        static constexpr bool kColumnScales = !kTokenRows || kWeightRowScales;
        static constexpr bool kRowScales = kTokenRows || kWeightRowScales;
        // Of columns that share a scale: a tile of 192 starts where a block of weights does, or in its middle.
        static constexpr int kSpan = BLOCK_N == 192 && !kWeightRowScales ? 64 : Base::kColumns;
        static constexpr int kScales = kTokenRows ? kTiles * Base::kColumns / kSpan : 1;
        static_assert(kSpan == Base::kColumns || !kWeightRowScales, "rows have scales of their own, or blocks have");
        using Scales = float[kScales];

        // The scales of the weights of a warpgroup; 1 where the rows have them.
        class BlockScales {
        public:
            __device__ __forceinline__ BlockScales(const Multiplier& multiplier, const schedule::Tile& tile) {
                if constexpr (!kWeightRowScales) {
                    const int blocks = ceil_div(multiplier.num_columns_, 128), depth = ceil_div(multiplier.depth_, 128);
#pragma unroll
                    for (int i = 0; i < kScales; ++i) {
                        const int ahead = !kTokenRows                ? Base::warpgroup() * kTiles / 2
                                          : kSpan == Base::kColumns ? i
                                                                    : (tile.column % 128 + i * kSpan) / 128;
                        first_[i] = multiplier.sources_.b_scale +
                                    int64_t(Sources::weight_block(tile, ahead, blocks)) * depth;
                    }
                }
            }
            __device__ __forceinline__ void load(Scales& scales, int block) const {
#pragma unroll
                for (int i = 0; i < kScales; ++i)  // an offset of 32 bits takes fewer instructions than an index
                    scales[i] = kWeightRowScales ? 1
                                                 : __ldg(reinterpret_cast<const float*>(
                                                       reinterpret_cast<const char*>(first_[i]) + uint32_t(block) * 4));
            }

        private:
            const float* first_[kScales];
        };

        // Block by block; of one, tiles together as far as there are registers for their sums, then the others.
        static constexpr int kTogether = kTiles * Base::kColumns <= 192 ? kTiles : 1;

        __device__ __forceinline__ void multiply_in_turn(Accumulators& sums, const BlockScales& weights, int block_of_k,
                                                         int end) {
            for (; block_of_k < end; ++block_of_k) {
                Scales of_weights;
                weights.load(of_weights, block_of_k);
                mbarrier::wait(&shared_.full[stages_.stage()], stages_.parity());
                const float2 of_rows = row_scales();
#pragma unroll
                for (int first = 0; first < kTiles; first += kTogether) {
                    Sums blocks[kTogether];
                    wgmma::fence();
#pragma unroll
                    for (int i = 0; i < kTogether; ++i) {
                        products_.issue(blocks[i], stages_.stage(), first + i, false);
                        wgmma::commit();
                    }
#pragma unroll
                    for (int i = 0; i < kTogether; ++i) {
                        const int t = first + i;
                        if (i < kTogether - 1) wgmma::wait<1>();
                        else wgmma::wait<0>();
                        if (!kColumnScales && t == kTiles - 1) free_stage(stages_.stage());
                        wgmma::fence_values<Base::kColumns / 2>(blocks[i]);
                        promote(sums[t], blocks[i], of_rows, of_weights, stages_.stage(), t);
                        if (kColumnScales && t == kTiles - 1) free_stage(stages_.stage());
                    }
                }
                stages_.advance();
            }
        }

        // Blocks at a time, by the registers of their sums, and by the stages that there are. Nothing runs from one batch
        // into the next: the compiler would wait for each product if one ran around a loop.
        static constexpr int kStride = Base::kStride, kBatch = Base::kColumns <= 64 && kStride == 1 ? 4 : 2;
        static_assert(kTiles > 1 || kNumStages >= kBatch * kStride,
                      "a block is loaded before the first one of its batch is over");

        __device__ __forceinline__ void multiply_in_batches(Sums& sums, const BlockScales& weights, int block, int end) {
            for (; block + (kBatch - 1) * kStride < end; block += kBatch * kStride)
                multiply_blocks<kBatch>(sums, weights, block);
            for (; block < end; block += kStride) multiply_blocks<1>(sums, weights, block);
        }

        // A block that is multiplied.
        struct Running {
            Sums sums;
            float2 of_rows;
            Scales of_weights;
            int stage;
        };

        template <int kCount>
        __device__ __forceinline__ void multiply_blocks(Sums& sums, const BlockScales& weights, int block) {
            Running blocks[kCount];
#pragma unroll
            for (int i = 0; i < kCount; ++i) start(blocks[i], weights, block + i * kStride);
            finish<kCount>(sums, blocks);
        }

        __device__ __forceinline__ void start(Running& running, const BlockScales& weights, int block) {
            running.stage = stages_.stage();
            weights.load(running.of_weights, block);  // on their way: they are not needed before the products are there
            mbarrier::wait(&shared_.full[stages_.stage()], stages_.parity());
            running.of_rows = row_scales();
            wgmma::fence();
            products_.issue(running.sums, stages_.stage(), 0, false);
            wgmma::commit();
            stages_.advance();
        }

        // Adds the last kLeft of the blocks, as they are done.
        template <int kLeft, int kCount>
        __device__ __forceinline__ void finish(Sums& sums, Running (&blocks)[kCount]) {
            Running& block = blocks[kCount - kLeft];
            wgmma::wait<kLeft - 1>();
            if (!kColumnScales) free_stage(block.stage);
            wgmma::fence_values<Base::kColumns / 2>(block.sums);
            promote(sums, block.sums, block.of_rows, block.of_weights, block.stage, 0);
            if (kColumnScales) free_stage(block.stage);
            if constexpr (kLeft > 1) finish<kLeft - 1>(sums, blocks);
        }

        __device__ __forceinline__ void free_stage(int stage) const {
            __syncwarp();
            if (threadIdx.x % 32 == 0) mbarrier::arrive(&shared_.empty[stage]);
        }

        // Of the two rows of a thread, eight apart.
        __device__ __forceinline__ float2 row_scales() const {
            if constexpr (!kRowScales) return make_float2(1, 1);
            const float* scales = shared_.scales[stages_.stage()] + (kTokenRows ? first_token_ : kTokenScales) + own_row_;
            return make_float2(scales[0], scales[8]);
        }

        // sums += scales * block; a thread has two neighbouring columns in eight.
        __device__ __forceinline__ void promote(Sums& sums, const Sums& block, float2 of_rows, const Scales& of_weights,
                                                int stage, int t) const {
            const float* columns = shared_.scales[stage] + threadIdx.x % 4 * 2 +
                                   (kTokenRows ? kTokenScales + t * Base::kColumns : first_token_);
#pragma unroll
            for (int j = 0; j < Base::kColumns / 8; ++j) {
                const float of_block = of_weights[kTokenRows ? (t * Base::kColumns + j * 8) / kSpan : 0];
                const float2 rows = make_float2(of_rows.x * of_block, of_rows.y * of_block);
                float2 of_columns = make_float2(1, 1);
                if constexpr (!kTokenRows) of_columns = make_float2(columns[j * 8], columns[j * 8 + 1]);
                else if constexpr (kColumnScales) of_columns = *reinterpret_cast<const float2*>(columns + j * 8);
                sums[j * 4] += rows.x * of_columns.x * block[j * 4];
                sums[j * 4 + 1] += rows.x * of_columns.y * block[j * 4 + 1];
                sums[j * 4 + 2] += rows.y * of_columns.x * block[j * 4 + 2];
                sums[j * 4 + 3] += rows.y * of_columns.y * block[j * 4 + 3];
            }
        }

        Storage& shared_;
        const Sources& sources_;
        const typename Base::Products products_;
        const int num_columns_, depth_;
        const int own_row_;  // of the instruction, the first of a thread
        int first_token_;    // of the scales of the tile
        typename Base::OwnStages stages_;
    };
};

}  // namespace mainloop
