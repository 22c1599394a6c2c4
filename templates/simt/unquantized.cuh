// Rows as they are, among what rows are quantised to: elements of the type of x, and no scales.
#pragma once
#include <stdint.h>

#include "number/output.cuh"
#include "simt/quantize_row.cuh"

namespace quantize {

template <typename X>
struct Unquantized {
    static constexpr int kLanes = 1, kScales = 1;
    using Elements = Block<X>;
    using OfExpert = Nothing;
    struct Result {
        Elements elements;
        uint32_t scale;
    };
    static_assert(sizeof(X) == 2, "words have two values");

    __device__ __forceinline__ OfExpert load(int) const { return {}; }
    __device__ __forceinline__ Result quantize(const float (&values)[kValues], OfExpert) const {
        Result result{};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float* const eight = values + 8 * i;
            result.elements.vectors[i] =
                make_uint4(output::pack<X>(eight[0], eight[1]), output::pack<X>(eight[2], eight[3]),
                           output::pack<X>(eight[4], eight[5]), output::pack<X>(eight[6], eight[7]));
        }
        return result;
    }

    // None, in rows of so many columns.
    __device__ __forceinline__ static ScalePlaces scales(int columns) {
        return {nullptr, 0, words<Unquantized>(columns), false, 0, 0};
    }
};

}  // namespace quantize
