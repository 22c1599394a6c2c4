// NVFP4 of SwiGLU from the accumulators of wgmma, whose rows are gates and ups in turn.
//
// The warps that multiply hand over gates and ups, rounded to the type in between, through rings of chunks in shared
// memory, and go on with the next tile; a warpgroup of its own activates, quantises and stores them.
#pragma once
#include <stdint.h>

#include "epilogue/swiglu_quantize.cuh"
#include "layout/weight_rows.cuh"
#include "number/bias.cuh"
#include "number/output.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace epilogue {

template <class Config>
struct SwigluQuantizeSm90 {
    static constexpr int BLOCK_M = Config::BLOCK_M, BLOCK_N = Config::BLOCK_N;
    static constexpr int kNumWarps = 4;  // of its own
    using WeightRows = layout::GateUpRows<Config::BLOCK_K / 2, BLOCK_N / 128>;
    using Params = swiglu::Epilogue<nvfp4::Result>;

    // A chunk is what a consumer warpgroup hands over at once: of each of its 4 scale groups a row for each of 8
    // tokens. All uses of its place in the ring are one epilogue warp's, so every warp sees each phase of its barriers.
    static constexpr int kNumChunks = Config::kNumChunks;
    static constexpr int CHUNK_TOKENS = 8, CHUNK_ROW_BYTES = nvfp4::kBlock * 4;
    static constexpr int GROUPS = BLOCK_N / 2 / (2 * nvfp4::kBlock);  // of a warpgroup
    static constexpr int kWarpsPerRing = 2;
    static_assert(CHUNK_TOKENS * GROUPS == 32, "a lane of the epilogue has one group of a token");
    static_assert(kNumChunks % 2 == 0 && kNumChunks >= 4,
                  "each of two warps has places; in fp32 pairs of them, for gates and for ups");

    using Chunk = uint8_t[GROUPS][CHUNK_TOKENS * CHUNK_ROW_BYTES];
    using ChunkRing = RingState<kNumChunks>;
    struct alignas(16) Storage {
        Chunk chunks[2][kNumChunks];  // of each consumer warpgroup
        mbarrier::Barrier full[2][kNumChunks], empty[2][kNumChunks];
    };

    __device__ __forceinline__ static void init(Storage& shared) {
        for (int warpgroup = 0; warpgroup < 2; ++warpgroup)
            for (int s = 0; s < kNumChunks; ++s) {
                mbarrier::init(&shared.full[warpgroup][s], 128);  // every thread that writes
                mbarrier::init(&shared.empty[warpgroup][s], 32);  // every thread that reads
            }
    }

    // Offset of 16-byte vector 0 of a token's row in the rows of a group; vector v is at this ^ v * 16. Writing one
    // word of every row of a group, and reading a vector of two tokens of every group, touch every bank once.
    __device__ __forceinline__ static int chunk_place(int group, int token) {
        return (token ^ token / 2 % 2) * CHUNK_ROW_BYTES + ((group ^ token / 4 * 2) << 4);
    }

    // A gate and its up of one element as one word.
    __device__ __forceinline__ static uint32_t to_word(float first, float second, swiglu::Type type, bool swap) {
        const uint32_t pair = type == swiglu::kBf16 ? output::pack<output::bf16>(first, second)
                                                    : output::pack<output::f16>(first, second);
        return __byte_perm(pair, 0, swap ? 0x1032 : 0x3210);
    }

    // What a lane's gates and ups get: of m64 tile t, and of its element i.
    struct Affine {
        float factor[2], bias[2][2];

