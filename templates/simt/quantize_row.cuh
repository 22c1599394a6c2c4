// Rows to elements with scales of blocks, for every kernel that quantises: a thread has 16 neighbouring values, and the
// threads that share a word of scales write their elements and that word.
//
// A kernel says what to quantise with two types, and to what with a third (quantize_format.cuh). `Rows` tells which
// rows there are, and where each comes from and goes:
//     int begin() const, end() const;  Row locate(int row) const;
// `Source` gives 16 values, and says what to keep in registers between their load and their use:
//     using Raw;  Raw load(const Row&, int block) const;  void values(float (&)[16], const Raw&) const;
// The words of all rows are dealt to the grid in order, so neighbouring threads touch neighbouring bytes.
// While a word is computed, the loads of the thread's next one are in flight.
#pragma once
#include <float.h>
#include <stdint.h>

#include "number/halves.cuh"
#include "simt/quad.cuh"
#include "simt/quantize_format.cuh"
#include "simt/scale_places.cuh"

namespace quantize {

struct Row {
    int source;  // row that is read
    int out;     // row of the elements that is written
    int scale;   // row of the scales that is written
    int expert;
};

// 16 neighbouring values as they lie in memory, 16 * sizeof(T) bytes aligned to 16.
template <typename T>
struct Block {
    uint4 vectors[sizeof(T)];
};

template <typename T>
__device__ __forceinline__ Block<T> load(const T* values) {
    Block<T> block;
#pragma unroll
    for (int i = 0; i < sizeof(T); ++i) block.vectors[i] = reinterpret_cast<const uint4*>(values)[i];
    return block;
}

// The values in one 32-bit word: two, or one of fp32.
__device__ __forceinline__ void widen(float* values, uint32_t word, const __nv_bfloat16*) {
    values[0] = __uint_as_float(word << 16);
    values[1] = __uint_as_float(word & 0xFFFF0000);
}
__device__ __forceinline__ void widen(float* values, uint32_t word, const __half*) {
    const float2 pair = halves::widen_f16x2(word);
    values[0] = pair.x, values[1] = pair.y;
}
__device__ __forceinline__ void widen(float* values, uint32_t word, const float*) { values[0] = __uint_as_float(word); }

template <typename T>
__device__ __forceinline__ void widen(float (&values)[kValues], const Block<T>& block) {
    constexpr int kPerWord = 4 / sizeof(T);
#pragma unroll
    for (int i = 0; i < sizeof(T); ++i) {
        const uint32_t words[4] = {block.vectors[i].x, block.vectors[i].y, block.vectors[i].z, block.vectors[i].w};
#pragma unroll
        for (int w = 0; w < 4; ++w) widen(values + (4 * i + w) * kPerWord, words[w], static_cast<const T*>(nullptr));
    }
}

// Where the result goes. A row of it may be longer than one of x, as if x had zeros there.
template <class Format>
struct Output {
    typename Format::Elements* elements;  // [.., blocks]
    int blocks, source_blocks;            // of 16 values, a row
    ScalePlaces scales;

    template <typename Out>
    __device__ __forceinline__ Output(Out* out, int columns, int source_columns, const ScalePlaces& scales)
        : elements(reinterpret_cast<typename Format::Elements*>(out)),
          blocks(columns / kValues),
          source_blocks(source_columns / kValues),
          scales(scales) {}
};

// What a thread has loaded of a block.
template <class Format, typename Source>
struct Item {
    typename Source::Raw raw;
    typename Format::OfExpert of_expert;
    int out_row, scale_row, word;
    bool owned;  // by an expert

    __device__ __forceinline__ int block() const {
        return word * kWordLanes<Format> + threadIdx.x % kWordLanes<Format>;
    }
};

// Walks the words of all rows in steps of the grid, without a division a step.
template <class Format>
class Cursor {
public:
    __device__ __forceinline__ Cursor(int first_row, int words_per_row) : words_per_row_(words_per_row) {
        const int first = (blockIdx.x * blockDim.x + threadIdx.x) / kWordLanes<Format>;
        const int step = gridDim.x * blockDim.x / kWordLanes<Format>;
        row = first_row + first / words_per_row, word = first % words_per_row;
        row_step_ = step / words_per_row, word_step_ = step % words_per_row;
    }

    __device__ __forceinline__ void advance() {
        row += row_step_, word += word_step_;
        if (word >= words_per_row_) word -= words_per_row_, ++row;
    }

    int row, word;

private:
    int words_per_row_, row_step_, word_step_;
};

template <class Format, typename Rows, typename Source>
__device__ __forceinline__ Item<Format, Source> fetch(const Format& format, const Rows& rows, const Source& source,
                                                      const Output<Format>& output, const Cursor<Format>& cursor) {
    Item<Format, Source> item;
    item.word = cursor.word;
    item.owned = cursor.row < rows.end();
    if (!item.owned) return item;
    const Row row = rows.locate(cursor.row);
    if (item.block() < output.source_blocks) item.raw = source.load(row, item.block());
    item.of_expert = format.load(row.expert);
    item.out_row = row.out, item.scale_row = row.scale;
    return item;
}

template <class Format, typename Source>
__device__ __forceinline__ void quantize_and_store(const Format& format, const Source& source,
                                                   const Output<Format>& output, const Item<Format, Source>& item) {
    const int block = item.block();
    const bool inside = item.owned && block < output.blocks;
    uint32_t word = 0;  // also of the blocks that fill up the last word of a row
    if (Format::kLanes > 1 || inside) {  // lanes that share a scale need each other
        float values[kValues] = {};
        if (item.owned && block < output.source_blocks) source.values(values, item.raw);
        const auto result = format.quantize(values, item.of_expert);
        if (inside) {
            output.elements[int64_t(item.out_row) * output.blocks + block] = result.elements;
            word = result.scale;
        }
    }
    if constexpr (Format::kScales == 4) word = gather_quad<Format::kLanes>(word);
    if (item.owned && output.scales.has(item.scale_row) && threadIdx.x % kWordLanes<Format> == 0)
        output.scales.at(item.scale_row, item.word) = word;
}

// All rows; every thread of the grid calls it, in blocks of whole warps.
template <class Format, typename Rows, typename Source>
__device__ __forceinline__ void run(const Format& format, const Rows& rows, const Source& source,
                                    const Output<Format>& output) {
    Cursor<Format> cursor(rows.begin(), output.scales.words);
    Item<Format, Source> item = fetch(format, rows, source, output, cursor);
    while (__any_sync(0xFFFFFFFF, item.owned)) {
        cursor.advance();
        const Item<Format, Source> next = fetch(format, rows, source, output, cursor);
        quantize_and_store(format, source, output, item);
        item = next;
    }
}

// Rows of a matrix.
struct Dense {
    int num_rows;

    __device__ __forceinline__ int begin() const { return 0; }
    __device__ __forceinline__ int end() const { return num_rows; }
    __device__ __forceinline__ Row locate(int row) const { return {row, row, row, 0}; }
};

// The values of a matrix [.., columns].
template <typename T>
struct Matrix {
    using Raw = Block<T>;

    const T* x;
    int columns;

    __device__ __forceinline__ Raw load(const Row& row, int block) const {
        return quantize::load(x + int64_t(row.source) * columns + block * kValues);
    }
    __device__ __forceinline__ void values(float (&values)[kValues], const Raw& raw) const {
        widen(values, raw);
    }
};

}  // namespace quantize
