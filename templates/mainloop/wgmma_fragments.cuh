// Main loop of sm_90 for 16-bit tokens and NVFP4 or MXFP4 weights: weights . tokens^T by wgmma on bf16 or f16.
//
// A product of an E2M1 value and its UE4M3 scale has six significant bits: it is exact in both types, with a UE8M0 scale in
// bf16. So what is summed are products of a token and a weight, exact in fp32. Weights are the 64-row operand and become
// 16 bits in its registers; tokens are the N operand, which the instruction reads as TMA wrote it. So K is in its own
// order: a step of 16 has one scale of each row, and weights lie in fragment order (docs/weights.md), of which a lane
// loads vectors.
//
// Roles: one thread loads by TMA, three warps turn the scales of a stage into factors of the type of tokens, one stage
// each, two warpgroups convert weights and multiply. One ring of stages.
#pragma once
#include <stdint.h>

#include <type_traits>

#include "layout/scale_layout.cuh"
#include "mainloop/dequant_fp4.cuh"
#include "mainloop/fragment_sources.cuh"
#include "mainloop/token_count.cuh"
#include "mainloop/weight_factors.cuh"
#include "number/fp4_fragments.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/opaque_value.cuh"
#include "ptx/wgmma_bf16.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

// WeightRows: by bytes of a row and tiles of a warpgroup, which row a lane has (layout/weight_rows.cuh). Decode_: what
// weights are (number/fp4_fragments.cuh).
template <class Config, template <int, int> class WeightRows, class Decode_>
struct WgmmaFragments {
    using Sources = FragmentSources;
    using Element = typename Config::Element;
    using Decode = Decode_;
    static constexpr int BLOCK_M = Config::BLOCK_M, BLOCK_N = Config::BLOCK_N, BLOCK_K = Config::BLOCK_K;
    static constexpr int kNumStages = Config::kNumStages, kNumConsumerWarps = 8;
    static constexpr int kTilesPerWarpgroup = BLOCK_N / 128;  // m64 tiles
    static constexpr bool kTokensMnMajor = false, kWeightsMnMajor = false;
    static constexpr int PANEL_K = 64, PANEL_BYTES = BLOCK_M * PANEL_K * 2;  // rows of 128 bytes
    static constexpr int ROW_BYTES = BLOCK_K / 2;                            // of weights
    // Tokens that TMA brings at once, and how often at least: what is multiplied is loaded.
    static constexpr int BOX_ROWS = Config::kTokenStep, LEAST_BOXES = BLOCK_M / BOX_ROWS - Config::kTokenCounts + 1;
    static constexpr int SCALE_K = 4 * Decode::SCALE_K;                      // of a word
    static constexpr int WEIGHT_ATOMS = BLOCK_N / scale_layout::ATOM_ROWS;
    static constexpr int kWords = 4, STEPS_PER_WORD = 2;             // of a lane's row in a stage; each of 16 along K
    static constexpr int kWordsPerCommit = Config::kWordsPerCommit;  // converted during the products before
    using PackedRows = WeightRows<ROW_BYTES, kTilesPerWarpgroup>;
    using FactorRows = WeightRows<sizeof(uint4), kTilesPerWarpgroup>;

    static_assert(BLOCK_K == 128, "a lane has 16 bytes of a row");
    static_assert(BLOCK_M % 8 == 0 && BLOCK_M >= 8 && BLOCK_M <= 256, "tokens are the N of wgmma");
    static_assert(BOX_ROWS % 8 == 0 && BLOCK_M % BOX_ROWS == 0, "boxes begin where the swizzle does");
    static_assert(LEAST_BOXES >= 1, "a tile has rows");
    static_assert(BLOCK_N == 128 || BLOCK_N == 256, "two consumer warpgroups of one or two m64 tiles");
    static_assert(kWords % kWordsPerCommit == 0 && kWords / kWordsPerCommit * kTilesPerWarpgroup % 2 == 0,
                  "fragments are in two buffers, the first of a stage in the first one");

