// out (+)= alpha * sums + bias from the accumulators of mma.sync: each thread has 8 neighbouring outputs of a token and
// stores 16-byte vectors from registers.
#pragma once
#include <stdint.h>

#include "epilogue/store_params.cuh"
#include "layout/weight_slots.cuh"
#include "number/bias.cuh"
#include "number/output.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

template <class Slots, class Out>
struct StoreSm120 {
    static constexpr int kVector = Slots::kVector;

    using Params = StoreParams<Out>;
    struct Storage {};

    __device__ __forceinline__ static void finish(Storage&, const typename Slots::Accumulators& accumulators,
                                                  const schedule::Tile& tile, const Params& params) {
        const typename Slots::Place place;
        const int num_columns = params.num_columns;
        const float alpha = params.factor(tile.batch);
        const int column = tile.column + place.warp_n * Slots::WARP_N + place.g * kVector;
        const int first_token = Slots::first_token(place.warp_m, 2 * place.l);
        const int num_tokens = column < num_columns ? tile.num_rows - first_token : 0;
        float bias[kVector];
#pragma unroll
        for (int slot = 0; slot < kVector; ++slot)
            bias[slot] = bias::load(params.bias,
                                    int64_t(tile.batch) * num_columns + column + (slot ^ Slots::order(place.g)),
                                    column < num_columns);
        const int stride = params.stride();
        Out* out = params.out_of(tile.batch) + int64_t(tile.row + first_token) * stride + params.heads.place(column);
#pragma unroll
        for (int j = 0; j < Slots::kTokenTiles; ++j)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const int token = Slots::token(j, c);
                float values[kVector];
#pragma unroll
                for (int slot = 0; slot < kVector; ++slot)
                    values[slot] = accumulators[j][slot / 2][slot % 2 * 2 + c];
                Slots::gather(values);
#pragma unroll
                for (int slot = 0; slot < kVector; ++slot)
                    values[slot] = bias::apply(alpha, values[slot], bias[slot]);
                if (token < num_tokens) {
                    Out* const row = out + int64_t(token) * stride;
                    if (params.accumulate) add(row, values, Slots::order(place.g));
                    store(row, values, Slots::order(place.g));
                }
            }
    }

    // Zeros in the rows of padding.
    __device__ __forceinline__ static void clear_padding(const schedule::Tile& tile, const Params& params) {
        constexpr int kColumns = 16 / sizeof(Out), kRowVectors = Slots::kNumWeights / kColumns;  // a vector's, a row's
        for (int vector = tile.num_rows * kRowVectors + threadIdx.x; vector < tile.num_stored * kRowVectors;
             vector += 32 * Slots::kNumWarps) {
            const int row = tile.row + vector / kRowVectors, column = tile.column + vector % kRowVectors * kColumns;
            if (column < params.num_columns)
                *reinterpret_cast<uint4*>(params.out + int64_t(row) * params.stride() + params.heads.place(column)) =
                    uint4{};
        }
    }

private:
    static constexpr int kPerRegister = 4 / sizeof(Out), kRegisters = kVector / kPerRegister;

    // Restores the order of weights in registers that hold 4 bytes each: register i becomes register i ^ order.
    template <int kCount>
    __device__ __forceinline__ static void reorder(uint32_t (&registers)[kCount], uint32_t order) {
#pragma unroll
        for (int bit = 1; bit < kCount; bit *= 2)
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                if (i & bit) continue;
                const uint32_t low = registers[i], high = registers[i | bit];
                registers[i] = order & bit ? high : low;
                registers[i | bit] = order & bit ? low : high;
            }
    }

    // Two halves of a register of which each is one output.
    __device__ __forceinline__ static uint32_t swap_halves(uint32_t halves, uint32_t order) {
        return __byte_perm(halves, 0, order & 1 ? 0x1032 : 0x3210);
    }

    // Adds 8 neighbouring elements of out to the values of their slots.
    __device__ __forceinline__ static void add(const Out* out, float (&values)[kVector], uint32_t order) {
        uint32_t registers[kRegisters];
#pragma unroll
        for (int i = 0; i < kRegisters; i += 4)
            *reinterpret_cast<uint4*>(&registers[i]) = reinterpret_cast<const uint4*>(out)[i / 4];
        reorder(registers, order / kPerRegister);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            uint32_t element = registers[i / kPerRegister];
            if constexpr (kPerRegister == 2) element = swap_halves(element, order) >> i % 2 * 16;
            values[i] += static_cast<float>(reinterpret_cast<const Out&>(element));
        }
    }

    // Stores 8 neighbouring outputs of one token; value i is that of slot i, so it goes to place i ^ order.
    __device__ __forceinline__ static void store(Out* out, const float (&values)[kVector], uint32_t order) {
        uint32_t registers[kRegisters];
#pragma unroll
        for (int i = 0; i < kRegisters; ++i) {
            if constexpr (kPerRegister == 1) {
                registers[i] = __float_as_uint(values[i]);
            } else {
                registers[i] = swap_halves(output::pack<Out>(values[2 * i], values[2 * i + 1]), order);
            }
        }
        reorder(registers, order / kPerRegister);
#pragma unroll
        for (int i = 0; i < kRegisters; i += 4)
            reinterpret_cast<uint4*>(out)[i / 4] =
                make_uint4(registers[i], registers[i + 1], registers[i + 2], registers[i + 3]);
    }
};

}  // namespace epilogue
