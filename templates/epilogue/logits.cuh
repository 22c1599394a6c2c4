// Logits in memory: out[query, key], or out[query, key - first key that the query sees].
#pragma once
#include <stdint.h>

#include "number/integer.cuh"
#include "number/output.cuh"
#include "ptx/store_if.cuh"
#include "schedule/keys.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

// Where the logits of a query go. Made once a tile, so that little is left to do for each of them.
struct LogitRow {
    int64_t place;  // of key 0 in out, were it stored, in bytes
    schedule::KeyRange seen;
    int end_of_others;  // keys before it that the query does not see become -inf
};

struct Logits {
    uint8_t* out;
    int64_t pitch;  // from a row to the next; what would lie behind is not stored
    int num_keys;   // of a row
    int bytes;      // of a logit: fp32 or bf16
    bool cleaned;     // keys that a query does not see become -inf
    bool compressed;  // the first key that a query sees is in column 0

    static constexpr float kUnseen = -__builtin_huge_valf();

    __device__ __forceinline__ LogitRow row(int query, schedule::KeyRange seen) const {
        const int64_t first = compressed ? seen.begin : 0;
        seen.end = static_cast<int>(min(int64_t{seen.end}, first + pitch));
        return {(query * pitch - first) * bytes, seen, cleaned ? num_keys : 0};
    }
    // Of a query that is not there: nothing is stored.
    __device__ __forceinline__ static LogitRow no_row() { return {0, {0, 0}, 0}; }

    // What a query does not see is left, or cleaned.
    __device__ __forceinline__ void store(const LogitRow& row, int key, float value) const {
        const bool seen = row.seen.has(key);
        if (seen | (key < row.end_of_others)) write(row.place + int64_t{key} * bytes, seen ? value : kUnseen);
    }
    // The same without a branch, for which a thread needs some registers more.
    __device__ __forceinline__ void store_straight(const LogitRow& row, int key, float value) const {
        const bool seen = row.seen.has(key), stores = seen | (key < row.end_of_others);
        const float stored = seen ? value : kUnseen;
        uint8_t* place = out + row.place + int64_t{key} * bytes;
        store_if(stores & (bytes == 4), place, stored);
        store_if(stores & (bytes == 2), place, halves::to_bf16(stored).bits);
    }

    // Warp `part` of `parts`: -inf to the keys of the tile's share that are not multiplied. kRows are multiplied at once.
    template <int kRows>
    __device__ __forceinline__ void clean(const schedule::Tile& tile, int part, int parts) const {
        const int before = tile.k_begin - tile.column, multiplied = ceil_div(tile.k_end - tile.k_begin, kRows) * kRows;
        const int other = max(before, tile.num_stored - multiplied);
        for (int row = 0; row < tile.num_rows; ++row) {
            const int64_t first = ((tile.row + row) * pitch + tile.column) * bytes;
            for (int i = part * 32 + threadIdx.x % 32; i < other; i += parts * 32)
                write(first + int64_t{i < before ? i : i + multiplied} * bytes, kUnseen);
        }
    }

private:
    __device__ __forceinline__ void write(int64_t place, float value) const {
        if (bytes == 2) *reinterpret_cast<output::bf16*>(out + place) = output::convert<output::bf16>(value);
        else *reinterpret_cast<float*>(out + place) = value;
    }
};

}  // namespace epilogue
