// Quantised SwiGLU from the accumulators of wgmma whose rows are tokens: gates and ups are columns, in turn.
//
// A warp has 16 tokens. It brings the 64 columns of a block of 32 results in order in shared memory, and eight lanes a
// token activate and quantise four results each.
#pragma once
#include <stdint.h>

#include "epilogue/swiglu_quantize.cuh"
#include "ptx/launch.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

template <class Config, class Result>
struct SwigluMxSm90 {
    static constexpr int kNumConsumerWarps = 8;
    static constexpr int kNumWarps = 0;  // of its own
    static constexpr bool kSharesRows = Config::BLOCK_M <= 64;
    static constexpr int kOwnColumns = Config::BLOCK_N / (kSharesRows ? 2 : 1);  // of a warpgroup
    static constexpr int kRows = 16, kBlockColumns = 2 * Result::kBlock;
    static constexpr int kPitch = kBlockColumns + 8;  // floats; the pad keeps rows off others' banks
    static_assert(kOwnColumns % kBlockColumns == 0, "a block is of one warpgroup");

    using Params = swiglu::Epilogue<Result>;
    struct alignas(16) Storage {
        float staging[kNumConsumerWarps][kRows * kPitch];
    };
    __device__ __forceinline__ static void init(Storage&) {}

    // What a warp that multiplies does with its tiles.
    class Consumer {
        using Layout = swiglu::Layout<Result::kBlock, 1, 8, 1>;

    public:
        __device__ __forceinline__ Consumer(Storage& shared, const Params& params) : shared_(shared), params_(params) {}

        __device__ __forceinline__ void finish(const float (&sums)[1][kOwnColumns / 2], const schedule::Tile& tile) {
            const int warp = thread_index_again() / 32 - 4, lane = thread_index_again() % 32;
            const int first_token = (kSharesRows ? warp % 4 : warp) * kRows;
            const int first_column = tile.column + (kSharesRows ? warp / 4 * kOwnColumns : 0);
            float* const staging = shared_.staging[warp];
            const swiglu::TileEpilogue<Result> epilogue(params_, tile);
#pragma unroll
            for (int block = 0; block < kOwnColumns / kBlockColumns; ++block) {
                stage(staging, sums[0] + block * kBlockColumns / 2, lane);
                __syncwarp();
#pragma unroll 1  // four tokens take many instructions
                for (int first = 0; first < kRows && first_token + first < tile.num_rows; first += 4)
                    store(epilogue, staging, first_token, first + lane / 8, first_column / kBlockColumns + block);
                __syncwarp();  // before the buffer is written again
            }
        }

    private:
        // A thread has two neighbours in eight columns, of two rows.
        __device__ __forceinline__ static void stage(float* staging, const float* sums, int lane) {
#pragma unroll
            for (int j = 0; j < kBlockColumns / 8; ++j)
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    reinterpret_cast<float2*>(vector(staging, lane / 4 + half * 8, 2 * j + lane % 4 / 2))[lane % 2] =
                        make_float2(sums[j * 4 + half * 2], sums[j * 4 + half * 2 + 1]);
        }
        // Four columns of a row. Vectors of its second half change places with their neighbours, so that lanes that
        // read every other one touch every bank once.
        __device__ __forceinline__ static float4* vector(float* staging, int row, int index) {
            return reinterpret_cast<float4*>(staging + row * kPitch) + (index ^ index / 8);
        }

        // All lanes of the warp; each has four results of the row.
        __device__ __forceinline__ static void store(const swiglu::TileEpilogue<Result>& epilogue, float* staging,
                                                     int first_token, int row, int group) {
            const float4 first = *vector(staging, row, 2 * Layout::lane());
            const float4 second = *vector(staging, row, 2 * Layout::lane() + 1);
            const float gate[1][4] = {{first.x, first.z, second.x, second.z}};
            const float up[1][4] = {{first.y, first.w, second.y, second.w}};
            epilogue.template store<Layout>(gate, up, 0, first_token + row, group);
        }

        Storage& shared_;
        const Params& params_;
    };
};

}  // namespace epilogue
