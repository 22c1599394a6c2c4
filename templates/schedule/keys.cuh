// What is said of keys: which ones a query sees, and the parts in which they are shared out.
#pragma once

namespace schedule {

// Keys are shared out in blocks of so many; a tile begins at one.
constexpr int kKeyBlock = 128;

// The keys that a query sees: from begin on, before end.
struct KeyRange {
    int begin, end;

    // No && here or where it is asked: of what costs two instructions the compiler would make branches.
    __device__ __forceinline__ bool has(int key) const { return (key >= begin) & (key < end); }
};

// The smallest and the largest value of a warp's lanes.
__device__ __forceinline__ int least_of_warp(int value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        value = min(value, __shfl_xor_sync(0xFFFFFFFF, value, distance));
    return value;
}
__device__ __forceinline__ int most_of_warp(int value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        value = max(value, __shfl_xor_sync(0xFFFFFFFF, value, distance));
    return value;
}

}  // namespace schedule