    struct Storage {  // aligned to 1024 bytes, where the swizzles repeat
        uint8_t weights[kNumStages][BLOCK_N * ROW_BYTES];
        uint8_t tokens[kNumStages][BLOCK_K / PANEL_K * PANEL_BYTES];
        uint4 weight_scales[kNumStages][WEIGHT_ATOMS][BLOCK_K / SCALE_K][32];
        uint4 factors[kNumStages][BLOCK_N];  // eight of a row, one a step
        mbarrier::Barrier full[kNumStages], ready[kNumStages], empty[kNumStages];
    };
    using Accumulators = float[kTilesPerWarpgroup][BLOCK_M / 2];
    // Without tokens, of which there are as many as the tile has.
    static constexpr int BYTES_PER_STAGE = sizeof(Storage::weights[0]) + sizeof(Storage::weight_scales[0]);

    __device__ __forceinline__ static void init(Storage& shared, int part, int parts) {
        for (int s = part; s < kNumStages; s += parts) {
            mbarrier::init(&shared.full[s], 2);
            mbarrier::init(&shared.ready[s], 32);
            mbarrier::init(&shared.empty[s], 32 * kNumConsumerWarps);  // every lane, of what it has read
        }
    }

    __device__ __forceinline__ static StagePlaces places(Storage& shared, int stage) {
        return {shared.weights[stage], shared.tokens[stage], shared.weight_scales[stage], nullptr};
    }
    // Of element k of a row in its tensor map.
    __device__ __forceinline__ static int weight_coordinate(int k) { return k / 2; }

