// The formats of a GEMM's operands, as the tensor cores of Blackwell take them.
//
// An instruction takes 32 bytes of each row. A word of the scale layout holds the scales of one row for SCALE_K
// elements, which is one instruction of NVFP4, two of MXFP4 and four where an operand has bytes.
#pragma once
#include <stdint.h>

namespace operands {

enum class Format { E2M1, E4M3 };
// Where scales lie: in blocks of 128 rows (layout/scale_layout.cuh), or row by row (layout/scale_rows.cuh).
enum class Scales { kNone, kBlocks, kRows };

// GROUP elements along K share a scale: UE4M3 for 16 of them (NVFP4), UE8M0 for 32 (MX).
template <Format kTokens, Format kWeights, int GROUP>
struct Pair {
    static_assert(GROUP == 16 || GROUP == 32, "tensor cores scale 16 or 32 neighbours along K");
    static constexpr Scales SCALES = Scales::kBlocks;
    static constexpr Format TOKENS = kTokens, WEIGHTS = kWeights;
    static constexpr bool PACKED = TOKENS == Format::E2M1 && WEIGHTS == Format::E2M1;  // two in a byte
    static constexpr bool POWER_SCALES = GROUP == 32;
    static constexpr bool TOKENS_MN_MAJOR = false, WEIGHTS_MN_MAJOR = false;
    static constexpr int STEP_BYTES = 32, STEP_K = PACKED ? 2 * STEP_BYTES : STEP_BYTES;
    static constexpr int SCALE_K = 4 * GROUP, STEPS_PER_WORD = SCALE_K / STEP_K, SCALES_PER_STEP = STEP_K / GROUP;

    // Of element k in a row of shared memory.
    __device__ __forceinline__ static constexpr int byte(int k) { return k / (PACKED ? 2 : 1); }
    // And in its tensor map.
    __device__ __forceinline__ static constexpr int coordinate(int k) { return byte(k); }
    // Beside bytes, E2M1 lies as 16 elements in 8 bytes and 8 bytes of nothing, as TMA unpacks it.
    static constexpr bool UNPACKED_TOKENS = !PACKED && TOKENS == Format::E2M1;
    static constexpr bool UNPACKED_WEIGHTS = !PACKED && WEIGHTS == Format::E2M1;
    // Of k elements in global memory, which are those that a barrier counts.
    __device__ __forceinline__ static constexpr int token_bytes(int k) { return k / (TOKENS == Format::E2M1 ? 2 : 1); }
    __device__ __forceinline__ static constexpr int weight_bytes(int k) {
        return k / (WEIGHTS == Format::E2M1 ? 2 : 1);
    }
    // Of the word, the first scale of a step.
    __device__ __forceinline__ static constexpr int scale_byte(int step) {
        return step % STEPS_PER_WORD * SCALES_PER_STEP;
    }
    // The bytes of the word at element k whose scales are before k_end, a multiple of 32: of NVFP4 half a word or all.
    __device__ __forceinline__ static uint32_t scale_mask(int k, int k_end) {
        if constexpr (SCALE_K == 64) return k + 32 == k_end ? 0x0000FFFF : 0xFFFFFFFF;
        else return k + SCALE_K <= k_end ? 0xFFFFFFFF : (1u << max(k_end - k, 0) / GROUP * 8) - 1;
    }
};

// 16-bit elements without scales.
struct Bf16 {
    static constexpr Scales SCALES = Scales::kNone;
    static constexpr bool UNPACKED_TOKENS = false, UNPACKED_WEIGHTS = false;
    static constexpr bool TOKENS_MN_MAJOR = false, WEIGHTS_MN_MAJOR = false;
    static constexpr int STEP_BYTES = 32, STEP_K = STEP_BYTES / 2;

    __device__ __forceinline__ static constexpr int byte(int k) { return 2 * k; }
    __device__ __forceinline__ static constexpr int coordinate(int k) { return k; }
    __device__ __forceinline__ static constexpr int token_bytes(int k) { return byte(k); }
    __device__ __forceinline__ static constexpr int weight_bytes(int k) { return byte(k); }
};

using Nvfp4 = Pair<Format::E2M1, Format::E2M1, 16>;
using Mxfp4 = Pair<Format::E2M1, Format::E2M1, 32>;
using Mxfp8 = Pair<Format::E4M3, Format::E4M3, 32>;
using Mxfp8Mxfp4 = Pair<Format::E4M3, Format::E2M1, 32>;
using Mxfp4Mxfp8 = Pair<Format::E2M1, Format::E4M3, 32>;

// MX whose scales lie row by row. One is for 32 of K or for 128, which is four equal ones, of each operand.
template <class Mx, int kTokenScaleK, int kWeightScaleK>
struct RowScaled : Mx {
    static_assert(!Mx::PACKED, "a step has 32 of K");
    static_assert(kTokenScaleK == 32 || kTokenScaleK == 128, "a step has one scale, or four steps have");
    static_assert(kWeightScaleK == 32 || kWeightScaleK == 128, "a step has one scale, or four steps have");
    static constexpr Scales SCALES = Scales::kRows;
    static constexpr int TOKEN_SCALE_K = kTokenScaleK, WEIGHT_SCALE_K = kWeightScaleK;
};
using Fp8 = RowScaled<Mxfp8, 128, 128>;
using Fp8Mxfp4 = RowScaled<Mxfp8Mxfp4, 128, 32>;
using Mxfp4Fp8 = RowScaled<Mxfp4Mxfp8, 32, 128>;
using Mxfp8Rows = RowScaled<Mxfp8, 32, 32>;
using Mxfp8RowsMxfp4 = RowScaled<Mxfp8Mxfp4, 32, 32>;

// Either operand with K as its outer dimension, of which no two elements share a byte.
template <class Operands, bool kTokensMnMajor, bool kWeightsMnMajor>
struct InMajors : Operands {
    static constexpr bool TOKENS_MN_MAJOR = kTokensMnMajor, WEIGHTS_MN_MAJOR = kWeightsMnMajor;
};

// From the operand of an instruction to that of the next one along K: in each row, or rows of 128 bytes.
template <class Operands>
constexpr int TOKEN_STEP = Operands::TOKENS_MN_MAJOR ? Operands::STEP_K * 128 : Operands::STEP_BYTES;
template <class Operands>
constexpr int WEIGHT_STEP = Operands::WEIGHTS_MN_MAJOR ? Operands::STEP_K * 128 : Operands::STEP_BYTES;

}  // namespace operands
