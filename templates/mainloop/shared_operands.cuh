// Weights and tokens that wgmma reads from shared memory as TMA wrote them: a ring of stages of 128 bytes of each row.
//
// Few tokens are the columns of the instruction, and weights its 64 rows. Many are the rows (Config::kTokenRows), 64 a
// warpgroup: then a thread has sums of two tokens, and of few scales, and shared memory is free for the operands; and a
// tile may have fewer weights than 128, where more CTAs are to read them. Of 64 tokens or less both warpgroups take all,
// and half of the weights each; or, of few weights, every other stage (Config::kSharesK), since shared memory would be
// busy with tokens that both read. Of less than 64 the other rows of the instruction are zeros from the start.
//
// bf16 may be MN-major. A tile lies as it does in K-major order then, 8192 bytes for 64 rows.
#pragma once
#include <stdint.h>

#include "mainloop/sources.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma_shared.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

// kWeightColumns: of the instruction whose rows are tokens.
template <class Config, int kWeightColumns>
struct SharedOperands {
    using Element = typename Config::Element;
    static constexpr int BLOCK_M = Config::BLOCK_M, BLOCK_N = Config::BLOCK_N, ROW_BYTES = 128;
    static constexpr int BLOCK_K = ROW_BYTES / Element::kBytes, kNumStages = Config::kNumStages;
    static constexpr bool kTokenRows = Config::kTokenRows;
    static constexpr bool kTokensMnMajor = Config::kTokensMnMajor, kWeightsMnMajor = Config::kWeightsMnMajor;
    static constexpr int kNumConsumerWarps = 8, kColumns = kTokenRows ? kWeightColumns : BLOCK_M;
    static constexpr bool kSharesTokens = kTokenRows && BLOCK_M <= 64, kSharesK = Config::kSharesK;
    static constexpr int kTokenSpace = kSharesTokens ? 64 : BLOCK_M;  // rows of a stage
    static constexpr int kShares = kSharesTokens && !kSharesK ? 2 : 1;  // of the columns
    static constexpr int kStride = kSharesK ? 2 : 1;                    // from a warpgroup's stage to its next
    // Of a warpgroup.
    static constexpr int kTiles = kTokenRows ? BLOCK_N / kColumns / kShares : BLOCK_N / 128;
    static constexpr int BYTES_PER_STAGE = (BLOCK_M + BLOCK_N) * ROW_BYTES;
    static constexpr int WEIGHT_ATOMS = BLOCK_N % 128 == 0 ? BLOCK_N / 128 : 1;  // boxes

    static_assert(BLOCK_K == Config::BLOCK_K, "a row of a stage is one span of the 128-byte swizzle");
    static_assert(kTokenRows ? kTiles * kColumns * kShares == BLOCK_N : BLOCK_N % 128 == 0,
                  "every column is one warpgroup's");
    static_assert(!kWeightsMnMajor || BLOCK_N % 64 == 0, "a box has 64 weights");
    static_assert(!kTokenRows || BLOCK_M == 128 || BLOCK_M <= 64, "a warpgroup multiplies 64 rows");
    static_assert(!kTokensMnMajor || BLOCK_M % 64 == 0, "a box has 64 tokens");
    static_assert(!kSharesK || (kSharesTokens && kTiles == 1), "of few tokens and few weights");
    static_assert(kNumStages % kStride == 0, "a stage is always the same warpgroup's");
    static_assert(!(kTokensMnMajor || kWeightsMnMajor) || Element::kBytes == 2, "wgmma transposes 16-bit types alone");

    struct Storage {  // aligned to 1024 bytes, where the swizzle repeats
        uint8_t weights[kNumStages][BLOCK_N * ROW_BYTES];
        uint8_t tokens[kNumStages][kTokenSpace * ROW_BYTES];
        mbarrier::Barrier full[kNumStages], empty[kNumStages];
    };
    using Sums = float[kColumns / 2];
    using Accumulators = Sums[kTiles];

    __device__ __forceinline__ static void init(Storage& shared, int part, int parts) {
        for (int s = part; s < kNumStages; s += parts) {
            mbarrier::init(&shared.full[s], 1);
            mbarrier::init(&shared.empty[s], kSharesK ? kNumConsumerWarps / 2 : kNumConsumerWarps);
        }
    }

    __device__ __forceinline__ static StagePlaces places(Storage& shared, int stage) {
        return {shared.weights[stage], shared.tokens[stage], nullptr, nullptr};
    }

