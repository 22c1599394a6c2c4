// Quantisation to NVFP4: the scale of a block of 16, and fp32 values to packed E2M1.
//
// With S = 6 * 448 / amax(tensor), the encode scale, a block's UE4M3 scale is its amax * S / 6 and its elements are
// multiplied by S / scale; the value of an element is then E2M1 * UE4M3 / S. Every operation is rounded on its own, so
// that kernels which quantise equal values write equal bytes, whatever the compiler would fuse.
#pragma once
#include <float.h>
#include <stdint.h>

#include "number/fp8.cuh"
#include "number/minmax.cuh"

namespace nvfp4 {

constexpr int kBlock = 16;  // elements along K that share one scale
constexpr float kInverseOf6 = 1.0f / 6.0f;

__device__ __forceinline__ float reciprocal_approximate(float value) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

// The encode scale, from itself or from its reciprocal; finite, also where a tensor of zeros made it infinite.
__device__ __forceinline__ float encode_scale(float global_scale, bool decode) {
    return min_nan(decode ? __fdiv_rn(1.0f, global_scale) : global_scale, FLT_MAX);
}

struct BlockScale {
    uint32_t byte;     // UE4M3
    float multiplier;  // of the elements, before they are rounded to E2M1; 0 where the scale is 0
};

// The scale of a block with the largest magnitude `amax`. ieee: exact quotients, as Transformer Engine takes them; else
// approximate reciprocals, as vLLM, SGLang and TensorRT-LLM do.
__device__ __forceinline__ BlockScale block_scale(float amax, float encode_scale, bool ieee) {
    const float scale = ieee ? __fmul_rn(amax, __fmul_rn(encode_scale, kInverseOf6))
                             : __fmul_rn(encode_scale, __fmul_rn(amax, reciprocal_approximate(6.0f)));
    const uint8_t byte = fp8::to_e4m3(scale);
    const float value = fp8::value_of_e4m3(byte);
    if (value == 0) return {0, 0.0f};
    const float multiplier =
        ieee ? __fdiv_rn(encode_scale, value)
             : reciprocal_approximate(__fmul_rn(value, reciprocal_approximate(encode_scale)));
    return {byte, min_nan(multiplier, FLT_MAX)};
}

// E2M1 of the magnitude of one value, rounded to nearest even and saturated, in the low 3 bits; NaN becomes 6. Above
// them is noise.
//
// Added to 2^22 times the power of two at or below it (1 at least), a magnitude is rounded where E2M1 rounds, and the
// sum's last bits count the steps in that binade. With two more for each binade from 1 on they are the code: bits 22
// and up of the sum hold twice its exponent, 2 (149 + binade), and the 3 in the factor adds 6 steps, which makes 8 * 38
// of 2 * 149.
__device__ __forceinline__ uint32_t e2m1_in_software(float value) {
    const float magnitude = fminf(fabsf(value), 6.0f);
    const float power = __uint_as_float(__float_as_uint(fmaxf(magnitude, 1.0f)) & 0x7F800000);
    const uint32_t sum = __float_as_uint(__fmaf_rn(power, 4194304.0f + 3.0f, magnitude));
    return sum + (sum >> 22);
}

// Eight values to E2M1, the first in the low nibble. The NaN of arithmetic, which has no sign, becomes +6.
__device__ __forceinline__ uint32_t pack_e2m1(const float (&v)[8]) {
#if __CUDA_ARCH__ >= 1000
    uint32_t packed;
    asm("{\n.reg .b8 b0, b1, b2, b3;\n"
        "cvt.rn.satfinite.e2m1x2.f32 b0, %2, %1;\n"
        "cvt.rn.satfinite.e2m1x2.f32 b1, %4, %3;\n"
        "cvt.rn.satfinite.e2m1x2.f32 b2, %6, %5;\n"
        "cvt.rn.satfinite.e2m1x2.f32 b3, %8, %7;\n"
        "mov.b32 %0, {b0, b1, b2, b3};\n}\n"
        : "=r"(packed)
        : "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "f"(v[4]), "f"(v[5]), "f"(v[6]), "f"(v[7]));
    return packed;
#else
    uint32_t codes = 0, signs = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        codes = __funnelshift_r(codes, e2m1_in_software(v[i]), 4);
        signs = __funnelshift_l(__float_as_uint(v[7 - i]), signs, 4);
    }
    return (codes & 0x77777777) | (signs & 0x88888888);
#endif
}

// How a GEMM's epilogue quantises tokens for the next one: elements of kBits in blocks of kBlock.
struct Result {
    static constexpr int kBlock = nvfp4::kBlock, kBits = 4;
    using Packed = uint32_t;  // eight elements, the first in the lowest bits

    const float* global_scale;  // of each batch
    bool decode;                // it is amax / (6 * 448), else its inverse
    bool ieee;

    class OfBatch {
    public:
        __device__ __forceinline__ OfBatch(const Result& result, int batch)
            : result_(result), encode_(encode_scale(result.global_scale[batch], result.decode)) {}

        __device__ __forceinline__ BlockScale scale(float amax) const {
            return block_scale(amax, encode_, result_.ieee);
        }

    private:
        const Result& result_;
        float encode_;
    };

    __device__ __forceinline__ static Packed pack(const float (&v)[8]) { return pack_e2m1(v); }
};

// Largest magnitude; NaN where a value is.
__device__ __forceinline__ float amax(const float (&values)[kBlock]) {
    float largest[4] = {};  // four chains instead of one long one
#pragma unroll
    for (int i = 0; i < kBlock; ++i) largest[i % 4] = max_nan(largest[i % 4], fabsf(values[i]));
    return max_nan(max_nan(largest[0], largest[1]), max_nan(largest[2], largest[3]));
}

// 16 E2M1, the first in the lowest nibble.
__device__ __forceinline__ uint2 pack(const float (&values)[kBlock], const BlockScale& scale) {
    uint32_t packed[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float scaled[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) scaled[i] = __fmul_rn(values[8 * half + i], scale.multiplier);
        packed[half] = pack_e2m1(scaled);
    }
    return make_uint2(packed[0], packed[1]);
}

struct Quantized {
    uint2 elements;
    uint32_t scale;  // UE4M3
};

__device__ __forceinline__ Quantized quantize(const float (&values)[kBlock], float encode_scale, bool ieee) {
    const BlockScale scale = block_scale(amax(values), encode_scale, ieee);
    return {pack(values, scale), scale.byte};
}

}  // namespace nvfp4
