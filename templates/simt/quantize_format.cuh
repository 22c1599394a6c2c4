// What rows are quantised to. A thread has kValues neighbouring values of a row; `kLanes` neighbouring threads share a
// scale, and `kScales` scales, a byte or an fp32 each, are a word of 32 bits:
//     using OfExpert;  OfExpert load(int expert) const;     what the rows of an expert share, loaded ahead of its use
//     {elements, scale} quantize(const float (&)[kValues], OfExpert) const;
// kWordLanes threads make a word. Where threads share a scale, all lanes of the warp quantise: zeros, if nothing else.
#pragma once
#include <stdint.h>

#include "number/fp8.cuh"
#include "number/integer.cuh"
#include "number/mx.cuh"
#include "number/nvfp4.cuh"
#include "number/operands.cuh"
#include "number/ue8m0.cuh"

namespace quantize {

constexpr int kValues = 16;  // of a thread
static_assert(kValues == nvfp4::kBlock, "a thread has a block of NVFP4");

template <class Format>
constexpr int kWordLanes = Format::kLanes * Format::kScales;

// Of scales, in a row.
template <class Format>
__device__ __forceinline__ int words(int columns) {
    return ceil_div(columns, kWordLanes<Format> * kValues);
}

struct Nvfp4 {
    static constexpr int kLanes = 1, kScales = 4;
    using Elements = uint2;
    using OfExpert = float;

    const float* global_scales;  // per expert
    bool decode, ieee;

    __device__ __forceinline__ OfExpert load(int expert) const { return global_scales[expert]; }
    __device__ __forceinline__ nvfp4::Quantized quantize(const float (&values)[kValues], OfExpert global_scale) const {
        return nvfp4::quantize(values, nvfp4::encode_scale(global_scale, decode), ieee);
    }
};

struct Nothing {};

// The elements of a thread; Packed holds eight.
template <class Packed>
struct alignas(2 * sizeof(Packed)) Halves {
    Packed half[2];
};

template <class Packed>
struct Quantized {
    Halves<Packed> elements;
    uint32_t scale;
};

// Of an aligned group of kLanes threads, in each of them; NaN where a value is.
template <int kLanes>
__device__ __forceinline__ float shared_amax(const float (&values)[kValues]) {
    float largest = nvfp4::amax(values);
#pragma unroll
    for (int distance = 1; distance < kLanes; distance *= 2)
        largest = max_nan(largest, __shfl_xor_sync(0xFFFFFFFF, largest, distance));
    return largest;
}

// `Result` packs eight values.
template <class Result>
__device__ __forceinline__ Halves<typename Result::Packed> pack(const float (&values)[kValues], float multiplier) {
    Halves<typename Result::Packed> elements;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float scaled[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) scaled[i] = __fmul_rn(values[8 * half + i], multiplier);
        elements.half[half] = Result::pack(scaled);
    }
    return elements;
}

// UE8M0 for 32.
template <operands::Format kElement>
struct Mx {
    using Result = mx::Result<kElement>;
    using Elements = Halves<typename Result::Packed>;
    using OfExpert = Nothing;
    static constexpr int kLanes = Result::kBlock / kValues, kScales = 4;

    mx::ScaleRounding rounding;

    __device__ __forceinline__ OfExpert load(int) const { return {}; }
    __device__ __forceinline__ Quantized<typename Result::Packed> quantize(const float (&values)[kValues],
                                                                           OfExpert) const {
        const mx::BlockScale scale = typename Result::OfBatch({rounding}, 0).scale(shared_amax<kLanes>(values));
        return {pack<Result>(values, scale.multiplier), scale.byte};
    }
};

using Mxfp8 = Mx<operands::Format::E4M3>;
using Mxfp4 = Mx<operands::Format::E2M1>;

// E4M3 with a scale for 128: fp32, or the exponents of four in a word.
template <bool kExponents>
struct ScaledE4m3 {
    using Result = mx::Result<operands::Format::E4M3>;
    using Elements = Halves<Result::Packed>;
    using OfExpert = Nothing;
    static constexpr int kLanes = fp8::kBlock / kValues, kScales = kExponents ? 4 : 1;

    fp8::ScaleRounding rounding;

    __device__ __forceinline__ OfExpert load(int) const { return {}; }
    __device__ __forceinline__ Quantized<Result::Packed> quantize(const float (&values)[kValues], OfExpert) const {
        const fp8::BlockScale scale = fp8::block_scale(shared_amax<kLanes>(values), rounding);
        const uint32_t bits = __float_as_uint(scale.value);
        return {pack<Result>(values, scale.multiplier), kExponents ? ue8m0::of_power(bits) : bits};
    }
};

using Fp8 = ScaledE4m3<false>;
using Fp8Ue8m0 = ScaledE4m3<true>;

}  // namespace quantize
