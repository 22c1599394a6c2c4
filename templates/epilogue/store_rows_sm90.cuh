// out = alpha * sums + bias from the accumulators of wgmma, whose rows are rows of out; zeros in rows of padding.
//
// A warp has 16 rows. At most 64 are those of both warpgroups: then each has half of the columns. It brings 128 bytes of
// each row at a time in order in shared memory, as the 128-byte swizzle has them. A whole box goes from there by TMA, while
// the warp goes on; a part of one in vectors of 16 bytes. TMA also adds to fp32, so that no warp waits for memory; what is
// added to in 16 bits is read first, since the whole is rounded once.
#pragma once
#include <stdint.h>

#include "epilogue/store_params.cuh"
#include "number/output.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/stmatrix.cuh"
#include "ptx/tma.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

// Config::kStoreBuffers: boxes of a warp that are on their way at once. kMatrices: the map has a dimension of batches.
template <class Config, class Out, bool kMatrices = false>
struct StoreRowsSm90 {
    static constexpr int kNumConsumerWarps = 8;
    static constexpr int kNumWarps = 0;  // of its own
    static constexpr int kRows = 16, kBoxColumns = 128 / sizeof(Out), kVector = 16 / sizeof(Out);
    static constexpr int kBuffers = Config::kStoreBuffers;
    static constexpr bool kSharesRows = Config::BLOCK_M <= 64;
    static constexpr int kOwnColumns = Config::BLOCK_N / (kSharesRows ? 2 : 1);  // of a warpgroup
    static_assert(kOwnColumns >= kBoxColumns, "less are stored in pairs");
    static constexpr bool kAddsInMemory = sizeof(Out) == 4 && kOwnColumns % kBoxColumns == 0;  // whole boxes

    struct Params : StoreParams<Out> {
        const tma::TensorMap* map;  // of out, or null
    };
    struct alignas(1024) Storage {  // where the swizzle repeats
        uint8_t boxes[kNumConsumerWarps][kBuffers][kRows * 128];
    };
    __device__ __forceinline__ static void init(Storage&) {}

    // What a warp that multiplies does with its tiles.
    class Consumer {
    public:
        __device__ __forceinline__ Consumer(Storage& shared, const Params& params) : shared_(shared), params_(params) {}
        __device__ __forceinline__ ~Consumer() {
            tma::wait_until_read<0>();
        }

        // Of each tile of a warpgroup kSums.
        template <int kTiles, int kSums>
        __device__ __forceinline__ void finish(const float (&accumulators)[kTiles][kSums], const schedule::Tile& tile) {
            const bool is_whole = tile.num_rows - row_of(thread_index_again() / 32 - 4) >= kRows;
            // By a vote: a branch of lanes around barriers of the warp would cost the main loop its uniform registers.
            const bool in_memory = kAddsInMemory && params_.map != nullptr && __all_sync(0xFFFFFFFF, is_whole);
            const bool reads = params_.accumulate && !in_memory;
            if (params_.bias == nullptr && !reads) store<false>(accumulators, tile);
            else store<true>(accumulators, tile);
        }

    private:
        // Of the warp, in the tile.
        __device__ __forceinline__ static int row_of(int warp) { return (kSharesRows ? warp % 4 : warp) * kRows; }

