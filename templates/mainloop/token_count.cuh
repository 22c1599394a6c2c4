// The number of tokens that an instruction multiplies as a constant of the code that runs: rows that are not there cost
// next to nothing.
//
// A whole main loop is compiled for each count. A branch at each instruction takes less code, but jumps to code that
// the instruction cache does not hold cost more than the rows (measured on an H100: 490 cycles for two products of 128
// tokens).
#pragma once

namespace mainloop {

template <int kValue>
struct TokenCount {
    static constexpr int value = kValue;
};

// Calls body(TokenCount<n>), n the smallest of kMost, kMost - kStep, .. (kCounts of them) that rows do not exceed; rows
// are the same in all lanes.
template <int kMost, int kStep, int kCounts, class Body>
__device__ __forceinline__ void with_token_count(int rows, const Body& body) {
    if constexpr (kCounts == 1) {
        body(TokenCount<kMost>{});
    } else {
        if (__shfl_sync(0xFFFFFFFF, rows, 0) > kMost - kStep) body(TokenCount<kMost>{});
        else with_token_count<kMost - kStep, kStep, kCounts - 1>(rows, body);
    }
}

}  // namespace mainloop
