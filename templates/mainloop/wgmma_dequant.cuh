// Main loop of sm_90 for NVFP4 operands: weights . tokens^T by wgmma on halves.
//
// A product of an E2M1 value and its UE4M3 scale is exact in half precision, so wgmma f16 on the dequantised operands
// computes the same function as the block-scaled instructions of Blackwell. Weights are always the 64-row operand,
// dequantised straight into its registers; tokens are the N operand, dequantised once a CTA into shared memory, and N
// follows the rows that the tile has. So a weight never returns to shared memory, and a few tokens cost little.
//
// Roles: one thread loads by TMA, three warps dequantise tokens, two warpgroups dequantise weights and multiply. Two
// rings: packed stages of BLOCK_K from TMA, and token slots of GROUP_K.
#pragma once
#include <stdint.h>

#include "layout/scale_layout.cuh"
#include "mainloop/dequant_fp4.cuh"
#include "mainloop/loader.cuh"
#include "mainloop/token_count.cuh"
#include "number/integer.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

template <class Config, class WeightRows>
struct WgmmaDequant {
    using Sources = BlockScaledSources;
    static constexpr int BLOCK_M = Config::BLOCK_M, BLOCK_N = Config::BLOCK_N, BLOCK_K = Config::BLOCK_K;
    static constexpr int kNumStages = Config::kNumStages, kNumSlots = Config::kNumSlots;
    static constexpr int kNumTokenWarps = Config::kNumTokenWarps, kNumConsumerWarps = 8;
    static constexpr int kTilesPerWarpgroup = BLOCK_N / 128;  // m64 tiles
    static constexpr int GROUP_K = dequant::GROUP_K;
    static constexpr bool kTokensMnMajor = false, kWeightsMnMajor = false;
    static constexpr int PANEL_BYTES = BLOCK_M * dequant::PANEL_K * 2;
    static constexpr int ROW_BYTES = BLOCK_K / 2;  // of packed elements
    static constexpr int SCALE_K = 64, SCALE_WORDS = BLOCK_K / SCALE_K;
    static constexpr int TOKEN_SCALE_ROWS = BLOCK_M < 32 ? BLOCK_M : 32;  // 16-byte rows of an atom that a tile needs
    static constexpr int TOKEN_SCALE_BYTES = TOKEN_SCALE_ROWS * 16;
    static constexpr int TOKEN_ATOMS = Config::kTokenAtoms, WEIGHT_ATOMS = BLOCK_N / scale_layout::ATOM_ROWS;
    static constexpr int WORDS_PER_STEP = BLOCK_M <= 64 ? 2 : 1;  // of a lane's weights, dequantised during products
    static constexpr int TOKEN_STEP = Config::kTokenStep, kTokenCounts = Config::kTokenCounts;

    static_assert(BLOCK_M % 8 == 0 && BLOCK_M >= 8 && BLOCK_M <= 256, "tokens are the N of wgmma");
    static_assert(BLOCK_N == 128 || BLOCK_N == 256, "two consumer warpgroups of one or two m64 tiles");
    static_assert(kNumSlots >= 2, "a slot is freed while the next one is multiplied");

    struct Storage {  // aligned to 1024 bytes, where the swizzles repeat
        uint8_t weights[kNumStages][BLOCK_N * ROW_BYTES];        // swizzled
        uint8_t packed_tokens[kNumStages][BLOCK_M * ROW_BYTES];  // swizzled
        uint8_t tokens[kNumSlots][2 * PANEL_BYTES];              // halves, 128-byte swizzle, as wgmma reads them
        uint8_t weight_scales[kNumStages][WEIGHT_ATOMS][SCALE_WORDS][512];
        uint8_t token_scales[kNumStages][TOKEN_ATOMS][SCALE_WORDS][TOKEN_SCALE_BYTES];
        mbarrier::Barrier full[kNumStages], empty[kNumStages];
        mbarrier::Barrier full_slot[kNumSlots], empty_slot[kNumSlots];
    };
    using Accumulators = float[kTilesPerWarpgroup][BLOCK_M / 2];

    __device__ __forceinline__ static void init(Storage& shared, int part, int parts) {
        for (int s = part; s < kNumStages; s += parts) {
            mbarrier::init(&shared.full[s], 1);
            mbarrier::init(&shared.empty[s], kNumTokenWarps + kNumConsumerWarps);
        }
        for (int s = part; s < kNumSlots; s += parts) {
            mbarrier::init(&shared.full_slot[s], kNumTokenWarps);
            mbarrier::init(&shared.empty_slot[s], kNumConsumerWarps);
        }
    }

    static constexpr int BYTES_PER_STAGE = sizeof(Storage::weights[0]) + sizeof(Storage::packed_tokens[0]) +
                                           sizeof(Storage::weight_scales[0]) + sizeof(Storage::token_scales[0]);

