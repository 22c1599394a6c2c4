// The gated activation between the two GEMMs of an MoE layer, with rounding that is stated: kernels that apply it to
// equal values get equal bits.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace swiglu {

// SwiGLU as gpt-oss and MiniMax vary it: plain SiLU(gate) * up has alpha 1, beta 0 and a limit that nothing reaches.
struct Parameters {
    float alpha;  // factor of the gate inside the sigmoid
    float beta;   // added to up
    float limit;  // gate is at most this, up within +- this
};

// gate * sigmoid(alpha * gate) * (up + beta) = gate / denominator * factor, of the clamped gate and up
struct Terms {
    float gate, denominator, factor;
};

__device__ __forceinline__ Terms terms(float gate, float up, const Parameters& parameters) {
    gate = fminf(gate, parameters.limit);
    up = fmaxf(fminf(up, parameters.limit), -parameters.limit);
    constexpr float kLog2E = 1.44269504f;
    float exponential;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(exponential) : "f"(__fmul_rn(__fmul_rn(-parameters.alpha, gate), kLog2E)));
    return {gate, __fadd_rn(1.0f, exponential), __fadd_rn(up, parameters.beta)};
}

__device__ __forceinline__ float apply(float gate, float up, const Parameters& parameters) {
    const Terms t = terms(gate, up, parameters);
    return __fmul_rn(__fdiv_rn(t.gate, t.denominator), t.factor);
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
    const float bf16 = __bfloat162float(__float2bfloat16_rn(value)), f16 = __half2float(__float2half_rn(value));
    return select(type == kBf16, bf16, select(type == kF16, f16, value));
}

}  // namespace swiglu
