// Shares of the keys of requests for schedule::PageTiles: equally many (block of keys, query) for each CTA.
//
// One CTA. Each thread takes some neighbouring requests and sums up their blocks; where a share begins in them follows
// from the sum of those before and of all, which nothing needs to be kept for.
#pragma once
#include <stdint.h>

#include "number/integer.cuh"
#include "schedule/keys.cuh"
#include "schedule/scan.cuh"

namespace pages {

struct Requests {
    const int* lengths;  // of each query
    const int* indices;  // nullptr: requests have next_n queries each
    int num_queries, next_n;

    __device__ __forceinline__ bool begins_at(int query) const {
        return indices == nullptr || query == 0 || __ldcg(indices + query) != __ldcg(indices + query - 1);
    }
    // Calls with first query, number of queries and blocks of each request with keys that begins among some queries.
    template <class Function>
    __device__ __forceinline__ void each(int first, int end, const Function& function) const {
        for (int query = first; query < end;) {
            if (!begins_at(query)) {
                ++query;
                continue;
            }
            int count = 0, longest = 0;
            do {
                longest = max(longest, __ldcg(lengths + query + count));
                ++count;
            } while (indices == nullptr ? count < next_n : query + count < num_queries && !begins_at(query + count));
            if (longest > 0) function(query, count, (longest - 1) / schedule::kKeyBlock + 1);
            query += count;
        }
    }
};

// table: 2 * (num_shares + 1) values. Every thread of the CTA calls it.
template <int kNumThreads>
__device__ __forceinline__ void share(const Requests& requests, int* table, int num_shares) {
    __shared__ int64_t totals[scan::kMaxWarps];
    const int own = ceil_div(ceil_div(requests.num_queries, requests.next_n), kNumThreads) * requests.next_n;
    const int first = min(requests.num_queries, static_cast<int>(threadIdx.x) * own);
    const int end = min(requests.num_queries, first + own);
    int64_t sum = 0;
    requests.each(first, end, [&](int, int count, int blocks) { sum += int64_t{blocks} * count; });
    const scan::Sums<int64_t> sums = scan::over_threads<kNumThreads>(sum, totals);
    if (sums.total == 0) {
        for (int i = threadIdx.x; i <= num_shares; i += kNumThreads) {
            table[2 * i] = requests.num_queries;
            table[2 * i + 1] = 0;
        }
        return;
    }
    int64_t before = sums.before;
    requests.each(first, end, [&](int query, int count, int blocks) {
        const int64_t after = before + int64_t{blocks} * count;
        for (int64_t i = (before * num_shares + sums.total - 1) / sums.total; i * sums.total < after * num_shares; ++i) {
            table[2 * i] = query;
            table[2 * i + 1] = static_cast<int>((i * sums.total / num_shares - before) / count);
        }
        if (after == sums.total) {
            table[2 * num_shares] = query + count;
            table[2 * num_shares + 1] = 0;
        }
        before = after;
    });
}

}  // namespace pages
