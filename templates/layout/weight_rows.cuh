// Which weight row each lane of a warpgroup holds of the 64-row operand of wgmma, whose registers are filled by
// ordinary loads from shared memory: any order will do, so it is chosen by the banks of these loads and by what the
// epilogue needs.
//
// first(): the first row of a lane in a tile, g = lane / 4. packed_place() and scale_place(): from the place of that
// row, in bytes, to that of row i of m64 tile t. kInOrder: permuted() changes nothing.
#pragma once

namespace layout {

// Rows in their order but within 8. The second row of a lane is 8 below the first, the next m64 tile 64.
template <int kRowBytes, int kTiles>
struct PlainRows {
    static constexpr bool kInOrder = kRowBytes != 128;
    // Physical row of logical row g of an 8-row group. The eight lanes of a phase of 16-byte loads hold two rows of
    // four chunks. With 128-byte rows they touch every bank once if the rows are 4 apart (the top bit of the swizzle
    // differs), with 64-byte rows if they are neighbours.
    __device__ __forceinline__ static int permuted(int g) { return kRowBytes == 128 ? g / 2 + g % 2 * 4 : g; }

    __device__ __forceinline__ static int first(int warpgroup, int warp, int g) {
        return warpgroup * kTiles * 64 + warp * 16 + permuted(g);
    }
    __device__ __forceinline__ static int packed_place(int first, int t, int i) {
        return first + (t * 64 + i * 8) * kRowBytes;
    }
    __device__ __forceinline__ static int scale_place(int first, int t, int i) { return first + t * 8 + i * 128; }
};

// Rows as wgmma reads them from shared memory.
struct MatrixRows {
    static constexpr bool kInOrder = true;
    __device__ __forceinline__ static int permuted(int g) { return g; }
};

// Rows that are gate and up in turn. A warp has 32 neighbouring ones, the gates and ups of one scale group of results.
// Lane quad g has two elements of it, 8 apart; in m64 tile 0 some quads have the gates and the others the ups, in tile
// 1 what the first lacks. Which ones is chosen so that the scales of a warp lie in as many banks as there are rows,
// each for two lanes, and that the eight lanes of a phase of 16-byte loads, two quads, touch every bank once: the top
// bit of the swizzles of their rows differs, or with rows of 64 bytes the last bit of the rows.
template <int kRowBytes, int kTiles>
struct GateUpRows {
    static_assert(kTiles == 2, "a gate and its up take two m64 tiles");

    __device__ __forceinline__ static int has_ups_first(int g) { return kRowBytes == 128 ? g / 4 : g % 2; }
    __device__ __forceinline__ static int element(int g) {
        return kRowBytes == 128 ? g / 4 * 4 + g % 2 * 2 + g / 2 % 2 : g % 2 * 4 + g / 2;
    }

    __device__ __forceinline__ static int first(int warpgroup, int warp, int g) {
        return warpgroup * 128 + warp * 32 + element(g) * 2 + has_ups_first(g);
    }
    // The row in the other tile differs in the last bit, and so may its swizzle.
    __device__ __forceinline__ static int packed_place(int first, int t, int i) {
        return (first ^ t * (kRowBytes == 128 ? kRowBytes + 16 : kRowBytes)) + i * 16 * kRowBytes;
    }
    __device__ __forceinline__ static int scale_place(int first, int t, int i) { return (first ^ t * 16) + i * 256; }
};

}  // namespace layout
