// RMSNorm of a row a CTA, which is read once and then lies in shared memory, and its quantisation.
#pragma once
#include <stdint.h>

#include "number/output.cuh"
#include "simt/block_reduce.cuh"
#include "simt/quantize_row.cuh"

namespace rms_norm {

using quantize::Block;
using quantize::kValues;

// To the type of x: of the product with the weight, of the normalised value before that, too, or of neither.
enum Rounding : int { kActivationType, kEachStep, kNone };

// A row times what makes its mean square 1, and a weight a column.
template <typename T>
struct Normalised {
    struct Raw {
        Block<T> x, weight;
    };

    float inverse_rms, weight_offset;
    Rounding rounding;

    __device__ __forceinline__ static float rounded(float value) {
        return static_cast<float>(output::convert<T>(value));
    }
    __device__ __forceinline__ void values(float (&values)[kValues], const Raw& raw) const {
        float weights[kValues];
        quantize::widen(values, raw.x);
        quantize::widen(weights, raw.weight);
#pragma unroll
        for (int i = 0; i < kValues; ++i) {
            float value = __fmul_rn(values[i], inverse_rms);
            if (rounding == kEachStep) value = rounded(value);
            value = __fmul_rn(value, __fadd_rn(weights[i], weight_offset));
            values[i] = rounding == kNone ? value : rounded(value);
        }
    }
};

// x += residual, rounded.
template <typename T>
__device__ __forceinline__ void add(Block<T>& x, const Block<T>& residual) {
    float values[kValues], others[kValues];
    quantize::widen(values, x);
    quantize::widen(others, residual);
    uint32_t* words = reinterpret_cast<uint32_t*>(&x);
#pragma unroll
    for (int i = 0; i < kValues; i += 2)
        words[i / 2] = output::pack<T>(__fadd_rn(values[i], others[i]), __fadd_rn(values[i + 1], others[i + 1]));
}

// In four chains instead of one long one.
template <typename T>
__device__ __forceinline__ void add_squares(float (&sums)[4], const Block<T>& block) {
    float values[kValues];
    quantize::widen(values, block);
#pragma unroll
    for (int i = 0; i < kValues; ++i) sums[i % 4] = __fmaf_rn(values[i], values[i], sums[i % 4]);
}

// The sum of the squares of a row, in every thread, the same bits in every launch; a CTA barrier is inside. The row is
// x, or x + residual, which then takes the place of that; each thread keeps its own part of it in `row`.
template <int kNumThreads, int kParts, typename T>
__device__ __forceinline__ float load(Block<T>* row, const T* x, T* residual, int vectors) {
    Block<T> values[kParts], others[kParts];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
        const int vector = part * kNumThreads + threadIdx.x;
        if (vector >= vectors) continue;
        values[part] = quantize::load(x + vector * kValues);
        if (residual) others[part] = quantize::load(residual + vector * kValues);
    }
    float sums[4] = {};
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
        const int vector = part * kNumThreads + threadIdx.x;
        if (vector >= vectors) continue;
        if (residual) {
            add(values[part], others[part]);
            reinterpret_cast<Block<T>*>(residual)[vector] = values[part];
        }
        row[vector] = values[part];
        add_squares(sums, values[part]);
    }
    return block_sum<kNumThreads>(__fadd_rn(__fadd_rn(sums[0], sums[1]), __fadd_rn(sums[2], sums[3])));
}

// Row blockIdx.x of the matrices, of at most 16 * kNumThreads * kParts columns. Every operation is rounded on its own.
template <int kNumThreads, int kParts, class Format, typename T>
__device__ __forceinline__ void run(const Format& format, const T* x, T* residual, const T* weight, float eps,
                                    Normalised<T> source, const quantize::Output<Format>& output) {
    __shared__ Block<T> row[kParts * kNumThreads];
    const int vectors = output.blocks, columns = vectors * kValues;
    const int64_t first = int64_t(blockIdx.x) * columns;
    const auto fetch = [&](int vector) {
        return vector < vectors ? quantize::load(weight + vector * kValues) : Block<T>{};
    };

    quantize::Item<Format, Normalised<T>> item;
    item.of_expert = format.load(0);
    item.raw.weight = fetch(threadIdx.x);
    item.out_row = item.scale_row = blockIdx.x;
    const float sum = load<kNumThreads, kParts>(row, x + first, residual ? residual + first : nullptr, vectors);
    source.inverse_rms = __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(sum, columns), eps)));
#pragma unroll 1  // while a vector is quantised, the weights of the next one come
    for (int part = 0; part * kNumThreads < vectors; ++part) {
        const int vector = part * kNumThreads + threadIdx.x;
        const Block<T> next = fetch(vector + kNumThreads);
        if (vector < vectors) item.raw.x = row[vector];
        item.word = vector / quantize::kWordLanes<Format>;
        item.owned = item.word < output.scales.words;
        quantize::quantize_and_store(format, source, output, item);
        item.raw.weight = next;
    }
}

}  // namespace rms_norm