    __device__ __forceinline__ static int token_coordinate(int k) { return k; }
    __device__ __forceinline__ static int weight_coordinate(int k) { return k; }

    // Nothing is left for a warp beside the one that loads.
    template <class Tiles>
    __device__ __forceinline__ static void assist(Storage&, Tiles tiles, int) {
        while (tiles.wait()) tiles.release();
    }

    // Descriptors must be in uniform registers.
    __device__ __forceinline__ static int warpgroup() { return warp_index() / 4 - 1; }

    // The stages of a warpgroup, one after the other.
    class OwnStages {
    public:
        // How many of the next `blocks`, those of a tile, come before its first one.
        __device__ __forceinline__ int begin(int blocks) {
            const int before = before_;
            before_ = (before + blocks) % kStride;
            return before;
        }
        __device__ __forceinline__ int stage() const { return ring_.stage * kStride + first_; }
        __device__ __forceinline__ int previous() const { return ring_.previous() * kStride + first_; }
        __device__ __forceinline__ uint32_t parity() const { return ring_.parity; }
        __device__ __forceinline__ void advance() { ring_.advance(); }

    private:
        const int first_ = kSharesK ? warpgroup() : 0;
        int before_ = first_;
        RingState<kNumStages / kStride> ring_;
    };

    // What a warpgroup multiplies of a stage.
    class Products {
        static constexpr bool kRowsMnMajor = kTokenRows ? kTokensMnMajor : kWeightsMnMajor;  // of the instruction
        static constexpr bool kColumnsMnMajor = kTokenRows ? kWeightsMnMajor : kTokensMnMajor;
        static constexpr int kRowStep = kRowsMnMajor ? 16 * 128 : 32, kColumnStep = kColumnsMnMajor ? 16 * 128 : 32;

    public:
        // Of an instruction along K: 32 bytes of each row, or 16 rows of 128 bytes.
        static constexpr int kSteps = ROW_BYTES / 32;

        __device__ __forceinline__ explicit Products(Storage& shared)
            : weights_(wgmma::advance(wgmma::descriptor_128b(shared.weights[0], kWeightsMnMajor),
                                      kShares > 1  ? warpgroup() * kColumns * ROW_BYTES
                                      : kTokenRows ? 0
                                                   : warpgroup() * kTiles * kWarpgroupBytes)),
              tokens_(wgmma::advance(wgmma::descriptor_128b(shared.tokens[0], kTokensMnMajor),
                                     kTokenRows && !kSharesTokens ? warpgroup() * kWarpgroupBytes : 0)) {
            if constexpr (kTokenSpace > BLOCK_M) clear_other_rows(shared);
        }

        // sums (+)= the products of tile t, running until they are waited for.
        __device__ __forceinline__ void issue(Sums& sums, int stage, int t, bool accumulate) const {
#pragma unroll
            for (int step = 0; step < kSteps; ++step) issue_step(sums, stage, t, step, accumulate || step > 0);
        }
        // Of one instruction along K.
        __device__ __forceinline__ void issue_step(Sums& sums, int stage, int t, int step, bool accumulate) const {
            constexpr int kTileBytes = kTokenRows ? BLOCK_N / kTiles * ROW_BYTES : kWarpgroupBytes;
            const uint64_t weights = wgmma::advance(weights_, stage * BLOCK_N * ROW_BYTES + t * kTileBytes);
            const uint64_t tokens = wgmma::advance(tokens_, stage * kTokenSpace * ROW_BYTES);
            wgmma::mma_shared<kRowsMnMajor, kColumnsMnMajor>(
                wgmma::Shape<Element, kColumns>(), sums, wgmma::advance(kTokenRows ? tokens : weights, step * kRowStep),
                wgmma::advance(kTokenRows ? weights : tokens, step * kColumnStep), accumulate);
        }

    private:
        static constexpr int kWarpgroupBytes = 64 * ROW_BYTES;  // the rows of an instruction

        __device__ __forceinline__ static void clear_other_rows(Storage& shared) {
            constexpr int kThreads = kNumConsumerWarps * 32, kVectors = (kTokenSpace - BLOCK_M) * ROW_BYTES / 16;
            for (auto& tokens : shared.tokens)
                for (int i = threadIdx.x % kThreads; i < kVectors; i += kThreads)
                    reinterpret_cast<uint4*>(tokens + BLOCK_M * ROW_BYTES)[i] = uint4{};
            mbarrier::fence_async_proxy();
            barrier_of<kThreads>();
        }

        const uint64_t weights_, tokens_;
    };
};

}  // namespace mainloop
