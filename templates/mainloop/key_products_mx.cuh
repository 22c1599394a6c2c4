// Products of keys and queries in MXFP8 or MXFP4 by wgmma of bf16, which has no block scales: E4M3 or E2M1 times a power of
// two is a bf16. The other functions are those of key_products.cuh.
//
// Keys become the rows of the instruction in registers, while the other warpgroup multiplies; queries become its
// columns in shared memory, once a tile, by both warpgroups. The order of K is free as long as both operands agree: lane
// c of four takes quarter c of a row, which has one scale, and makes words of two elements of it. Word w of a key is where
// the instruction wants word c of the 16 bytes w of a row, and word w of a query goes there.
#pragma once
#include <stdint.h>

#include "number/bf16.cuh"
#include "number/e2m1.cuh"
#include "number/ue8m0.cuh"
#include "ptx/launch.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma.cuh"
#include "ptx/wgmma_bf16.cuh"
#include "ptx/wgmma_rows.cuh"

namespace mainloop {

template <class Config, class Operands, class Keys>
class MxProducts {
    static constexpr int kRowBytes = Config::kRowBytes, kDim = Config::kHeadDim, kColumns = Config::kColumns;
    static constexpr bool kPacked = kRowBytes < kDim;  // two elements in a byte
    static constexpr int kWords = kDim / 8;            // of a lane: a pair of bf16 each
    static constexpr int kPanelDim = kDim < 64 ? kDim : 64, kPanelRow = 2 * kPanelDim;  // columns lie in panels of 128 bytes
    static constexpr int kPanelBytes = kColumns * kPanelRow, kPanelSteps = kPanelDim / 16;
    static constexpr int kNumThreads = 256;  // of both warpgroups

public:
    static constexpr int kSteps = kDim / 16;
    struct Storage {
        alignas(1024) uint8_t queries[kColumns * kDim * 2];
    };
    using KeyOperand = uint32_t[kSteps][4];

    __device__ __forceinline__ MxProducts(const Operands& operands, Storage& shared)
        : operands_(operands), shared_(shared), columns_(wgmma::descriptor_of_rows<kPanelRow>(shared.queries)) {}

    __device__ __forceinline__ void take_queries(int buffer) {
        const int thread = threadIdx.x % kNumThreads, quarter = thread % 4;
        barrier_of<kNumThreads>();  // the queries before these have been multiplied
#pragma unroll 1
        for (int row = thread / 4; row < kColumns; row += kNumThreads / 4) {
            uint32_t words[kWords];
            convert(words, operands_.queries[buffer], row, operands_.query_scales[buffer][row]);
#pragma unroll
            for (int w = 0; w < kWords; ++w) {
                const uint32_t place = ldmatrix::swizzled<kPanelRow>(row, w * 16 % kPanelRow) + quarter * 4;
                *reinterpret_cast<uint32_t*>(shared_.queries + w * 16 / kPanelRow * kPanelBytes + place) = words[w];
            }
        }
        mbarrier::fence_async_proxy();  // wgmma reads through the async proxy
        barrier_of<kNumThreads>();
    }

    __device__ __forceinline__ void load_keys(KeyOperand& keys, int stage) const {
        const int first = warp_index() % 4 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first + half * 8;
            uint32_t words[kWords];
            convert(words, operands_.keys[stage], row, __float_as_uint(Keys::scale(operands_.scales[stage], row)));
#pragma unroll
            for (int w = 0; w < kWords; ++w) keys[w / 2][w % 2 * 2 + half] = words[w];
        }
    }
    __device__ __forceinline__ static float scale(int, int) { return 1; }

    __device__ __forceinline__ void multiply(float* values, const KeyOperand& keys, int, int step) const {
        wgmma::mma_bf16<kColumns>(
            values, keys[step],
            wgmma::advance(columns_, step / kPanelSteps * kPanelBytes + step % kPanelSteps * 32), step > 0);
    }

private:
    // This lane's quarter of a row, times its scale in a word of them.
    __device__ __forceinline__ static void convert(uint32_t (&words)[kWords], const uint8_t* rows, int row, uint32_t scales) {
        const int quarter = threadIdx.x % 4;
        const float scale = ue8m0::value(scales, quarter * kDim / 128);
#pragma unroll
        for (int i = 0; i < kRowBytes / 32; ++i) {
            const uint2 eight =
                *reinterpret_cast<const uint2*>(rows + ldmatrix::swizzled<kRowBytes>(row, quarter * (kRowBytes / 4) + i * 8));
            if constexpr (kPacked) {
                const uint4 bytes = e2m1::to_e4m3(eight);
                bf16::of_e4m3(&words[8 * i], {bytes.x, bytes.y}, scale);
                bf16::of_e4m3(&words[8 * i + 4], {bytes.z, bytes.w}, scale);
            } else {
                bf16::of_e4m3(&words[4 * i], eight, scale);
            }
        }
    }

    const Operands& operands_;
    Storage& shared_;
    const uint64_t columns_;
};

}  // namespace mainloop
