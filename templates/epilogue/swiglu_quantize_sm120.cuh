// Quantised SwiGLU from the accumulators of mma.sync, whose rows are gates and ups in turn.
#pragma once
#include <stdint.h>

#include "epilogue/swiglu_quantize.cuh"
#include "layout/weight_slots.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

template <class Config, class Result>
struct SwigluQuantizeSm120 {
    using Slots = layout::WeightSlots<Config::BLOCK_M, Config::BLOCK_N>;
    using Params = swiglu::Epilogue<Result>;
    struct Storage {};

    // A thread has 4 neighbouring elements of a token, each a weight tile, and the 4 threads g % 4 the 16 of a scale
    // group, or all g its 32. Slot 2 t + h is weight slot ^ order(g): the gate (h = g / 4) or up of element t ^ g % 4.
    __device__ __forceinline__ static void finish(Storage&, typename Slots::Accumulators& accumulators,
                                                  const schedule::Tile& tile, const Params& params) {
        constexpr int kWeightTiles = Slots::kWeightTiles, kTokenTiles = Slots::kTokenTiles;
        constexpr int kLanes = Result::kBlock / kWeightTiles;
        using Layout = swiglu::Layout<Result::kBlock, 2, kLanes, 4>;
        const typename Slots::Place place;
        const int group = (tile.column + place.warp_n * Slots::WARP_N) / (2 * Result::kBlock) + place.g / kLanes;
        const int first_token = place.warp_m * Slots::MMA_N + 2 * place.l;
        const bool gate_is_second = place.g / 4;
#pragma unroll 1  // a token tile takes many instructions; the others move up to its registers
        for (int j = 0; j < kTokenTiles && 32 * j < tile.num_rows; ++j) {
            // Here, past a branch: what it loads would be hoisted among the last products, where no register is left.
            const swiglu::TileEpilogue<Result> epilogue(params, tile);
            float gate[2][kWeightTiles], up[2][kWeightTiles];
#pragma unroll
            for (int c = 0; c < 2; ++c)
#pragma unroll
                for (int t = 0; t < kWeightTiles; ++t) {
                    const float first = accumulators[0][t][c], second = accumulators[0][t][2 + c];
                    gate[c][t] = gate_is_second ? second : first;
                    up[c][t] = gate_is_second ? first : second;
                }
            epilogue.template store<Layout>(gate, up, place.g % 4, 32 * j + first_token, group);
            Slots::move_up(accumulators);
        }
    }
};

}  // namespace epilogue
