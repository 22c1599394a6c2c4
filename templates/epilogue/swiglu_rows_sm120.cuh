// Activates gates and ups from the accumulators of mma.sync, and quantises to E4M3.
//
// A warp has 32 gates and then the ups of the same columns, so a thread with 8 neighbouring gates of two tokens has its
// ups in the thread 16 lanes further on: they exchange one token. Four warps have the columns of a tile, and their
// maxima of a token meet in shared memory.
#pragma once
#include <stdint.h>

#include "epilogue/gated_rows.cuh"
#include "layout/weight_slots.cuh"
#include "number/fp8.cuh"
#include "number/minmax.cuh"
#include "number/swiglu.cuh"
#include "ptx/launch.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

template <class Slots>
struct SwigluRowsSm120 {
    static constexpr int kVector = Slots::kVector, kWarpColumns = Slots::WARP_N / 2, kNumWarps = Slots::kWarpsN;
    static_assert(kNumWarps * kWarpColumns == fp8::kBlock, "the columns of a tile share a scale");
    using Params = GatedRows;
    using Place = typename Slots::Place;
    struct Storage {
        float maxima[kNumWarps][Slots::kWarpsM * Slots::MMA_N];  // of a token tile of each warp
    };

    __device__ __forceinline__ static void finish(Storage& shared, typename Slots::Accumulators& accumulators,
                                                  const schedule::Tile& tile, const Params& params) {
        const Place place;
        const bool has_ups = place.g / 4;  // and the second of the tokens
        const uint32_t order = Slots::order(place.g);
        const int column = tile.column + place.warp_n * kWarpColumns + place.g % 4 * kVector;
        const int own = Slots::first_token(place.warp_m, 2 * place.l + has_ups);
#pragma unroll 1  // a token tile takes many instructions; the others move up to its registers
        for (int j = 0; j < Slots::kTokenTiles && Slots::token(j, 0) < tile.num_rows; ++j) {
            const int token = own + Slots::token(j, 0);
            float gates[kVector], ups[kVector];
            pair(gates, ups, accumulators[0], has_ups);
            Slots::move_up(accumulators);
#pragma unroll
            for (int slot = 0; slot < kVector; ++slot) {
                gates[slot] = __fadd_rn(gates[slot], params.bias_of(tile, 0, column + (slot ^ order)));
                ups[slot] = __fadd_rn(ups[slot], params.bias_of(tile, 1, column + (slot ^ order)));
            }
            params.activate(gates, ups);
            const float weight = params.weight_of(tile, token);
#pragma unroll
            for (float& value : gates) value = __fmul_rn(value, weight);
            swiglu::round_to(gates, params.activated);
            const fp8::BlockScale scale = Params::scale(largest_of_all(shared, gates, place, own));
            if (token >= tile.num_rows) continue;
            if (place.warp_n == 0 && place.g % 4 == 0) params.write_scale(tile, token, Params::code(scale));
            if (column < params.num_columns)
                *reinterpret_cast<uint2*>(params.place(tile, token, column)) = pack(gates, scale.multiplier, order);
        }
    }

    __device__ __forceinline__ static void clear_padding(const schedule::Tile& tile, const Params& params) {
        params.clear_padding(tile, threadIdx.x, 32 * Slots::kNumWarps);
    }

private:
    // Gates and ups of this lane's token. The order of slots differs between the two lanes in its lowest bit, which is
    // that of a lane with ups.
    __device__ __forceinline__ static void pair(float (&gates)[kVector], float (&ups)[kVector],
                                                const float (&sums)[Slots::kWeightTiles][4], bool has_ups) {
#pragma unroll
        for (int slot = 0; slot < kVector; ++slot) {
            const float(&own)[4] = sums[slot / 2];
            const float first = own[slot % 2 * 2], second = own[slot % 2 * 2 + 1];
            const float other_first = own[(slot ^ 1) % 2 * 2], other_second = own[(slot ^ 1) % 2 * 2 + 1];
            // What the other lane has at slot ^ 1 is what belongs to this one's slot.
            const float received = __shfl_xor_sync(0xFFFFFFFF, has_ups ? other_first : other_second, 16);
            gates[slot] = has_ups ? received : first;
            ups[slot] = has_ups ? second : received;
        }
    }

    // Over the columns of the tile; `own`: place of this lane's token in a token tile of each warp.
    __device__ __forceinline__ static float largest_of_all(Storage& shared, const float (&values)[kVector],
                                                           const Place& place, int own) {
        float result = 0;
#pragma unroll
        for (const float value : values) result = max_nan(result, fabsf(value));
#pragma unroll
        for (int distance = 4; distance < 16; distance *= 2)
            result = max_nan(result, __shfl_xor_sync(0xFFFFFFFF, result, distance));
        if (place.g % 4 == 0) shared.maxima[place.warp_n][own] = result;
        synchronize(place);
#pragma unroll
        for (int warp = 0; warp < kNumWarps; ++warp) result = max_nan(result, shared.maxima[warp][own]);
        synchronize(place);  // before they are written again
        return result;
    }

    // The warps that have the same tokens.
    __device__ __forceinline__ static void synchronize(const Place& place) {
        barrier_of<32 * kNumWarps>(1 + place.warp_m);
    }

    // Value i is that of slot i, so it goes to place i ^ order.
    __device__ __forceinline__ static uint2 pack(const float (&values)[kVector], float multiplier, uint32_t order) {
        uint32_t words[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float* const v = values + 4 * i;
            const uint32_t low = fp8::pack_e4m3(__fmul_rn(v[0], multiplier), __fmul_rn(v[1], multiplier));
            const uint32_t high = fp8::pack_e4m3(__fmul_rn(v[2], multiplier), __fmul_rn(v[3], multiplier));
            words[i] = __byte_perm(low | high << 16, 0, 0x3210 ^ order % 4 * 0x1111);
        }
        return order / 4 ? make_uint2(words[1], words[0]) : make_uint2(words[0], words[1]);
    }
};

}  // namespace epilogue
