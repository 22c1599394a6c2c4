// Products of sm_100 of 128 keys, a stage, with heads of queries: without a loop over K, into one of some accumulators.
//
// Where keys and heads have block scales, a warp turns their words into blocks in shared memory, and one thread copies
// these to tensor memory: those of a stage to columns of its own, those of a tile's queries to columns of their buffer.
#pragma once
#include <stdint.h>

#include "layout/scale_layout.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tcgen05.cuh"
#include "ptx/tcgen05_fp8.cuh"

namespace mainloop {

// Config: kColumns, kRowBytes, kStageKeys, kNumStages, kAccumulators, kBlockScaled. kBuffers: of queries.
template <class Config, class Formats, class Keys, int kBuffers>
class UmmaHeads {
    static constexpr bool kBlockScaled = Config::kBlockScaled;
    static constexpr int kColumns = Config::kColumns, kRowBytes = Config::kRowBytes, kStepBytes = 32;
    static constexpr int kScaleColumns = 4;  // of 128 rows
    static constexpr int kKeyScales = Config::kAccumulators * kColumns;
    static constexpr int kQueryScales = kKeyScales + (kBlockScaled ? Config::kNumStages * kScaleColumns : 0);
    static constexpr int kEnd = kQueryScales + (kBlockScaled ? kBuffers * kScaleColumns : 0);
    static_assert(Config::kStageKeys == tcgen05::kNumLanes, "a key is a lane of tensor memory");
    static_assert(!kBlockScaled || kColumns <= scale_layout::ATOM_ROWS, "queries have one block of scales");
    static_assert(kEnd <= tcgen05::kNumColumns, "accumulators and scales share 512 columns");

public:
    __device__ __forceinline__ UmmaHeads(uint32_t tensor_memory, const void* keys, const void* queries)
        : tensor_memory_(tensor_memory),
          keys_(tcgen05::descriptor_of_rows<kRowBytes>(keys)),
          queries_(tcgen05::descriptor_of_rows<kRowBytes>(queries)) {}

    // A whole warp: the words of 128 keys, or of the heads of 128 columns, become a block that begins with the first.
    __device__ __forceinline__ static void prepare_keys(float* scales) {
        if constexpr (kBlockScaled) make_block(scales, [=](int row) { return __float_as_uint(Keys::scale(scales, row)); });
    }
    __device__ __forceinline__ static void prepare_queries(uint32_t* scales) {
        make_block(scales, [=](int row) { return scales[row % kColumns]; });
    }

    // One thread, the one that multiplies: scales of the queries in a buffer, before they are multiplied.
    __device__ __forceinline__ void copy_query_scales(const uint32_t* scales, int buffer) const {
        tcgen05::copy_scales(tensor_memory_ + kQueryScales + buffer * kScaleColumns,
                             tcgen05::scale_descriptor(mbarrier::shared_address(scales)));
    }

    // One thread: the keys of a stage with the queries of a buffer.
    __device__ __forceinline__ void multiply(int accumulator, int stage, const float* key_scales, int buffer) const {
        const uint32_t d = tensor_memory_ + accumulator * kColumns;
        const uint64_t keys = keys_ + (stage * Config::kStageKeys * kRowBytes >> 4);
        const uint64_t queries = queries_ + (buffer * kColumns * kRowBytes >> 4);
        const uint32_t of_keys = tensor_memory_ + kKeyScales + stage * kScaleColumns;
        const uint32_t of_queries = tensor_memory_ + kQueryScales + buffer * kScaleColumns;
        if constexpr (kBlockScaled)
            tcgen05::copy_scales(of_keys, tcgen05::scale_descriptor(mbarrier::shared_address(key_scales)));
#pragma unroll
        for (int step = 0; step < kRowBytes / kStepBytes; ++step) {
            const int offset = step * kStepBytes >> 4;
            if constexpr (kBlockScaled) {
                const uint32_t ids = tcgen05::scale_ids(Formats::scale_byte(step), Formats::scale_byte(step));
                tcgen05::mma_block_scaled<Formats>(d, keys + offset, queries + offset,
                                                   tcgen05::block_scaled_descriptor<Formats>(kColumns) | ids, of_keys,
                                                   of_queries, step > 0);
            } else {
                tcgen05::mma_e4m3(d, keys + offset, queries + offset, tcgen05::e4m3_descriptor(kColumns), step > 0);
            }
        }
    }

private:
    // word(row): that of the row.
    template <class Word>
    __device__ __forceinline__ static void make_block(void* all, const Word& word) {
        const int lane = threadIdx.x % 32;
        const uint4 row = make_uint4(word(lane), word(lane + 32), word(lane + 64), word(lane + 96));
        __syncwarp();
        static_cast<uint4*>(all)[lane] = row;
        mbarrier::fence_async_proxy();
        __syncwarp();
    }

    const uint32_t tensor_memory_;
    const uint64_t keys_, queries_;
};

}  // namespace mainloop