        __device__ __forceinline__ Affine(const Params& params, const schedule::Tile& tile) {
            const uint32_t thread = thread_index_again(), g = thread % 32 / 4;
            const bool ups_first = WeightRows::has_ups_first(g);
            const float alpha = __ldcg(params.alpha + tile.batch);
            const float up_alpha = params.up_alpha != nullptr ? __ldcg(params.up_alpha + tile.batch) : alpha;
            factor[0] = ups_first ? up_alpha : alpha;
            factor[1] = ups_first ? alpha : up_alpha;
            const int group = tile.column / (2 * nvfp4::kBlock) + thread / 32 - 4;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int place = group * nvfp4::kBlock + WeightRows::element(g) + i * 8;
                const float2 pair = bias::load_pair(params.bias, params.bias_index(tile.batch, place),
                                                    group < params.num_groups);
                bias[0][i] = ups_first ? pair.y : pair.x;
                bias[1][i] = ups_first ? pair.x : pair.y;
            }
        }
    };

    // What a warp that multiplies does with its tiles.
    class Consumer {
    public:
        __device__ __forceinline__ Consumer(Storage& shared, const Params& params) : shared_(shared), params_(params) {}

        __device__ __forceinline__ void finish(const float (&accumulators)[2][BLOCK_M / 2],
                                               const schedule::Tile& tile) {
            const Affine affine(params_, tile);
            const int num_tokens = tile.num_rows;
            switch (params_.intermediate) {
                case swiglu::kF32: hand_over<swiglu::kF32>(accumulators, affine, num_tokens); break;
                case swiglu::kBf16: hand_over<swiglu::kBf16>(accumulators, affine, num_tokens); break;
                case swiglu::kF16: hand_over<swiglu::kF16>(accumulators, affine, num_tokens); break;
            }
        }

    private:
        // A warp's scale group of the tile, CHUNK_TOKENS tokens at a time.
        template <swiglu::Type kType>
        __device__ __forceinline__ void hand_over(const float (&accumulators)[2][BLOCK_M / 2], const Affine& affine,
                                                  int num_tokens) {
            constexpr int kWords = kType == swiglu::kF32 ? 2 : 1;
            const uint32_t thread = thread_index_again(), lane = thread % 32, g = lane / 4, l = lane % 4;
            const uint32_t warpgroup = thread / 128 - 1, warp = thread / 32 % 4;
            const bool ups_first = WeightRows::has_ups_first(g);
            // Of token 2 l; the next token is at ^ CHUNK_ROW_BYTES, the element 8 further on at ^ 32.
            const int place = chunk_place(warp, 2 * l) ^ WeightRows::element(g) * 4;
#pragma unroll
            for (int first = 0; first < BLOCK_M; first += CHUNK_TOKENS) {
                if (first < num_tokens) {
#pragma unroll
                    for (int word = 0; word < kWords; ++word) {
                        mbarrier::wait_together(&shared_.empty[warpgroup][ring_.stage], ring_.parity ^ 1);
                        uint8_t* const rows = shared_.chunks[warpgroup][ring_.stage][warp];
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            const float x =
                                bias::apply(affine.factor[0], accumulators[0][first / 2 + i], affine.bias[0][i / 2]);
                            const float y =
                                bias::apply(affine.factor[1], accumulators[1][first / 2 + i], affine.bias[1][i / 2]);
                            *reinterpret_cast<uint32_t*>(rows + (place ^ i % 2 * CHUNK_ROW_BYTES ^ i / 2 * 32)) =
                                kWords == 1 ? to_word(x, y, kType, ups_first)
                                            : __float_as_uint(ups_first == word ? x : y);
                        }
                        mbarrier::arrive(&shared_.full[warpgroup][ring_.stage]);
                        ring_.advance();
                    }
                }
            }
        }

        Storage& shared_;
        const Params& params_;
        ChunkRing ring_;
    };

    // Eight neighbouring words of a row, from vector `first` on; `place` is that of vector 0.
    __device__ __forceinline__ static void read_words(uint32_t (&words)[8], const uint8_t* rows, int place, int first) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint4 four = *reinterpret_cast<const uint4*>(rows + (place ^ (first + i) * 16));
            words[4 * i] = four.x, words[4 * i + 1] = four.y, words[4 * i + 2] = four.z, words[4 * i + 3] = four.w;
        }
    }

    // Activates a group of a token in `chunk`, or of fp32 in it and the next one.
    __device__ __forceinline__ static void activate(float (&values)[nvfp4::kBlock], const Chunk* chunk, int group,
                                                    int token, const Params& params) {
        const int place = chunk_place(group, token);
#pragma unroll
        for (int first = 0; first < 4; first += 2) {  // not all at once: registers
            uint32_t words[8];
            float gates[8], ups[8];
            read_words(words, chunk[0][group], place, first);
            if (params.intermediate == swiglu::kF32) {
#pragma unroll
                for (int i = 0; i < 8; ++i) gates[i] = __uint_as_float(words[i]);
                read_words(words, chunk[1][group], place, first);
#pragma unroll
                for (int i = 0; i < 8; ++i) ups[i] = __uint_as_float(words[i]);
            } else if (params.intermediate == swiglu::kBf16) {
#pragma unroll
                for (int i = 0; i < 8; ++i)
                    gates[i] = __uint_as_float(words[i] << 16), ups[i] = __uint_as_float(words[i] & 0xFFFF0000);
            } else {
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    const float2 pair = halves::widen_f16x2(words[i]);
                    gates[i] = pair.x, ups[i] = pair.y;
                }
            }
            swiglu::apply(gates, ups, params.activation);
#pragma unroll
            for (int i = 0; i < 8; ++i) values[first * 4 + i] = gates[i];
        }
    }

    // Warp `warp` of its own: two serve a consumer warpgroup, each the places in the ring that are its own.
    template <class Tiles>
    __device__ __forceinline__ static void run(Storage& shared, Tiles tiles, const Params& params, int warp) {
        const int warpgroup = warp / kWarpsPerRing, owned = warp % kWarpsPerRing;
        const int lane = threadIdx.x % 32, token_in_chunk = lane / GROUPS, group = lane % GROUPS;
        const bool apart = params.intermediate == swiglu::kF32;  // gates and ups take a chunk each
        ChunkRing ring;
        for (; tiles.wait(); tiles.release()) {
            const schedule::Tile tile = tiles.tile();
            const swiglu::TileEpilogue<nvfp4::Result> epilogue(params, tile);
            const int group_in_row = tile.column / (2 * nvfp4::kBlock) + warpgroup * GROUPS + group;
            for (int first = 0; first < tile.num_rows; first += CHUNK_TOKENS) {
                const int stage = ring.stage, pair = apart ? stage / 2 : stage;
                if (pair % kWarpsPerRing == owned) {
                    const int token = first + token_in_chunk;
                    const float weight = epilogue.weight(token);  // in flight meanwhile
                    float values[nvfp4::kBlock];
                    mbarrier::wait(&shared.full[warpgroup][stage], ring.parity);
                    if (apart) mbarrier::wait(&shared.full[warpgroup][stage + 1], ring.parity);
                    activate(values, &shared.chunks[warpgroup][stage], group, token_in_chunk, params);
                    mbarrier::arrive(&shared.empty[warpgroup][stage]);
                    if (apart) mbarrier::arrive(&shared.empty[warpgroup][stage + 1]);
                    epilogue.store_group(values, weight, token, group_in_row);
                }
                ring.advance();
                if (apart) ring.advance();
            }
        }
    }
};

}  // namespace epilogue
