// Main loop of sm_90 for E4M3 and E2M1 with UE8M0 scales of every row, of tokens and of weights: one for 32 of K (MX), or
// for 128.
//
// fp32 adds the sums of what has one scale, times the product of both. These are the sums of a stage, or of each
// instruction, which has 32 of K; the next one runs meanwhile. Scales whose product fp32 does not have, from 2^128 on or
// below 2^-149, become infinite or 0.
//
// Roles: one thread loads operands and words of scales by TMA, three warps turn scales into fp32 and E2M1 into E4M3, a
// stage each, two warpgroups multiply.
#pragma once
#include <stdint.h>

#include "mainloop/scale_words.cuh"
#include "mainloop/shared_operands.cuh"
#include "number/e2m1.cuh"
#include "number/integer.cuh"
#include "number/operands.cuh"
#include "number/ue8m0.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

// Columns of weights of an instruction.
template <class Config>
constexpr int kStepColumns = Config::BLOCK_M <= 64 ? Config::BLOCK_N / 2 : Config::BLOCK_N;

// E2M1 of the stages as TMA has written it, tokens and then weights, in rows of 64 bytes.
template <int kNumStages, int kBytes>
struct PackedStages {
    alignas(512) uint8_t packed[kNumStages][kBytes];  // where the swizzle repeats
};
template <int kNumStages>
struct PackedStages<kNumStages, 0> {};

template <class Config, class Operands>
struct WgmmaPromoteSteps : SharedOperands<Config, kStepColumns<Config>>, ScaleWords<Config, Operands> {
    using Base = SharedOperands<Config, kStepColumns<Config>>;
    using Words = ScaleWords<Config, Operands>;
    using typename Base::Accumulators, typename Base::Sums, typename Words::Sources;
    static constexpr int BLOCK_M = Base::BLOCK_M, BLOCK_N = Base::BLOCK_N, BLOCK_K = Base::BLOCK_K;
    static constexpr int kNumStages = Base::kNumStages, kColumns = Base::kColumns;
    static constexpr bool kPacksTokens = Operands::TOKENS == operands::Format::E2M1;
    static constexpr bool kPacksWeights = Operands::WEIGHTS == operands::Format::E2M1;
    static constexpr int kPackedTokens = kPacksTokens ? BLOCK_M * BLOCK_K / 2 : 0;  // bytes
    static constexpr int kPackedWeights = kPacksWeights ? BLOCK_N * BLOCK_K / 2 : 0;
    static constexpr int kTokenWords = (Words::kTokenWords + 31) / 32 * 32;  // TMA writes to multiples of 128 bytes
    static constexpr int BYTES_PER_STAGE = Operands::token_bytes(BLOCK_M * BLOCK_K) +
                                           Operands::weight_bytes(BLOCK_N * BLOCK_K) +
                                           4 * (Words::kTokenWords + Words::kWeightWords);
    // Of a stage, that have a scale each, and of the stages whose products run one behind the other.
    static constexpr int kParts =
        Words::kTokenScaleK == BLOCK_K && Words::kWeightScaleK == BLOCK_K ? 1 : Base::Products::kSteps;
    static constexpr int kBatch = kParts == 1 ? 2 : 1;
    static_assert(Base::kTokenRows && Base::kTiles == 1, "tokens are the rows of the instruction");
    static_assert(BLOCK_K == scale_rows::STAGE_K && BLOCK_N == 128, "a stage has a word of each row");

    struct Storage : Base::Storage, PackedStages<kNumStages, kPackedTokens + kPackedWeights> {
        alignas(512) uint32_t words[kNumStages][kTokenWords + Words::kWeightWords];
        float scales[kNumStages][kParts][BLOCK_M + BLOCK_N];
        mbarrier::Barrier ready[kNumStages];
    };

    // Every lane arrives: racecheck does not see what lanes have read before one of them arrives for all.
    __device__ __forceinline__ static void init(Storage& shared, int part, int parts) {
        for (int s = part; s < kNumStages; s += parts) {
            mbarrier::init(&shared.full[s], 1);
            mbarrier::init(&shared.ready[s], 32);
            mbarrier::init(&shared.empty[s], Base::kNumConsumerWarps * 32);
        }
    }

    __device__ __forceinline__ static StagePlaces places(Storage& shared, int stage) {
        const void *weights = shared.weights[stage], *tokens = shared.tokens[stage];
        if constexpr (kPacksWeights) weights = shared.packed[stage] + kPackedTokens;
        if constexpr (kPacksTokens) tokens = shared.packed[stage];
        return {weights, tokens, shared.words[stage] + kTokenWords, shared.words[stage]};
    }
    __device__ __forceinline__ static int token_coordinate(int k) { return Operands::token_bytes(k); }
    __device__ __forceinline__ static int weight_coordinate(int k) { return Operands::weight_bytes(k); }

