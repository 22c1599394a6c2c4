// out = alpha * sums + bias from the accumulators of wgmma, whose rows are rows of out; zeros in rows of padding.
//
// A warp has 16 rows, of which 64 are those of both warpgroups: then each has half of the columns. It brings a few columns
// at a time in order in shared memory and stores 16-byte vectors.
#pragma once
#include <stdint.h>

#include "epilogue/store_params.cuh"
#include "number/bias.cuh"
#include "number/output.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/stmatrix.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

template <class Config, class Out>
struct StoreRowsSm90 {
    static constexpr int kNumConsumerWarps = 8;
    static constexpr int kNumWarps = 0;  // of its own
    static constexpr int kVector = 16 / sizeof(Out);
    static constexpr bool kSharesRows = Config::BLOCK_M == 64;
    static constexpr int kOwnColumns = Config::BLOCK_N / (kSharesRows ? 2 : 1);              // of a warpgroup
    static constexpr int kColumns = kOwnColumns < 8 * kVector ? kOwnColumns : 8 * kVector;  // staged at a time
    static constexpr int ROW_BYTES = 128 + 16;                                // the pad keeps rows off others' banks

    using Params = StoreParams<Out>;
    struct alignas(16) Storage {
        uint8_t staging[kNumConsumerWarps][16 * ROW_BYTES];
    };
    __device__ __forceinline__ static void init(Storage&) {}

    // What a warp that multiplies does with its tiles.
    class Consumer {
    public:
        __device__ __forceinline__ Consumer(Storage& shared, const Params& params) : shared_(shared), params_(params) {}

        // Of each tile of a warpgroup kSums.
        template <int kTiles, int kSums>
        __device__ __forceinline__ void finish(const float (&accumulators)[kTiles][kSums], const schedule::Tile& tile) {
            if (params_.bias == nullptr && !params_.accumulate) store<false>(accumulators, tile);
            else store<true>(accumulators, tile);
        }

    private:
        // Two neighbouring columns of a row.
        struct alignas(2 * sizeof(Out)) Pair {
            Out low, high;
        };

        template <bool kAdds, int kTiles, int kSums>
        __device__ __forceinline__ void store(const float (&accumulators)[kTiles][kSums], const schedule::Tile& tile) {
            const int warp = thread_index_again() / 32 - 4, lane = thread_index_again() % 32;
            const int first_row = (kSharesRows ? warp % 4 : warp) * 16;
            const int first_column = tile.column + (kSharesRows ? warp / 4 * kOwnColumns : 0);
            const int num_rows = tile.num_rows - first_row, num_stored = tile.num_stored - first_row;
            const int num_columns = params_.num_columns, stride = params_.stride();
            const float alpha = params_.factor(tile.batch);
            const float* const bias =
                params_.bias == nullptr ? nullptr : params_.bias + static_cast<int64_t>(tile.batch) * num_columns;
            // Of a lane: vector lane % 8 of rows lane / 8, and every fourth one below.
            const int vector_row = lane / 8, part = lane % 8 * kVector;
            uint8_t* const staging = shared_.staging[warp];
            uint4* const place = reinterpret_cast<uint4*>(staging + vector_row * ROW_BYTES + lane % 8 * 16);
            Out* const out = params_.out + static_cast<int64_t>(tile.row + first_row + vector_row) * stride;
#pragma unroll
            for (int first = 0; first < kOwnColumns; first += kColumns) {
                const int column = first_column + first;
                const bool exists = part < kColumns && column + part < num_columns;
                Out* const own = out + params_.heads.place(column + part);
                if (kAdds && params_.accumulate) {
#pragma unroll
                    for (int row = 0; row < 16; row += 4)
                        place[row * ROW_BYTES / 16] = exists && row + vector_row < num_rows
                                                          ? *reinterpret_cast<uint4*>(own + row * int64_t(stride))
                                                          : uint4{};
                    __syncwarp();
                }
                const float* const sums = &accumulators[first / 2 / kSums][first / 2 % kSums];
                if constexpr (kAdds || sizeof(Out) != 2 || kColumns % 16 != 0)
                    stage<kAdds>(staging, sums, alpha, bias, column, lane);
                else stage_matrices(staging, sums, alpha, lane);
                __syncwarp();
#pragma unroll
                for (int row = 0; row < 16; row += 4)
                    if (exists && row + vector_row < num_stored)
                        *reinterpret_cast<uint4*>(own + row * int64_t(stride)) =
                            row + vector_row < num_rows ? place[row * ROW_BYTES / 16] : uint4{};
                __syncwarp();
            }
        }

        // kColumns columns of the warp's rows, from `column` on.
        template <bool kAdds>
        __device__ __forceinline__ void stage(uint8_t* staging, const float* sums, float alpha, const float* bias,
                                              int column, int lane) const {
            Pair* const pairs = reinterpret_cast<Pair*>(staging + lane / 4 * ROW_BYTES) + lane % 4;
#pragma unroll
            for (int i = 0; i < kColumns / 2; i += 2) {  // sums i and i + 1 are neighbours
                Pair& pair = pairs[i / 2 % 2 * 8 * (ROW_BYTES / sizeof(Pair)) + i / 4 * 4];
                float low = alpha * sums[i], high = alpha * sums[i + 1];
                if constexpr (kAdds) {
                    const int own_column = column + i / 4 * 8 + lane % 4 * 2;
                    const float2 biases = bias::load_pair(bias, own_column, own_column < params_.num_columns);
                    low = bias::apply(alpha, sums[i], biases.x);
                    high = bias::apply(alpha, sums[i + 1], biases.y);
                    if (params_.accumulate) {
                        low += static_cast<float>(pair.low);
                        high += static_cast<float>(pair.high);
                    }
                }
                output::store_pair(&pair.low, low, high);
            }
        }

        // The same without anything to add, four matrices of eight rows and eight columns at once, the rows first.
        __device__ __forceinline__ static void stage_matrices(uint8_t* staging, const float* sums, float alpha,
                                                              int lane) {
            const uint32_t place = mbarrier::shared_address(staging + lane % 16 * ROW_BYTES + lane / 16 * 16);
#pragma unroll
            for (int i = 0; i < kColumns / 2; i += 8) {
                uint32_t pairs[4];
#pragma unroll
                for (int m = 0; m < 4; ++m)
                    pairs[m] = output::pack<Out>(alpha * sums[i + 2 * m], alpha * sums[i + 2 * m + 1]);
                stmatrix::store(place + i / 8 * 32, pairs);
            }
        }

        Storage& shared_;
        const Params& params_;
    };
};

}  // namespace epilogue
