// What a CTA computes at a time, and how its roles learn of it.
//
// The load role walks the schedule and hands every tile on through a small ring in shared memory, several tiles ahead;
// the other roles read it there. So a schedule costs the warps that multiply neither time nor registers, and what is
// needed of a tile after a long loop is read again instead of kept.
#pragma once
#include <stdint.h>

#include "ptx/mbarrier.cuh"
#include "schedule/ring.cuh"

namespace schedule {

struct Tile {
    int batch;      // expert, or matrix; -1 after the last tile
    int row;        // first row in a and out
    int num_rows;    // that exist; no other row counts for its value
    int num_stored;  // rows of out that are written: zeros from num_rows on
    int column;     // first column in out: row of the weights
    int scale_row;  // first row in a_scale
    int k_begin, k_end;
};

// kNumReaders: warps that read.
template <int kNumReaders>
struct TileRing {
    static constexpr int kNumTiles = 8;

    Tile tiles[kNumTiles];
    mbarrier::Barrier full[kNumTiles], empty[kNumTiles];

    // One thread calls it; mbarrier::fence_init() must follow.
    __device__ __forceinline__ void init() {
#pragma unroll  // every CTA waits for it
        for (int i = 0; i < kNumTiles; ++i) {
            mbarrier::init(&full[i], 1);
            mbarrier::init(&empty[i], kNumReaders);
        }
    }
};

// One thread.
template <class Ring>
class TileWriter {
public:
    __device__ __forceinline__ explicit TileWriter(Ring& ring) : ring_(ring) {}

    __device__ __forceinline__ void write(const Tile& tile) {
        mbarrier::wait(&ring_.empty[state_.stage], state_.parity ^ 1);
        ring_.tiles[state_.stage] = tile;
        mbarrier::arrive(&ring_.full[state_.stage]);
        state_.advance();
    }
    __device__ __forceinline__ void end() { write(Tile{-1}); }

private:
    Ring& ring_;
    RingState<Ring::kNumTiles> state_;
};

// A whole warp: for (; tiles.wait(); tiles.release()) with tiles.tile() in between.
template <class Ring>
class TileReader {
public:
    __device__ __forceinline__ explicit TileReader(Ring& ring) : ring_(ring) {}

    // Whether there is another tile.
    __device__ __forceinline__ bool wait() {
        mbarrier::wait(&ring_.full[state_.stage], state_.parity);
        return tile().batch >= 0;
    }
    // In shared memory, until it is released.
    __device__ __forceinline__ const Tile& tile() const { return ring_.tiles[state_.stage]; }

    __device__ __forceinline__ void release() {
        __syncwarp();
        if (threadIdx.x % 32 == 0) mbarrier::arrive(&ring_.empty[state_.stage]);
        state_.advance();
    }

private:
    Ring& ring_;
    RingState<Ring::kNumTiles> state_;
};

}  // namespace schedule
