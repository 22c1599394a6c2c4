// Epilogue of a GEMM whose weight rows are gate and up in turn: activates, quantises and stores.
//
// Result says to what: nvfp4::Result, or mx::Result of a type of elements.
#pragma once
#include <stdint.h>

#include "epilogue/spread_groups.cuh"
#include "layout/scale_layout.cuh"
#include "number/bias.cuh"
#include "number/integer.cuh"
#include "number/minmax.cuh"
#include "number/nvfp4.cuh"
#include "number/swiglu.cuh"
#include "schedule/tile.cuh"

namespace swiglu {

// Arguments of the kernel.
template <class Result_>
struct Epilogue {
    using Result = Result_;
    static constexpr int kBlock = Result::kBlock, kBits = Result::kBits;

    const float *alpha, *up_alpha;  // of gate, and of up; null: that of gate
    const float* bias;              // [.., 2 * kBlock * num_groups], gate and up in turn; null: none
    const float* row_weight;
    uint8_t *out, *out_scale;
    int num_groups;  // scale groups in a row of out
    int scale_rows;  // of out_scale
    Result result;
    Type intermediate;  // of gate and up
    Type activated;     // of the value before it is quantised
    Parameters activation;

    __device__ __forceinline__ const float* alpha_of(bool up) const {
        return up && up_alpha != nullptr ? up_alpha : alpha;
    }
    // Index of the bias of a gate; its up is the next.
    __device__ __forceinline__ int64_t bias_index(int batch, int element) const {
        return (static_cast<int64_t>(batch) * num_groups * kBlock + element) * 2;
    }
    // Of a block of a row of out. Groups after the last one fill up a word of scales: they get 0; none is past that
    // word. A tile has the groups of a word or of half of it.
    __device__ __forceinline__ void write_scale(int row, int group, uint32_t scale) const {
        const int words = ceil_div(num_groups, 4);
        // Unsigned, so that scale_offsets which are not what they should be cannot lead out of the buffer.
        if (static_cast<uint32_t>(row) >= static_cast<uint32_t>(scale_rows) || group >= words * 4) return;
        const int64_t atom = static_cast<int64_t>(row / scale_layout::ATOM_ROWS) * words + group / 4;
        out_scale[(atom * scale_layout::ATOM_WORDS + scale_layout::word(row)) * 4 + group % 4] =
            group < num_groups ? scale : 0;
        if (kBlock == 32 && group % 4 < 2 && group / 2 == (num_groups - 1) / 2)  // there is no tile of the other half
            out_scale[(atom * scale_layout::ATOM_WORDS + scale_layout::word(row)) * 4 + group % 4 + 2] = 0;
    }
};

// The epilogue of one tile.
template <class Result>
class TileEpilogue {
    static constexpr int kBlock = Result::kBlock, kBits = Result::kBits;
    static constexpr int kPieces = kBlock * kBits / 64;  // of 8 bytes, in a block

public:
    __device__ __forceinline__ TileEpilogue(const Epilogue<Result>& epilogue, const schedule::Tile& tile)
        : epilogue_(epilogue),
          tile_(tile),
          alpha_(epilogue.alpha[tile.batch]),
          up_alpha_(epilogue.alpha_of(true)[tile.batch]),
          result_(epilogue.result, tile.batch),
          scale_row_(tile.scale_row) {}

    // Activates, quantises and stores. gate, up: accumulators, element i of a lane is its neighbour i ^ order.
    // first_token: of this lane in the tile. group: of a row of out; those after the last one are padding. All lanes of
    // a warp call it.
    template <typename L>
    __device__ __forceinline__ void store(const float (&gate)[L::kTokens][L::kElements],
                                          const float (&up)[L::kTokens][L::kElements], uint32_t order, int first_token,
                                          int group) const {
        float values[L::kTokens][L::kElements], maxima[L::kTokens];
        float2 bias[L::kElements];
#pragma unroll
        for (int i = 0; i < L::kElements; ++i) {
            const int element = group * kBlock + L::lane() * L::kElements + (i ^ order);
            bias[i] = bias::load_pair(epilogue_.bias, epilogue_.bias_index(tile_.batch, element),
                                      group < epilogue_.num_groups);
        }
#pragma unroll
        for (int t = 0; t < L::kTokens; ++t) {
            const int token = first_token + L::token(t);
            const float row_weight = weight(token);
            float ups[L::kElements];
#pragma unroll
            for (int i = 0; i < L::kElements; ++i) {
                values[t][i] = round_to(bias::apply(alpha_, gate[t][i], bias[i].x), epilogue_.intermediate);
                ups[i] = round_to(bias::apply(up_alpha_, up[t][i], bias[i].y), epilogue_.intermediate);
            }
            apply(values[t], ups, epilogue_.activation);
            maxima[t] = 0;
#pragma unroll
            for (int i = 0; i < L::kElements; ++i) {
                values[t][i] = round_to(__fmul_rn(values[t][i], row_weight), epilogue_.activated);
                maxima[t] = max_nan(maxima[t], fabsf(values[t][i]));
            }
        }
        const auto scale = result_.scale(detail::maximum<L>(maxima));
        const int first_lane = threadIdx.x % 32 - L::lane() * L::kStride;
#pragma unroll
        for (int t = 0; t < L::kTokens; ++t) {
            const float multiplier = __shfl_sync(0xFFFFFFFF, scale.multiplier, first_lane + t * L::kStride);
#pragma unroll
            for (int i = 0; i < L::kElements; ++i) values[t][i] = __fmul_rn(values[t][i], multiplier);
        }
        uint32_t codes[L::kTokens];
        if constexpr (kBits == 8) detail::pack_bytes<L>(codes, values, order);
        else detail::pack<L>(codes, values, order);
        const uint2 elements = detail::join<L, kBits * L::kElements>(codes);
        // A piece is in as many lanes, of which the first ones have a token each.
        constexpr int kPieceLanes = L::kLanes / kPieces;
        if (L::lane() % kPieceLanes < L::kTokens)
            write(elements, scale.byte, first_token + L::token(L::lane() % kPieceLanes), group,
                  L::lane() / kPieceLanes);
    }

    // Of the row of a token; 0 where the tile has none.
    __device__ __forceinline__ float weight(int token) const {
        return token < tile_.num_rows ? epilogue_.row_weight[tile_.row + token] : 0;
    }

    // Weighs, quantises and stores the activated values of one group.
    __device__ __forceinline__ void store_group(float (&values)[kBlock], float weight, int token,
                                                int group) const {
#pragma unroll
        for (float& value : values) value = __fmul_rn(value, weight);
        round_to(values, epilogue_.activated);
        const nvfp4::BlockScale scale = result_.scale(nvfp4::amax(values));
        write(nvfp4::pack(values, scale), scale.byte, token, group);
    }

private:
    __device__ __forceinline__ void write(uint2 elements, uint32_t scale, int token, int group,
                                          int piece = 0) const {
        if (token >= tile_.num_rows) return;
        if (group < epilogue_.num_groups) {
            const int64_t index = static_cast<int64_t>(tile_.row + token) * epilogue_.num_groups + group;
            reinterpret_cast<uint2*>(epilogue_.out)[index * kPieces + piece] = elements;
        }
        if (piece == 0) epilogue_.write_scale(scale_row_ + token, group, scale);
    }

    const Epilogue<Result>& epilogue_;
    const schedule::Tile& tile_;
    float alpha_, up_alpha_;
    typename Result::OfBatch result_;
    int scale_row_;
};

}  // namespace swiglu