        // kAdds: a bias, or what out has, read here.
        template <bool kAdds, int kTiles, int kSums>
        __device__ __forceinline__ void store(const float (&accumulators)[kTiles][kSums], const schedule::Tile& tile) {
            const int warp = thread_index_again() / 32 - 4, lane = thread_index_again() % 32;
            const int first_row = row_of(warp);
            const int num_rows = tile.num_rows - first_row, num_stored = tile.num_stored - first_row;
            const float alpha = params_.factor(tile.batch);
            const float* const bias = params_.bias_of(tile.batch);
#pragma unroll
            for (int first = 0; first < kOwnColumns; first += kBoxColumns) {
                const int count = kOwnColumns - first < kBoxColumns ? kOwnColumns - first : kBoxColumns;
                // Of what both warpgroups have rows of, each has half of every tile.
                const int before = kSharesRows ? first / (2 * kSums) * (2 * kSums) + warp / 4 * (2 * kSums) : 0;
                const int column = tile.column + before + first, end = min(count, params_.num_columns - column);
                uint8_t* const box = shared_.boxes[warp][first / kBoxColumns % kBuffers];
                tma::wait_until_read<kBuffers - 1>();
                __syncwarp();
                Out* const out = params_.out_of(tile.batch) + int64_t(tile.row + first_row) * params_.stride();
                if (kAdds && params_.accumulate) {
                    each_vector(lane, [&](int row, int part) {
                        const bool exists = row < num_rows && part < end;
                        place(box, row, part) = exists ? *vector_of(out, row, column + part) : uint4{};
                    });
                    __syncwarp();
                }
                const auto sum = [&](int i) { return accumulators[(first / 2 + i) / kSums][(first / 2 + i) % kSums]; };
                if constexpr (kAdds || sizeof(Out) != 2) stage<kAdds>(box, sum, alpha, bias, column, count, lane);
                else stage_matrices(box, sum, alpha, count, lane);
                mbarrier::fence_async_proxy();
                __syncwarp();
                if (count == kBoxColumns && params_.map != nullptr && num_rows >= kRows) {
                    if (lane == 0 && end > 0)
                        store_box(box, column, tile.row + first_row, tile.batch,
                                  !kAdds && kAddsInMemory && params_.accumulate);
                } else {
                    each_vector(lane, [&](int row, int part) {
                        if (row < num_stored && part < end)
                            *vector_of(out, row, column + part) = row < num_rows ? place(box, row, part) : uint4{};
                    });
                }
                tma::commit_stores();
            }
        }

        __device__ __forceinline__ void store_box(const uint8_t* box, int column, int row, int batch, bool adds) const {
            if constexpr (kMatrices) {
                if (adds) tma::add_3d(params_.map, box, column, row, batch);
                else tma::store_3d(params_.map, box, column, row, batch);
            } else {
                if (adds) tma::add_2d(params_.map, box, column, row);
                else tma::store_2d(params_.map, box, column, row);
            }
        }

        // Calls with every row and every first column of a vector of a box that a lane has.
        template <class Function>
        __device__ __forceinline__ static void each_vector(int lane, const Function& function) {
#pragma unroll 1  // the exception may be slow rather than long
            for (int row = 0; row < kRows; row += 4) function(row + lane / 8, lane % 8 * kVector);
        }
        // In a row of a box, 16 bytes are where the swizzle puts them.
        __device__ __forceinline__ static uint4& place(uint8_t* box, int row, int part) {
            return reinterpret_cast<uint4*>(box)[row * 8 + (part / kVector ^ row % 8)];
        }
        __device__ __forceinline__ uint4* vector_of(Out* out, int row, int column) const {
            return reinterpret_cast<uint4*>(out + row * int64_t(params_.stride()) + params_.heads.place(column));
        }

        // `count` columns of the warp's rows, from `column` on.
        template <bool kAdds, class Sum>
        __device__ __forceinline__ void stage(uint8_t* box, const Sum& sum, float alpha, const float* bias, int column,
                                              int count, int lane) const {
#pragma unroll
            for (int i = 0; i < kBoxColumns / 2; i += 2) {  // sums i and i + 1 are neighbours
                if (2 * i >= count) break;
                const int row = lane / 4 + i / 2 % 2 * 8, own_column = i / 4 * 8 + lane % 4 * 2;
                Out* const pair = reinterpret_cast<Out*>(&place(box, row, own_column)) + own_column % kVector;
                float2 result = make_float2(alpha * sum(i), alpha * sum(i + 1));
                if constexpr (kAdds)
                    result = params_.add(make_float2(sum(i), sum(i + 1)), alpha, bias, column + own_column, pair);
                output::store_pair(pair, result.x, result.y);
            }
        }

        // The same without anything to add, four matrices of eight rows and eight columns at once, the rows first.
        template <class Sum>
        __device__ __forceinline__ static void stage_matrices(uint8_t* box, const Sum& sum, float alpha, int count,
                                                              int lane) {
            const uint32_t row = mbarrier::shared_address(box + lane % 16 * 128);
#pragma unroll
            for (int i = 0; i < kBoxColumns / 2; i += 8) {
                if (2 * i >= count) break;
                uint32_t pairs[4];
#pragma unroll
                for (int m = 0; m < 4; ++m)
                    pairs[m] = output::pack<Out>(alpha * sum(i + 2 * m), alpha * sum(i + 2 * m + 1));
                stmatrix::store(row + ((i / 4 + lane / 16 ^ lane % 8) << 4), pairs);
            }
        }

        Storage& shared_;
        const Params& params_;
    };
};

}  // namespace epilogue