    // Factors of a stage by one warp, the same one each time around the ring.
    template <class Tiles>
    __device__ __forceinline__ static void assist(Storage& shared, Tiles tiles, int factor_warp) {
        RingState<kNumStages> ring;
        for (; tiles.wait(); tiles.release()) {
            for (int left = tiles.tile().k_end - tiles.tile().k_begin; left > 0; left -= BLOCK_K) {
                if (ring.stage % Config::kNumTokenWarps == factor_warp) {
                    mbarrier::wait(&shared.full[ring.stage], ring.parity);
                    write_factors<Decode>(shared.factors[ring.stage], shared.weight_scales[ring.stage], left);
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
            : shared_(shared), tokens_(wgmma::descriptor_128b(shared.tokens[0])) {
            const int warpgroup = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
            const int row = PackedRows::first(warpgroup, warp, lane / 4);
            // Opaque, or the compiler makes them of threadIdx anew in each stage.
            packed_begin_ = opaque_value(static_cast<uint32_t>(dequant::packed_offset<ROW_BYTES>(row, lane % 4)));
            factors_begin_ = opaque_value(static_cast<uint32_t>(row * sizeof(uint4)));
        }

        // The sums of the tile; those of rows that it does not have are anything.
        __device__ __forceinline__ void multiply(Accumulators& sums, const schedule::Tile& tile) {
            if constexpr (Config::kTokenCounts > 1) {
#pragma unroll
                for (auto& of_tile : sums) wgmma::define_values<BLOCK_M / 2>(of_tile);
            }
            with_token_count<BLOCK_M, Config::kTokenStep, Config::kTokenCounts>(
                tile.num_rows, [&](auto count) { multiply<count.value>(sums, tile.k_begin, tile.k_end); });
#pragma unroll
            for (auto& of_tile : sums)
#pragma unroll
                for (float& sum : of_tile) sum *= Decode::kDescale;
        }

    private:
        template <int kTokens>
        __device__ __forceinline__ void multiply(Accumulators& sums, int k_begin, int k_end) {
            Fragments fragments;
            bool first = true;
#pragma unroll 1
            for (int k = k_begin; k < k_end; k += BLOCK_K) {
                multiply_stage<kTokens>(sums, fragments, first);
                first = false;
                ring_.advance();
            }
            wgmma::wait<0>();
            if constexpr (Config::kTokenCounts > 1) {
#pragma unroll
                for (auto& of_tile : sums) wgmma::fence_values<kTokens / 2>(of_tile);
            }
            release_previous();
            __syncwarp();  // the lanes go on together
        }

        // One being multiplied, one being filled; of each step along K what the instruction takes.
        using Fragments = uint32_t[2][STEPS_PER_WORD * kWordsPerCommit][4];

        template <int kTokens>
        __device__ __forceinline__ void multiply_stage(Accumulators& sums, Fragments& fragments, bool first) {
            constexpr int kTurnsOfTile = kWords / kWordsPerCommit;
            Rows packed, factors;
            mbarrier::wait(&shared_.ready[ring_.stage], ring_.parity);
            load_rows(packed, factors, 0);
            const uint64_t tokens = wgmma::advance(tokens_, ring_.stage * sizeof(Storage::tokens[0]));
#pragma unroll
            for (int turn = 0; turn < kTurnsOfTile * kTilesPerWarpgroup; ++turn) {
                const int t = turn / kTurnsOfTile, word = turn % kTurnsOfTile * kWordsPerCommit;
                // At most the newest products are still running: this buffer is free, and from the second turn on so is
                // the stage before.
                wgmma::wait<1>();
                if (turn == 1 && !first) release_previous();
                const bool converted = word + kWordsPerCommit == kWords;
                convert(fragments[turn % 2], packed, factors, word);
                if (converted && t + 1 < kTilesPerWarpgroup) load_rows(packed, factors, t + 1);
                wgmma::fence();
#pragma unroll
                for (int i = 0; i < STEPS_PER_WORD * kWordsPerCommit; ++i) {
                    const int step = STEPS_PER_WORD * word + i;
                    product<kTokens>(sums[t], fragments[turn % 2][i],
                                     wgmma::advance(tokens, step / 4 * PANEL_BYTES + step % 4 * 32), step || !first);
                }
                wgmma::commit();
            }
        }

        __device__ __forceinline__ void release_previous() {
            mbarrier::arrive(&shared_.empty[ring_.previous()]);
        }

        template <int kTokens>
        __device__ __forceinline__ static void product(float* sums, const uint32_t (&weights)[4], uint64_t tokens,
                                                       bool accumulate) {
            if constexpr (std::is_same_v<Element, number::bf16>)
                wgmma::mma_bf16<kTokens>(sums, weights, tokens, accumulate);
            else
                wgmma::mma_f16<kTokens>(sums, weights, tokens, accumulate);
        }

        // Of a stage, the two rows that a lane has in a tile: of one tile at a time, since registers are few.
        using Rows = uint32_t[2][kWords];

        __device__ __forceinline__ void load_rows(Rows& packed, Rows& factors, int tile) const {
            const uint8_t* weights = shared_.weights[ring_.stage];
            const uint8_t* scales = reinterpret_cast<const uint8_t*>(shared_.factors[ring_.stage]);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                load_words(packed[i], weights + PackedRows::packed_place(packed_begin_, tile, i));
                load_words(factors[i], scales + FactorRows::packed_place(factors_begin_, tile, i));
            }
        }
        __device__ __forceinline__ static void load_words(uint32_t (&words)[kWords], const uint8_t* place) {
            const uint4 vector = *reinterpret_cast<const uint4*>(place);
            words[0] = vector.x, words[1] = vector.y, words[2] = vector.z, words[3] = vector.w;
        }

        // Of the words from `first` on of both rows: the instruction has them in turn, first the lower half of K.
        __device__ __forceinline__ static void convert(uint32_t (&fragments)[STEPS_PER_WORD * kWordsPerCommit][4],
                                                       const Rows& packed, const Rows& factors, int first) {
#pragma unroll
            for (int word = 0; word < kWordsPerCommit; ++word) {
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    uint32_t pairs[4];
                    Decode::pairs(packed[row][first + word], pairs);
                    const uint32_t both = factors[row][first + word];
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        fragments[2 * word + i / 2][row + i % 2 * 2] =
                            Decode::multiply(pairs[i], i < 2 ? fp4::both_low(both) : fp4::both_high(both));
                }
            }
        }

        Storage& shared_;
        const uint64_t tokens_;
        int packed_begin_, factors_begin_;
        RingState<kNumStages> ring_;
    };
};

}  // namespace mainloop
