// Products of keys and queries in E4M3, which wgmma reads as they are. A key has an fp32 scale.
//
//     static constexpr int kSteps;  struct Storage;  using KeyOperand: a stage's keys
//     void take_queries(buffer): both warpgroups, when the queries of a tile are there
//     void load_keys(keys, stage);  float scale(stage, row): of a key's sums
//     void multiply(values, keys, buffer, step): wgmma, along K
#pragma once
#include <stdint.h>

#include "ptx/wgmma.cuh"
#include "ptx/wgmma_rows.cuh"
#include "ptx/wgmma_shared.cuh"

namespace mainloop {

// Operands: what a CTA has in shared memory, kernel::MqaOperands.
template <class Config, class Operands, class Keys>
class E4m3Products {
    static constexpr int kRowBytes = Config::kRowBytes, kColumns = Config::kColumns;

public:
    static constexpr int kSteps = kRowBytes / 32;
    struct Storage {};
    using KeyOperand = uint64_t;

    __device__ __forceinline__ E4m3Products(const Operands& operands, Storage&)
        : operands_(operands),
          all_keys_(wgmma::descriptor_of_rows<kRowBytes>(operands.keys[0])),
          all_queries_(wgmma::descriptor_of_rows<kRowBytes>(operands.queries[0])) {}

    __device__ __forceinline__ void take_queries(int) {}

    __device__ __forceinline__ void load_keys(KeyOperand& keys, int stage) const {
        keys = wgmma::advance(all_keys_, stage * Config::kStageKeys * kRowBytes);
    }
    __device__ __forceinline__ float scale(int stage, int row) const {
        return Keys::scale(operands_.scales[stage], row);
    }
    __device__ __forceinline__ void multiply(float* values, const KeyOperand& keys, int buffer, int step) const {
        const uint64_t queries = wgmma::advance(all_queries_, buffer * kColumns * kRowBytes);
        wgmma::mma_shared<false, false>(wgmma::Shape<number::e4m3, kColumns>(), values, wgmma::advance(keys, step * 32),
                                        wgmma::advance(queries, step * 32), step > 0);
    }

private:
    const Operands& operands_;
    const uint64_t all_keys_, all_queries_;
};

}  // namespace mainloop
