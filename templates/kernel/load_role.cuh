// The role of one thread: walks the schedule, tells the other roles of the tiles, and loads their operands.
#pragma once
#include "ptx/launch.cuh"
#include "schedule/tile.cuh"

namespace kernel {

// prefetch: the previous grid may still be running. Then this role waits for it, after the first weights and before it
// tells anybody of a tile: the other roles have nothing more to wait for.
template <class Schedule, class Tiles, class Loader>
__device__ __forceinline__ void load_role(Schedule schedule, Tiles tiles, Loader&& loader, bool prefetch) {
    schedule::Tile tile;
    bool has_tile = schedule.next(tile);
    if (prefetch) {
        if (has_tile) loader.load_weights_ahead(tile);
        wait_for_previous_grid();
        allow_next_grid();
    }
    // All other warps wake up when they are told of the first tile, and get in the way of the first loads.
    for (int blocks_before = loader.kFirstBlocks; has_tile; has_tile = schedule.next(tile), blocks_before = 0)
        loader.load(tile, blocks_before, [&] { tiles.write(tile); });
    tiles.end();
}

}  // namespace kernel
