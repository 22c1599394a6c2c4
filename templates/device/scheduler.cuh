// Persistent tile schedule of a grouped GEMM: which (expert, row tile, column tile) a CTA computes next.
//
// The number of row tiles of an expert is known on the device only. Every CTA scans expert_offsets once, in
// parallel, into a prefix of row tiles in shared memory; each role then finds the expert of a tile by binary search.
// Empty experts own no tile, so they cost nothing.
//
// Order: expert, column tile, row tile (fastest). CTAs that run at the same time thus share one weight tile, which
// is read from memory once; the activations of one expert stay in L2.
#pragma once
#include <stdint.h>

#include "device/integer.cuh"

namespace scheduler {

constexpr int kMaxExperts = 1024;

struct Tile {
    int expert;
    int row_begin;      // first row of the tile in a and out
    int num_rows;       // valid rows, at most BLOCK_M
    int row_in_expert;  // first row of the tile within its expert, a multiple of BLOCK_M
    int column_begin;   // first column of the tile in out
};

struct SharedStorage {
    int tiles_before[kMaxExperts + 1];  // row tiles of the experts before e
    int warp_totals[32];
};

// Fills storage; every thread of the CTA calls it, and a CTA barrier is inside. Rows are clamped to [0, num_rows] so
// that offsets which are not what they should be cannot lead out of the buffers.
template <int BLOCK_M, int kNumThreads>
__device__ __forceinline__ void build(SharedStorage& storage, const int* expert_offsets, int num_experts,
                                      int num_rows) {
    static_assert(kNumThreads % 32 == 0, "the scan works on whole warps");
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int carry = 0;
    for (int base = 0; base < num_experts; base += kNumThreads) {
        const int expert = base + threadIdx.x;
        int tiles = 0;
        if (expert < num_experts) {
            const int begin = max(0, min(expert_offsets[expert], num_rows));
            const int end = max(begin, min(expert_offsets[expert + 1], num_rows));
            tiles = ceil_div(end - begin, BLOCK_M);
        }
        int inclusive = tiles;
        for (int distance = 1; distance < 32; distance *= 2) {
            const int below = __shfl_up_sync(0xFFFFFFFF, inclusive, distance);
            if (lane >= distance) inclusive += below;
        }
        if (lane == 31) storage.warp_totals[warp] = inclusive;
        __syncthreads();
        int before = carry;
        for (int w = 0; w < kNumThreads / 32; ++w) {
            const int total = storage.warp_totals[w];
            if (w < warp) before += total;
            carry += total;
        }
        if (expert < num_experts) storage.tiles_before[expert] = before + inclusive - tiles;
        __syncthreads();  // before warp_totals is written again
    }
    if (threadIdx.x == 0) storage.tiles_before[num_experts] = carry;
    __syncthreads();
}

template <int BLOCK_M, int BLOCK_N>
class Scheduler {
public:
    __device__ __forceinline__ Scheduler(const SharedStorage& storage, const int* expert_offsets, int num_experts,
                                         int num_rows, int num_columns)
        : storage_(storage),
          expert_offsets_(expert_offsets),
          num_experts_(num_experts),
          num_rows_(num_rows),
          column_tiles_(ceil_div(num_columns, BLOCK_N)),
          next_(blockIdx.x) {}

    // The CTA's next tile; false when there is none left. All roles call it in step and get the same tiles.
    __device__ __forceinline__ bool next(Tile& tile) {
        const int index = next_;
        if (index >= storage_.tiles_before[num_experts_] * column_tiles_) return false;
        next_ += gridDim.x;
        // tiles_before[low] * column_tiles <= index < tiles_before[high] * column_tiles
        int low = 0, high = num_experts_;
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            if (storage_.tiles_before[middle] * column_tiles_ <= index) low = middle;
            else high = middle;
        }
        const int first = storage_.tiles_before[low];
        const int row_tiles = storage_.tiles_before[low + 1] - first;
        const int local = index - first * column_tiles_;
        const int begin = max(0, min(expert_offsets_[low], num_rows_));
        const int end = max(begin, min(expert_offsets_[low + 1], num_rows_));
        tile.expert = low;
        tile.row_in_expert = local % row_tiles * BLOCK_M;
        tile.row_begin = begin + tile.row_in_expert;
        tile.num_rows = min(BLOCK_M, end - tile.row_begin);
        tile.column_begin = local / row_tiles * BLOCK_N;
        return true;
    }

private:
    const SharedStorage& storage_;
    const int* expert_offsets_;
    int num_experts_, num_rows_, column_tiles_, next_;
};

}  // namespace scheduler
