// The list of keys that the columns of sparse MQA logits are of, for schedule::ListedColumns and mainloop::ListedKeys.
//
// A query sees the keys of some blocks, and of these the ones in its range. Its first blocks count, as many as a range of
// that length has.
#pragma once
#include <limits.h>
#include <stdint.h>

#include "number/integer.cuh"

namespace lists {

constexpr int kPart = 8;  // keys of an entry

struct Blocks {
    const int* numbers;        // [queries, num_blocks]
    const int *starts, *ends;  // range of each query; without starts from 0 on
    const int* pages;          // [queries, num_pages], pages of each query; nullptr: keys lie in one matrix
    int num_blocks, num_pages, num_keys, page;
    int block;       // keys of one
    bool unaligned;  // they begin as far behind a multiple of `block` as the range

    // Of entry i of a row: how many columns the query has, or 8 keys. Entries behind the last one are left.
    __device__ __forceinline__ void write(int2* row, int query, int i) const {
        const int begin = starts == nullptr ? 0 : max(0, min(__ldcg(starts + query), num_keys));
        const int end = max(begin, min(__ldcg(ends + query), num_keys));
        const int columns = min(num_blocks, ceil_div(end - begin, block)) * block, column = (i - 1) * kPart;
        if (i == 0) row[0] = {columns, 0};
        else if (column < columns) row[i] = keys(query, column, begin, end);
    }

private:
    __device__ __forceinline__ int2 keys(int query, int column, int begin, int end) const {
        const int64_t number = __ldcg(numbers + int64_t{query} * num_blocks + column / block);
        const int64_t first = number * block + column % block + (unaligned ? begin % block : 0);
        const int unseen = bits_before(begin - first), bits = bits_before(end - first) & ~unseen;
        if (bits == 0) return {0, 0};
        const int key = static_cast<int>(first);
        if (pages == nullptr) return {key, bits};
        const int of = __ldcg(pages + int64_t{query} * num_pages + key / page);
        return of >= 0 && of < INT_MAX / page ? int2{of * page + key % page, bits} : int2{0, 0};
    }
    // Of the first `count` of 8 keys.
    __device__ __forceinline__ static int bits_before(int64_t count) {
        return (1 << static_cast<int>(max(int64_t{0}, min(count, int64_t{kPart})))) - 1;
    }
};

}  // namespace lists
