// Columns of logits of the keys that a list names, for QueryTiles: a row of the list says how many there are.
//
// A row of the list is of a query: an entry {columns, 0}, then an entry {key, bits} for each 8 columns.
#pragma once
#include "schedule/keys.cuh"
#include "schedule/query_tiles.cuh"

namespace schedule {

struct ListedColumns {
    const int2* list;
    int pitch;  // entries of a row

    // Past L1, as all that an earlier grid may have written.
    __device__ __forceinline__ KeyRange of(int query, int num_columns) const {
        return {0, max(0, min(__ldcg(list + int64_t{query} * pitch).x, num_columns))};
    }
};

}  // namespace schedule