    // Stages by one warp, the same ones each time around the ring.
    template <class Tiles>
    __device__ __forceinline__ static void assist(Storage& shared, Tiles tiles, int warp) {
        RingState<kNumStages> ring;
        for (; tiles.wait(); tiles.release()) {
            const int scale_row = tiles.tile().scale_row, end = tiles.tile().k_end;
            for (int k = tiles.tile().k_begin; k < end; k += BLOCK_K) {
                if (ring.stage % Config::kNumTokenWarps == warp) {
                    mbarrier::wait(&shared.full[ring.stage], ring.parity);
                    write_scales(shared, ring.stage, scale_row, k, end);
                    if constexpr (kPacksTokens)
                        unpack<BLOCK_M>(shared.tokens[ring.stage], shared.packed[ring.stage]);
                    if constexpr (kPacksWeights)
                        unpack<BLOCK_N>(shared.weights[ring.stage], shared.packed[ring.stage] + kPackedTokens);
                    if constexpr (kPacksTokens || kPacksWeights) mbarrier::fence_async_proxy();
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
              products_(shared),
              own_row_((Base::kSharesTokens ? threadIdx.x / 32 % (BLOCK_M / 16) : threadIdx.x / 32 - 4) * 16 +
                       threadIdx.x % 32 / 4),
              own_column_((Base::kSharesTokens ? Base::warpgroup() * kColumns : 0) + threadIdx.x % 4 * 2) {}

        // The sums of the tile; those of rows that it does not have are anything.
        __device__ __forceinline__ void multiply(Accumulators& sums, const schedule::Tile& tile) {
#pragma unroll
            for (float& sum : sums[0]) sum = 0;
            int left = ceil_div(tile.k_end - tile.k_begin, BLOCK_K);
#pragma unroll 1
            for (; left >= kBatch; left -= kBatch) add_stages<kBatch>(sums[0]);
            if (kBatch > 1 && left > 0) add_stages<1>(sums[0]);
        }

    private:
        // Part by part; the next one runs while one is added.
        template <int kStages>
        __device__ __forceinline__ void add_stages(Sums& sums) {
            constexpr int kCount = kStages * kParts;
            Sums products[2];
            int stages[kStages];
            start(products[0], stages[0], 0);
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                const int stage = stages[i / kParts];
                if (i + 1 < kCount) {
                    start(products[(i + 1) % 2], stages[(i + 1) / kParts], (i + 1) % kParts);
                    wgmma::wait<1>();
                } else {
                    wgmma::wait<0>();
                }
                wgmma::fence_values<kColumns / 2>(products[i % 2]);
                promote(sums, products[i % 2], shared_.scales[stage][i % kParts]);
                if (i % kParts == kParts - 1) mbarrier::arrive(&shared_.empty[stage]);
            }
        }

        // The first part finds out which stage it is of.
        __device__ __forceinline__ void start(Sums& products, int& stage, int part) {
            if (part == 0) {
                stage = stages_.stage();
                mbarrier::wait(&shared_.ready[stage], stages_.parity());
                stages_.advance();
            }
            wgmma::fence();
            if constexpr (kParts == 1) products_.issue(products, stage, 0, false);
            else products_.issue_step(products, stage, 0, part, false);
            wgmma::commit();
        }

        // sums += scales * products; a thread has two neighbouring columns in eight, of two rows, eight apart.
        __device__ __forceinline__ void promote(Sums& sums, const Sums& products, const float* scales) const {
            const float first = scales[own_row_], second = scales[own_row_ + 8];
#pragma unroll
            for (int j = 0; j < kColumns / 8; ++j) {
                const float2 columns = *reinterpret_cast<const float2*>(scales + BLOCK_M + own_column_ + j * 8);
                sums[j * 4] += first * columns.x * products[j * 4];
                sums[j * 4 + 1] += first * columns.y * products[j * 4 + 1];
                sums[j * 4 + 2] += second * columns.x * products[j * 4 + 2];
                sums[j * 4 + 3] += second * columns.y * products[j * 4 + 3];
            }
        }

        Storage& shared_;
        const typename Base::Products products_;
        const int own_row_, own_column_;  // of the instruction and of the tile, the first of a thread
        typename Base::OwnStages stages_;
    };

private:
    // Of the stage at element k, of a tile whose depth ends at k_end.
    __device__ __forceinline__ static void write_scales(Storage& shared, int stage, int scale_row, int k, int k_end) {
        const int lane = threadIdx.x % 32;
        uint32_t tokens[BLOCK_M / 32], weights[BLOCK_N / 32];
        Words::load_tokens(tokens, shared.words[stage], scale_row, lane);
        Words::load_weights(weights, shared.words[stage] + kTokenWords, lane);
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            float* const scales = shared.scales[stage][part] + lane;
            write_part<Words::kTokenScaleK>(scales, tokens, part, k, k_end);
            write_part<Words::kWeightScaleK>(scales + BLOCK_M, weights, part, k, k_end);
        }
    }
    // Of every 32nd row. Behind K scales for 32 may be anything, and have nothing to scale but zeros.
    template <int kScaleK, int kCount>
    __device__ __forceinline__ static void write_part(float* scales, const uint32_t (&words)[kCount], int part, int k,
                                                      int k_end) {
        const bool exists = kScaleK == BLOCK_K || k + part * kScaleK < k_end;
        const int byte = scale_rows::stage_byte(kScaleK, k) + scale_rows::step_byte(kScaleK, part);
#pragma unroll
        for (int i = 0; i < kCount; ++i) scales[i * 32] = exists ? ue8m0::value(words[i], byte) : 0;
    }

    // Rows of 64 bytes of E2M1 under the 64-byte swizzle to rows of 128 of E4M3 under that of 128; a warp.
    template <int kRows>
    __device__ __forceinline__ static void unpack(uint8_t* elements, const uint8_t* packed) {
        constexpr int kAtOnce = 4;  // vectors of a lane, which is alone on its scheduler
        const int part = threadIdx.x % 8;  // of eight in a row
#pragma unroll 1
        for (int first = threadIdx.x % 32 / 8; first < kRows; first += 4 * kAtOnce) {
            uint2 pairs[kAtOnce];
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                const int row = first + 4 * i;
                pairs[i] = *reinterpret_cast<const uint2*>(packed + row * 64 + ((part / 2 ^ row / 2 % 4) << 4) +
                                                           part % 2 * 8);
            }
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                const int row = first + 4 * i;
                *reinterpret_cast<uint4*>(elements + row * 128 + ((part ^ row % 8) << 4)) = e2m1::to_e4m3(pairs[i]);
            }
        }
    }
};

}  // namespace mainloop
