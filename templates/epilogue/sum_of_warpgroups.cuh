// Both warpgroups multiplied a share of K of the same tile. Here each gets the sums of both for half of the columns, and
// has that half stored.
#pragma once
#include "ptx/launch.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

template <class Config, class Store>
struct SumOfWarpgroups {
    static constexpr int kNumWarps = 0;  // of its own
    static constexpr int kSums = Config::BLOCK_N / 4;  // of a thread, in a half
    static constexpr int kFirstBarrier = 2;

    using Params = typename Store::Params;
    struct Storage : Store::Storage {
        float sums[2][4][kSums][32];  // of a warpgroup, of the half that is the other's
    };
    __device__ __forceinline__ static void init(Storage& shared) { Store::init(shared); }

    // What a warp that multiplies does with its tiles.
    class Consumer {
    public:
        __device__ __forceinline__ Consumer(Storage& shared, const Params& params)
            : shared_(shared), store_(shared, params) {}

        __device__ __forceinline__ void finish(const float (&accumulators)[1][2 * kSums], const schedule::Tile& tile) {
            const int warp = thread_index_again() / 32 - 4, lane = thread_index_again() % 32;
            const int own = warp / 4, place = warp % 4;
            float half[1][kSums];
#pragma unroll
            for (int i = 0; i < kSums; ++i) {
                const float first = accumulators[0][i], second = accumulators[0][kSums + i];
                half[0][i] = own == 0 ? first : second;
                shared_.sums[own][place][i][lane] = own == 0 ? second : first;
            }
            barrier_of<2 * 32>(kFirstBarrier + place);  // of the two warps that have the same rows
#pragma unroll
            for (int i = 0; i < kSums; ++i) half[0][i] += shared_.sums[1 - own][place][i][lane];
            barrier_of<2 * 32>(kFirstBarrier + place);  // before the next tile's sums come
            store_.finish(half, tile);
        }

    private:
        Storage& shared_;
        typename Store::Consumer store_;
    };
};

}  // namespace epilogue
