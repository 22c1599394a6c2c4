// The rows of a mixture of experts: which row each routed slot becomes, sorted by expert and then by slot.
//
// Every CTA owns a range of slots and finds their rows alone: it counts the slots of each expert before its range and
// from its range on, for all slots of the call; a scan over the experts of both counts gives the first row of each
// expert, and that plus the count before the range the row of the range's first slot of that expert. Counting all slots
// in every CTA costs less than a second launch or a barrier of the grid, and leaves nothing to be zeroed. Integer sums
// do not depend on the order of the atomics, and ranks are given in the order of slots, so rows never vary.
//
// Estimate for an H200: 2 us of launch and latency, and 0.15 us a thousand slots (1 L2 read and 1 shared atomic each).
#pragma once
#include <stdint.h>

#include "number/integer.cuh"
#include "ptx/launch.cuh"
#include "schedule/scan.cuh"

namespace route {

template <int kNumThreads, typename Id>
struct Router {
    static constexpr int kMaxExperts = kNumThreads;  // the scan gives each thread one
    static constexpr int kWarps = kNumThreads / 32;
    static constexpr int kLoads = 8;        // ids of a thread in flight
    static constexpr int kScaleRows = 128;  // an expert's scales start at a multiple of these
    static constexpr int kNoExpert = kMaxExperts;

    // Rows in the high half, rows of scales in the low half: one scan for both. Neither half leaves 31 bits.
    using Rows = uint64_t;

    struct SharedStorage {
        Rows warp_totals[kWarps];
        int before[kMaxExperts];        // slots of an expert before the CTA's range
        int after[kMaxExperts];         // and from there on
        int next_row[kMaxExperts + 1];  // row of an expert's next slot; the last entry serves slots without an expert
        int padding;
    };

    struct Problem {
        const Id* topk_ids;
        const int* expert_map;  // of G ids; null: ids from first_expert on are local experts
        int *expert_offsets, *scale_offsets, *row_of_slot, *slot_of_row;
        int R, E, G, first_expert;

        // In 64 bits, where ids and first_expert of any value give no expert by wrapping around.
        __device__ __forceinline__ int local_expert(Id id) const {
            if (expert_map != nullptr) {
                if (static_cast<uint64_t>(id) >= static_cast<uint32_t>(G)) return kNoExpert;
                const int mapped = expert_map[id];
                return static_cast<uint32_t>(mapped) < static_cast<uint32_t>(E) ? mapped : kNoExpert;
            }
            const uint64_t local =
                static_cast<uint64_t>(static_cast<int64_t>(id)) - static_cast<uint32_t>(first_expert);
            return local < static_cast<uint32_t>(E) ? static_cast<int>(local) : kNoExpert;
        }
    };

    struct Range {
        int begin, end;  // slots of this CTA, whole warps of them

        __device__ __forceinline__ explicit Range(int R) {
            const int size = ceil_div(ceil_div(R, gridDim.x), 32) * 32;
            begin = min(static_cast<int64_t>(blockIdx.x) * size, static_cast<int64_t>(R));
            end = min(begin + size, R);
        }
    };

    // One id a lane, since chunks of a larger call start at any id.
    __device__ __forceinline__ static void count_all(SharedStorage& storage, const Problem& problem, int range_begin) {
        for (int base = threadIdx.x; base < problem.R; base += kLoads * kNumThreads) {
            Id ids[kLoads];
#pragma unroll
            for (int i = 0; i < kLoads; ++i) {
                const int slot = base + i * kNumThreads;
                ids[i] = slot < problem.R ? problem.topk_ids[slot] : -1;
            }
#pragma unroll
            for (int i = 0; i < kLoads; ++i) {
                const int expert = problem.local_expert(ids[i]);
                const bool is_before = base + i * kNumThreads < range_begin;
                if (expert != kNoExpert) atomicAdd(&(is_before ? storage.before : storage.after)[expert], 1);
            }
        }
    }

    // Turns counts into first rows, those of this thread's expert; returns the rows of all experts.
    __device__ __forceinline__ static int place(SharedStorage& storage, const Problem& problem) {
        const int expert = threadIdx.x;
        const int before_range = storage.before[expert], count = before_range + storage.after[expert];
        const Rows own =
            static_cast<Rows>(count) << 32 | static_cast<uint32_t>(ceil_div(count, kScaleRows) * kScaleRows);
        const scan::Sums<Rows> sums = scan::over_threads<kNumThreads>(own, storage.warp_totals);
        const int first_row = static_cast<int>(sums.before >> 32), owned = static_cast<int>(sums.total >> 32);
        storage.next_row[expert] = first_row + before_range;
        if (blockIdx.x == 0 && expert < problem.E) {
            problem.expert_offsets[expert] = first_row;
            problem.scale_offsets[expert] = static_cast<int>(sums.before);
            if (expert == 0) problem.expert_offsets[problem.E] = owned;
        }
        return owned;
    }

    // Gives the slots of the range their rows: the warps in the order of their slots, the lanes of one by their rank.
    __device__ __forceinline__ static void rank(SharedStorage& storage, const Problem& problem, const Range& range) {
        const int warp = warp_index();
        for (int base = range.begin; base < range.end; base += kNumThreads) {
            const int slot = base + threadIdx.x;
            const int expert = slot < range.end ? problem.local_expert(problem.topk_ids[slot]) : kNoExpert;
            const uint32_t peers = __match_any_sync(0xFFFFFFFF, expert);
            const int peers_below = __popc(peers & ((1u << threadIdx.x % 32) - 1));
            int row = 0;
            const int warps = ceil_div(min(range.end - base, kNumThreads), 32);
            for (int turn = 0; turn < warps; ++turn) {
                __syncthreads();
                if (turn != warp) continue;
                row = storage.next_row[expert] + peers_below;
                __syncwarp();
                if (peers_below == 0) storage.next_row[expert] = row + __popc(peers);
            }
            if (slot >= range.end) continue;
            problem.row_of_slot[slot] = expert == kNoExpert ? -1 : row;
            if (expert != kNoExpert) problem.slot_of_row[row] = slot;
        }
    }

    // All of it; every thread of the grid.
    __device__ __forceinline__ static void run(SharedStorage& storage, const Problem& problem) {
        storage.before[threadIdx.x] = storage.after[threadIdx.x] = 0;
        if (threadIdx.x == 0) storage.next_row[kNoExpert] = 0;
        __syncthreads();
        wait_for_previous_grid();
        allow_next_grid();
        const Range range(problem.R);
        count_all(storage, problem, range.begin);
        __syncthreads();
        const int owned = place(storage, problem);
        rank(storage, problem, range);
        for (int row = owned + blockIdx.x * kNumThreads + threadIdx.x; row < problem.R; row += gridDim.x * kNumThreads)
            problem.slot_of_row[row] = -1;
    }
};

}  // namespace route
