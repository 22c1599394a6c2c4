// E4M3 of rows that lie in the accumulators of wgmma, with an fp32 scale for 128 columns.
//
// A quad of lanes has 128 columns of a row, so what a scale needs is in its registers. Where the warpgroups share the
// rows, a quad has half of them, and the maxima of both halves meet in shared memory.
#pragma once
#include <stdint.h>

#include "number/fp8.cuh"
#include "number/minmax.cuh"
#include "ptx/launch.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

// Where a block of a tile goes. Scales are MN-major, as GEMMs take them.
struct QuantizedOut {
    uint8_t* out;
    float* out_scale;
    int num_columns;
    int scale_stride;  // from the scales of a block of columns to those of the next
    int batch_stride;  // from scale_row of a tile to its row in out_scale, for every batch before
    fp8::ScaleRounding rounding;
};

// What a warp that multiplies does with one block. kShared: both warpgroups have all rows, and 64 of the columns each.
template <bool kShared>
class QuantizedRows {
    static constexpr int kColumns = kShared ? 64 : 128;
    static constexpr int ROW_BYTES = kColumns + 16;  // the pad keeps rows off others' banks
    static constexpr int kNumConsumerWarps = 8, kRowVectors = kColumns / 16;

public:
    static constexpr int kValues = kColumns / 4;  // neighbours in pairs, of each of two rows of a lane, 8 apart
    struct alignas(16) Storage {
        uint8_t staging[kNumConsumerWarps][16 * ROW_BYTES];
        float maxima[kShared ? 2 : 0][2][64];  // of every other tile; of the warpgroups
    };

    __device__ __forceinline__ QuantizedRows(Storage& shared, const QuantizedOut& out) : shared_(shared), out_(out) {}

    // The first of a warp's rows, in the tile, and of its columns, in the block.
    __device__ __forceinline__ static int first_row(int warp) { return (kShared ? warp % 4 : warp) * 16; }
    __device__ __forceinline__ static int first_column(int warp) { return kShared ? warp / 4 * kColumns : 0; }

    // Value i of a row lies in this column of the block.
    __device__ __forceinline__ static int column(int warp, int lane, int i) {
        return first_column(warp) + i / 2 * 8 + lane % 4 * 2 + i % 2;
    }

    // The block of the tile whose first column is `first`. Its padding becomes zeros.
    __device__ __forceinline__ void store(const float (&values)[2][kValues], const schedule::Tile& tile, int first) {
        const int warp = thread_index_again() / 32 - 4, lane = thread_index_again() % 32;
        float maxima[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) maxima[half] = of_quad(values[half]);
        if constexpr (kShared) exchange(maxima, warp, lane);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const fp8::BlockScale scale = fp8::block_scale(maxima[half], out_.rounding);
            const int row = lane / 4 + half * 8;
            if (lane % 4 == 0 && first_column(warp) == 0) write_scale(scale.value, tile, first_row(warp) + row, first);
            uint8_t* const staged = shared_.staging[warp] + row * ROW_BYTES + lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < kValues; i += 2)
                *reinterpret_cast<uint16_t*>(staged + i * 4) =
                    fp8::pack_e4m3(__fmul_rn(values[half][i], scale.multiplier),
                                   __fmul_rn(values[half][i + 1], scale.multiplier));
        }
        __syncwarp();
        write(tile, first + first_column(warp), warp, lane);
        __syncwarp();  // before the buffer is written again
    }

private:
    // The largest magnitude of the values of four lanes.
    __device__ __forceinline__ static float of_quad(const float (&values)[kValues]) {
        float largest[2] = {};
#pragma unroll
        for (int i = 0; i < kValues; ++i) largest[i % 2] = max_nan(largest[i % 2], fabsf(values[i]));
        float result = max_nan(largest[0], largest[1]);
#pragma unroll
        for (int distance = 1; distance < 4; distance *= 2)
            result = max_nan(result, __shfl_xor_sync(0xFFFFFFFF, result, distance));
        return result;
    }

    // With the maxima of the other warpgroup. A warpgroup is at most a barrier ahead: two buffers are enough.
    __device__ __forceinline__ void exchange(float (&maxima)[2], int warp, int lane) {
        float(&buffer)[2][64] = shared_.maxima[turn_];
        const int row = first_row(warp) + lane / 4;
        if (lane % 4 == 0) buffer[warp / 4][row] = maxima[0], buffer[warp / 4][row + 8] = maxima[1];
        barrier_of<32 * kNumConsumerWarps>();
#pragma unroll
        for (int half = 0; half < 2; ++half)
            maxima[half] = max_nan(maxima[half], buffer[1 - warp / 4][row + half * 8]);
        turn_ ^= 1;
    }

    __device__ __forceinline__ void write_scale(float scale, const schedule::Tile& tile, int row, int first) const {
        if (row < tile.num_stored)
            out_.out_scale[tile.scale_row + tile.batch * out_.batch_stride + row +
                           first / fp8::kBlock * out_.scale_stride] = row < tile.num_rows ? scale : 0;
    }

    __device__ __forceinline__ void write(const schedule::Tile& tile, int first, int warp, int lane) const {
#pragma unroll
        for (int vector = lane; vector < 16 * kRowVectors; vector += 32) {
            const int own = vector / kRowVectors, row = first_row(warp) + own;
            const int column = first + vector % kRowVectors * 16;
            if (row < tile.num_stored && column < out_.num_columns)
                *reinterpret_cast<uint4*>(out_.out + int64_t(tile.row + row) * out_.num_columns + column) =
                    row < tile.num_rows ? *reinterpret_cast<const uint4*>(shared_.staging[warp] + own * ROW_BYTES +
                                                                          vector % kRowVectors * 16)
                                        : uint4{};
        }
    }

    Storage& shared_;
    const QuantizedOut& out_;
    int turn_ = 0;
};

}  // namespace epilogue
