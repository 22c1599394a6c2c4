// Rows to NVFP4, for every kernel that writes it: four neighbouring threads quantise a word, 4 blocks of 16 values, and
// write 32 bytes of elements and the word of four scales.
//
// A kernel says what to quantise with two types. `Rows` tells which rows there are, and where each comes from and goes:
//     int begin() const, end() const;  Row locate(int row) const;
// `Source` gives the 16 values of a block, and says what to keep in registers between their load and their use:
//     using Raw;  Raw load(const Row&, int block) const;  void values(float (&)[16], const Raw&) const;
// The words of all rows are dealt to the grid in order, so neighbouring quads of threads touch neighbouring bytes.
// While a block is computed, the loads of the thread's next one are in flight.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <float.h>
#include <stdint.h>

#include "layout/scale_layout.cuh"
#include "number/integer.cuh"
#include "number/nvfp4.cuh"
#include "simt/quad.cuh"

namespace quantize {

constexpr int kBlocksPerWord = 4;  // of scales

struct Row {
    int source;  // row that is read
    int out;     // row of the elements that is written
    int scale;   // row of the scales that is written
    int expert;  // of global_scale
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
    const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&word));
    values[0] = pair.x, values[1] = pair.y;
}
__device__ __forceinline__ void widen(float* values, uint32_t word, const float*) { values[0] = __uint_as_float(word); }

template <typename T>
__device__ __forceinline__ void widen(float (&values)[nvfp4::kBlock], const Block<T>& block) {
    constexpr int kPerWord = 4 / sizeof(T);
#pragma unroll
    for (int i = 0; i < sizeof(T); ++i) {
        const uint32_t words[4] = {block.vectors[i].x, block.vectors[i].y, block.vectors[i].z, block.vectors[i].w};
#pragma unroll
        for (int w = 0; w < 4; ++w) widen(values + (4 * i + w) * kPerWord, words[w], static_cast<const T*>(nullptr));
    }
}

// Index of the word of scales of (row, 4 blocks along k) in a buffer [.., words_per_row].
__device__ __forceinline__ int64_t scale_word(int row, int word, int words_per_row, bool linear) {
    if (linear) return int64_t(row) * words_per_row + word;
    return (int64_t(row / scale_layout::ATOM_ROWS) * words_per_row + word) * scale_layout::ATOM_WORDS +
           scale_layout::word(row);
}

// Where the result goes and how it is scaled.
struct Output {
    uint2* elements;             // [.., blocks]
    uint32_t* scales;            // [scale_rows, ceil(blocks / 4)]
    const float* global_scales;  // per expert
    int blocks;                  // of 16 values, a row
    int scale_rows;
    bool decode, ieee, linear;
};

// What a thread has loaded of a block.
template <typename Source>
struct Item {
    typename Source::Raw raw;
    float global_scale;
    int out_row, scale_row, word;
    bool owned;  // by an expert
};

// Walks the words of all rows in steps of the grid, without a division a step.
class Cursor {
public:
    __device__ __forceinline__ Cursor(int first_row, int words_per_row) : words_per_row_(words_per_row) {
        const int quad = (blockIdx.x * blockDim.x + threadIdx.x) / kBlocksPerWord;
        const int quads = gridDim.x * blockDim.x / kBlocksPerWord;
        row = first_row + quad / words_per_row, word = quad % words_per_row;
        row_step_ = quads / words_per_row, word_step_ = quads % words_per_row;
    }

    __device__ __forceinline__ void advance() {
        row += row_step_, word += word_step_;
        if (word >= words_per_row_) word -= words_per_row_, ++row;
    }

    int row, word;

private:
    int words_per_row_, row_step_, word_step_;
};

template <typename Rows, typename Source>
__device__ __forceinline__ Item<Source> fetch(const Rows& rows, const Source& source, const Output& output,
                                              const Cursor& cursor) {
    Item<Source> item;
    item.word = cursor.word;
    item.owned = cursor.row < rows.end();
    if (!item.owned) return item;
    const Row row = rows.locate(cursor.row);
    const int block = cursor.word * kBlocksPerWord + threadIdx.x % kBlocksPerWord;
    if (block < output.blocks) item.raw = source.load(row, block);
    item.global_scale = output.global_scales[row.expert];
    item.out_row = row.out, item.scale_row = row.scale;
    return item;
}

template <typename Source>
__device__ __forceinline__ void quantize_and_store(const Source& source, const Output& output,
                                                   const Item<Source>& item) {
    const int block = item.word * kBlocksPerWord + threadIdx.x % kBlocksPerWord;
    uint32_t scale = 0;  // also of the blocks that fill up the last word of a row
    if (item.owned && block < output.blocks) {
        float values[nvfp4::kBlock];
        source.values(values, item.raw);
        const float encode_scale = nvfp4::encode_scale(item.global_scale, output.decode);
        const nvfp4::Quantized result = nvfp4::quantize(values, encode_scale, output.ieee);
        output.elements[int64_t(item.out_row) * output.blocks + block] = result.elements;
        scale = result.scale;
    }
    const uint32_t word = gather_quad(scale);
    // Unsigned, so that scale_offsets which are not what they should be cannot lead out of the buffer.
    const bool inside = uint32_t(item.scale_row) < uint32_t(output.scale_rows);
    if (item.owned && inside && threadIdx.x % kBlocksPerWord == 0)
        output.scales[scale_word(item.scale_row, item.word, ceil_div(output.blocks, kBlocksPerWord), output.linear)] =
            word;
}

// All rows; every thread of the grid calls it, in blocks of whole warps.
template <typename Rows, typename Source>
__device__ __forceinline__ void run(const Rows& rows, const Source& source, const Output& output) {
    Cursor cursor(rows.begin(), ceil_div(output.blocks, kBlocksPerWord));
    Item<Source> item = fetch(rows, source, output, cursor);
    while (__any_sync(0xFFFFFFFF, item.owned)) {
        cursor.advance();
        const Item<Source> next = fetch(rows, source, output, cursor);
        quantize_and_store(source, output, item);
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
        return quantize::load(x + int64_t(row.source) * columns + block * nvfp4::kBlock);
    }
    __device__ __forceinline__ void values(float (&values)[nvfp4::kBlock], const Raw& raw) const {
        widen(values, raw);
    }
};

}  // namespace quantize
