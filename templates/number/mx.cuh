// Quantisation to MX: E4M3 or E2M1 with a UE8M0 scale for a block of 32 (OCP MX 1.0).
//
// The scale is the smallest power of two with which the largest magnitude of the block does not saturate, or, by the
// OCP rule, 2^(floor(log2(amax)) - the largest exponent of an element), with which it may. Elements are multiplied by
// its reciprocal, which is exact.
#pragma once
#include <stdint.h>

#include <type_traits>

#include "number/fp8.cuh"
#include "number/nvfp4.cuh"
#include "number/operands.cuh"

namespace mx {

enum ScaleRounding : int { kUp, kOcp };

struct BlockScale {
    uint32_t byte;  // UE8M0
    float multiplier;
};

// How a GEMM's epilogue quantises tokens for the next one; see nvfp4::Result.
template <operands::Format kElement>
struct Result {
    static constexpr bool kBytes = kElement == operands::Format::E4M3;
    static constexpr int kBlock = 32, kBits = kBytes ? 8 : 4;
    using Packed = std::conditional_t<kBytes, uint2, uint32_t>;  // eight elements, the first in the lowest bits
    // Of the largest element, 1.75 * 2^8 or 1.5 * 2^2: its exponent, and what carries a larger fraction into the next.
    static constexpr int kExponent = kBytes ? 8 : 2;
    static constexpr uint32_t kCarry = kBytes ? 0x001FFFFF : 0x003FFFFF;

    ScaleRounding rounding;

    class OfBatch {
    public:
        __device__ __forceinline__ OfBatch(const Result& result, int) : rounding_(result.rounding) {}

        // Infinity takes the largest scale, NaN is NaN.
        __device__ __forceinline__ BlockScale scale(float amax) const {
            if (!(amax <= __builtin_huge_valf())) return {0xFF, amax};
            const uint32_t bits = __float_as_uint(amax) + (rounding_ == kUp ? kCarry : 0);
            const int byte = max(static_cast<int>(bits >> 23) - kExponent, 0);
            return {static_cast<uint32_t>(byte), __uint_as_float((254 - byte) << 23)};
        }

    private:
        ScaleRounding rounding_;
    };

    __device__ __forceinline__ static Packed pack(const float (&v)[8]) {
        if constexpr (kBytes) return make_uint2(pack_bytes(v[0], v[1], v[2], v[3]), pack_bytes(v[4], v[5], v[6], v[7]));
        else return nvfp4::pack_e2m1(v);
    }
    __device__ __forceinline__ static uint32_t pack_bytes(float a, float b, float c, float d) {
        return fp8::pack_e4m3(a, b) | static_cast<uint32_t>(fp8::pack_e4m3(c, d)) << 16;
    }
};

// That which the next GEMM of such operands takes as its tokens.
template <class Operands>
using TokensOf = std::conditional_t<Operands::POWER_SCALES, Result<Operands::TOKENS>, nvfp4::Result>;

}  // namespace mx