    __device__ __forceinline__ static StagePlaces places(Storage& shared, int stage) {
        return {shared.weights[stage], shared.packed_tokens[stage], shared.weight_scales[stage][0][0],
                shared.token_scales[stage][0][0]};
    }
    // Of element k of a row in its tensor map.
    __device__ __forceinline__ static int token_coordinate(int k) { return k / 2; }
    __device__ __forceinline__ static int weight_coordinate(int k) { return k / 2; }
    // Of a box: one narrower than an atom starts at the tile's first row.
    __device__ __forceinline__ static int first_scale_word(int scale_row) {
        return TOKEN_SCALE_ROWS < 32 ? scale_row % 32 * 4 : 0;
    }

    // Groups of GROUP_K in the block that starts at k: the last block of a row may hold fewer than BLOCK_K / GROUP_K.
    __device__ __forceinline__ static int groups_in_block(int k, int k_end) {
        return min(BLOCK_K / GROUP_K, ceil_div(k_end - k, GROUP_K));
    }

    // Warp token_warp of kNumTokenWarps.
    template <class Tiles>
    __device__ __forceinline__ static void assist(Storage& shared, Tiles tiles, int token_warp) {
        const int lane = threadIdx.x % 32;
        RingState<kNumStages> ring;
        RingState<kNumSlots> slots;
        int unwritten = kNumSlots;  // slots: the first time all of their rows are filled, also those of no row
        for (; tiles.wait(); tiles.release()) {
            const int k_end = tiles.tile().k_end;
            const int num_jobs = ceil_div(tiles.tile().num_rows, dequant::TOKENS_PER_JOB);
            // A box narrower than an atom starts at the tile's first row.
            const int scale_row = TOKEN_SCALE_ROWS < 32 ? tiles.tile().scale_row % 128 & ~31
                                                        : tiles.tile().scale_row % 128;
            for (int k = tiles.tile().k_begin; k < k_end; k += BLOCK_K) {
                mbarrier::wait(&shared.full[ring.stage], ring.parity);
                const int num_groups = groups_in_block(k, k_end);
                for (int group = 0; group < num_groups; ++group) {
                    mbarrier::wait(&shared.empty_slot[slots.stage], slots.parity ^ 1);
                    // Jobs are dealt out over all slots, so every word of a slot has one writer for good.
                    constexpr int JOBS_PER_SLOT = ceil_div(BLOCK_M, dequant::TOKENS_PER_JOB);
                    constexpr int SHIFT = kNumTokenWarps - JOBS_PER_SLOT % kNumTokenWarps;
                    const int jobs = unwritten > 0 ? JOBS_PER_SLOT : num_jobs;
                    unwritten = max(unwritten - 1, 0);
                    for (int job = (token_warp + slots.stage * SHIFT) % kNumTokenWarps; job < jobs;
                         job += kNumTokenWarps) {
                        dequant::tokens<BLOCK_M, ROW_BYTES, TOKEN_SCALE_BYTES, SCALE_WORDS * TOKEN_SCALE_BYTES>(
                            shared.tokens[slots.stage], shared.packed_tokens[ring.stage], 4 * group,
                            shared.token_scales[ring.stage][0][2 * group], scale_row, job,
                            k_end - k - group * GROUP_K);
                    }
                    mbarrier::fence_async_proxy();  // wgmma reads through the async proxy
                    __syncwarp();
                    if (lane == 0) mbarrier::arrive(&shared.full_slot[slots.stage]);
                    slots.advance();
                }
                if (lane == 0) mbarrier::arrive(&shared.empty[ring.stage]);
                ring.advance();
            }
        }
    }

    // The two warpgroups that multiply.
    class Multiplier {
    public:
        __device__ __forceinline__ Multiplier(Storage& shared, const Sources&, int, int)
            : shared_(shared), first_tokens_(wgmma::descriptor_128b(shared.tokens[0])) {
            const int warpgroup = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
            const int l = lane % 4, row = WeightRows::first(warpgroup, warp, lane / 4);
            packed_begin_ = dequant::packed_offset<ROW_BYTES>(row, l);
            scale_begin_ = (row / 128 * SCALE_WORDS + l / 2) * 512 + scale_layout::word(row) * 4 + l % 2 * 2;
        }

