// The gated activation between the two GEMMs of an MoE layer, with rounding that is stated: kernels that apply it to
// equal values get equal bits.
#pragma once
#include <float.h>
#include <stdint.h>

#include "number/minmax.cuh"
#include "number/nvfp4.cuh"
#include "number/output.cuh"

namespace swiglu {

enum Kind : int { kSilu, kGeluTanh };

// SwiGLU as gpt-oss and MiniMax vary it: plain SiLU(gate) * up has alpha 1, beta 0 and no limit. With GELU in its place
// alpha is 1; beta and the limits are the same.
struct Parameters {
    float alpha;  // factor of the gate inside the sigmoid
    float beta;   // added to up
    float limit;  // gate is at most this, up within +- this; FLT_MAX is none
    Kind kind;

    __device__ __forceinline__ bool limits() const { return limit < FLT_MAX; }
};

namespace detail {

__device__ __forceinline__ void clamp(float& gate, float& up, float limit) {
    gate = min_nan(gate, limit);
    up = max_nan(min_nan(up, limit), -limit);
}

constexpr float kLog2E = 1.44269504f;

// gate / (1 + 2^exponent) * (up + beta): gate times a sigmoid, by an approximate power of two and an approximate
// reciprocal, as engines built with fast math have it.
__device__ __forceinline__ float gated(float gate, float exponent, float up, float beta) {
    float exponential;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(exponential) : "f"(exponent));
    const float sigmoid = nvfp4::reciprocal_approximate(__fadd_rn(1.0f, exponential));
    return __fmul_rn(__fmul_rn(gate, sigmoid), __fadd_rn(up, beta));
}

// sigmoid(alpha * gate): SiLU.
__device__ __forceinline__ float silu(float gate, float up, const Parameters& parameters) {
    return gated(gate, __fmul_rn(__fmul_rn(-parameters.alpha, kLog2E), gate), up, parameters.beta);
}

// sigmoid(2 z), z = sqrt(2 / pi) (gate + 0.044715 gate^3): (1 + tanh(z)) / 2, which makes it GELU by tanh. The factors
// -2 sqrt(2 / pi) log2(e) and that times 0.044715 are folded.
__device__ __forceinline__ float gelu_tanh(float gate, float up, const Parameters& parameters) {
    constexpr float kLinear = -2.30220819f, kCubic = -0.102943240f;
    const float slope = __fmaf_rn(__fmul_rn(kCubic, gate), gate, kLinear);
    return gated(gate, __fmul_rn(slope, gate), up, parameters.beta);
}

}  // namespace detail

// Several values of a thread, of which gates[i] becomes the result: one decision for all.
template <int kCount>
__device__ __forceinline__ void apply(float (&gates)[kCount], float (&ups)[kCount], const Parameters& parameters) {
    if (parameters.limits()) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) detail::clamp(gates[i], ups[i], parameters.limit);
    }
    int kind;  // opaque: else the compiler makes two of the loop around it, and worse code of what that loop is in
    asm volatile("mov.b32 %0, %1;" : "=r"(kind) : "r"(static_cast<int>(parameters.kind)));
    if (kind == kGeluTanh) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) gates[i] = detail::gelu_tanh(gates[i], ups[i], parameters);
    } else {
#pragma unroll
        for (int i = 0; i < kCount; ++i) gates[i] = detail::silu(gates[i], ups[i], parameters);
    }
}

// The type of a value that is not stored: what rounding to that type would have made of it.
enum Type : int { kF32, kBf16, kF16 };

// condition ? a : b, never as a branch: the compiler would copy all that surrounds it, once a type.
__device__ __forceinline__ float select(bool condition, float a, float b) {
    float result;
    asm("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\nselp.f32 %0, %1, %2, p;\n}\n"
        : "=f"(result)
        : "f"(a), "f"(b), "r"(static_cast<uint32_t>(condition)));
    return result;
}

__device__ __forceinline__ float round_to(float value, int type) {
    const float bf16 = halves::to_bf16(value), f16 = halves::to_f16(value);
    return select(type == kBf16, bf16, select(type == kF16, f16, value));
}

// Several values of a thread: one decision for all.
template <int kCount>
__device__ __forceinline__ void round_to(float (&values)[kCount], Type type) {
    static_assert(kCount % 2 == 0, "conversions take pairs");
    if (type == kBf16) {
#pragma unroll
        for (int i = 0; i < kCount; i += 2) {
            const uint32_t pair = output::pack<output::bf16>(values[i], values[i + 1]);
            values[i] = __uint_as_float(pair << 16), values[i + 1] = __uint_as_float(pair & 0xFFFF0000);
        }
    } else if (type == kF16) {
#pragma unroll
        for (int i = 0; i < kCount; i += 2) {
            const uint32_t pair = output::pack<output::f16>(values[i], values[i + 1]);
            const float2 wide = halves::widen_f16x2(pair);
            values[i] = wide.x, values[i + 1] = wide.y;
        }
    }
}

}  // namespace swiglu