        // The sums of the tile, scaled; those of rows that it does not have are anything.
        __device__ __forceinline__ void multiply(Accumulators& accumulators, const schedule::Tile& tile) {
            if constexpr (kTokenCounts > 1) {
#pragma unroll
                for (auto& of_tile : accumulators) wgmma::define_values<BLOCK_M / 2>(of_tile);
            }
            with_token_count<BLOCK_M, TOKEN_STEP, kTokenCounts>(
                tile.num_rows, [&](auto count) { multiply<count.value>(accumulators, tile.k_begin, tile.k_end); });
#pragma unroll  // see kDescale
            for (auto& of_tile : accumulators)
#pragma unroll
                for (float& sum : of_tile) sum *= fp4::kDescale;
        }

    private:
        template <int kTokens>
        __device__ __forceinline__ void multiply(Accumulators& sums, int k_begin, int k_end) {
            const int lane = threadIdx.x % 32;
            Fragments fragments;
            bool first_slot = true;
            for (int k = k_begin; k < k_end; k += BLOCK_K) {
                mbarrier::wait(&shared_.full[ring_.stage], ring_.parity);
                const int num_groups = groups_in_block(k, k_end);
#pragma unroll
                for (int group = 0; group < BLOCK_K / GROUP_K; ++group) {
                    if (group >= num_groups) break;
                    multiply_group<kTokens>(sums, fragments, group, k_end - k, first_slot);
                    first_slot = false;
                    slots_.advance();
                }
                __syncwarp();
                if (lane == 0) mbarrier::arrive(&shared_.empty[ring_.stage]);
                ring_.advance();
            }
            wgmma::wait<0>();
            if constexpr (kTokenCounts > 1) {
#pragma unroll
                for (auto& of_tile : sums) wgmma::fence_values<kTokens / 2>(of_tile);
            }
            if (lane == 0) mbarrier::arrive(&shared_.empty_slot[slots_.previous()]);
            __syncwarp();  // the lanes go on together
        }

        using Fragments = uint32_t[2][2 * WORDS_PER_STEP][4];  // one being multiplied, one being filled

        template <int kTokens>
        __device__ __forceinline__ void multiply_group(Accumulators& sums, Fragments& fragments, int group,
                                                       int remaining_k, bool first_slot) {
            uint4 packed[kTilesPerWarpgroup][2];
            uint32_t scale[kTilesPerWarpgroup][2];
            load_group(packed, scale, group, remaining_k);
            mbarrier::wait(&shared_.full_slot[slots_.stage], slots_.parity);
            const uint64_t tokens = first_tokens_ + slots_.stage * (2 * PANEL_BYTES >> 4);
#pragma unroll
            for (int step = 0; step < 4 / WORDS_PER_STEP * kTilesPerWarpgroup; ++step) {
                const int word = step / kTilesPerWarpgroup * WORDS_PER_STEP, t = step % kTilesPerWarpgroup;
                // At most the newest product is still running: this buffer is free, and at the second step so is the
                // slot before.
                wgmma::wait<1>();
                if (step == 1 && threadIdx.x % 32 == 0 && !first_slot)
                    mbarrier::arrive(&shared_.empty_slot[slots_.previous()]);
                dequant::weights<WORDS_PER_STEP>(fragments[step % 2], packed[t], scale[t], word);
                wgmma::fence();
#pragma unroll
                for (int i = 0; i < 2 * WORDS_PER_STEP; ++i) {
                    const int k_step = 2 * word + i;
                    wgmma::mma_f16<kTokens>(sums[t], fragments[step % 2][i],
                                            tokens + k_step / 4 * (PANEL_BYTES >> 4) + k_step % 4 * 2,
                                            k_step || !first_slot);
                }
                wgmma::commit();
            }
        }

        __device__ __forceinline__ void load_group(uint4 (&packed)[kTilesPerWarpgroup][2],
                                                   uint32_t (&scale)[kTilesPerWarpgroup][2], int group,
                                                   int remaining_k) const {
            const uint8_t* weights = shared_.weights[ring_.stage];
            const uint8_t* scales = shared_.weight_scales[ring_.stage][0][0] + group * 1024;
#pragma unroll
            for (int t = 0; t < kTilesPerWarpgroup; ++t) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    // Chunk 4 * group + l: the swizzle is an exclusive or, so the group flips one address bit.
                    packed[t][i] = *reinterpret_cast<const uint4*>(
                        weights + WeightRows::packed_place(packed_begin_ ^ group * 64, t, i));
                    scale[t][i] = fp4::scales_to_half2(
                        *reinterpret_cast<const uint16_t*>(scales + WeightRows::scale_place(scale_begin_, t, i)));
                    // Padding of the scale blocks may hold NaN.
                    if (group * GROUP_K + threadIdx.x % 4 * 32 >= remaining_k) scale[t][i] = 0;
                }
            }
        }

        Storage& shared_;
        const uint64_t first_tokens_;
        int packed_begin_, scale_begin_;
        RingState<kNumStages> ring_;
        RingState<kNumSlots> slots_;
    };
};

}  // namespace mainloop
