// What every generation's kernel of MQA logits multiplies, and the roles that bring it to shared memory: queries, their
// weights and where their logits go, in two buffers of a tile each, and keys in a ring of stages.
#pragma once
#include <stdint.h>
#include <type_traits>

#include "epilogue/logits.cuh"
#include "mainloop/keys.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "schedule/keys.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace kernel {

// Heads of queries: kHeads of each, zeros behind those that there are.
struct Queries {
    const tma::TensorMap* map;  // heads and queries
    const void* weights;  // of Config::Weight each
    int64_t weight_pitch;
    int num_heads;
    const int* scales;  // four UE8M0 of each head, where they are block-scaled
};

// Config: kHeads of a query, zeros behind those that there are; kColumns, heads of queries of a tile; kRowBytes of a head;
// kStageKeys, kNumStages; Weight, a type. kBlockScaled: heads and keys have a word of UE8M0 scales each; otherwise a key has an
// fp32 scale.
template <class Config, class Schedule, class Keys, bool kBlockScaled = false>
struct MqaOperands {
    static constexpr int kRows = Config::kStageKeys, kRowBytes = Config::kRowBytes, kHeads = Config::kHeads;
    static constexpr int kColumns = Config::kColumns, kQueries = kColumns / kHeads, kNumStages = Config::kNumStages;
    static constexpr int kBuffers = 2, kScaleRows = kColumns < 128 ? 128 : kColumns;  // tcgen05 takes scales of 128
    using Weight = typename Config::Weight;

    struct Plain {
        uint8_t queries[kBuffers][kColumns * kRowBytes];
        uint8_t keys[kNumStages][kRows * kRowBytes];
        alignas(128) float scales[kNumStages][Keys::kScaleSpace];
        float weights[kBuffers][kColumns];
        epilogue::LogitRow rows[kBuffers][kQueries];
        uint32_t parts_there[kNumStages][Keys::kThereWords];
        mbarrier::Barrier full[kNumStages], empty[kNumStages], queries_full[kBuffers], queries_empty[kBuffers];
    };
    struct BlockScaled : Plain {
        uint32_t query_scales[kBuffers][kScaleRows];
    };
    using Storage = std::conditional_t<kBlockScaled, BlockScaled, Plain>;  // at 1024 bytes, where the swizzle repeats

    // How many arrive when a stage, and when a tile's queries, weights and rows are no longer needed. A lane that arrives
    // for others relies on a barrier of the warp, of which SASS keeps nothing where lanes run together anyway: right, but
    // compute-sanitizer's racecheck then sees a race.
    __device__ __forceinline__ static void init(Storage& shared, int readers_of_keys, int readers_of_queries) {
#pragma unroll 1
        for (int s = 0; s < kNumStages; ++s) {
            mbarrier::init(&shared.full[s], 1);
            mbarrier::init(&shared.empty[s], readers_of_keys);
        }
#pragma unroll
        for (int i = 0; i < kBuffers; ++i) {
            mbarrier::init(&shared.queries_full[i], 1 + 32);  // TMA, and the lanes that bring weights
            mbarrier::init(&shared.queries_empty[i], readers_of_queries);
        }
    }

    // The keys of tiles, by as many warps as there are loaders, in turn.
    template <int kLoaders>
    class KeyLoader {
    public:
        __device__ __forceinline__ KeyLoader(Storage& shared, const Keys& keys, int loader)
            : shared_(shared), keys_(keys), loader_(loader) {}

        __device__ __forceinline__ void load(const schedule::Tile& tile) {
            constexpr int kKeys = Keys::kStages * kRows;
            const int own = Keys::stage_of_lane();
            int turn = loader_, index = 0;
#pragma unroll 1
            for (int key = tile.k_begin; key < tile.k_end; key += kKeys) {
                const int count = min(Keys::kStages, ceil_div(tile.k_end - key, kRows));
                if (turn == 0) {
                    RingState<kNumStages> place = ring_;  // of the lane's stage
                    place.advance(own < count ? own : 0);
                    // Together: a lane that came late would see the stage full and empty again, and wait for the next time.
                    mbarrier::wait_together(&shared_.empty[place.stage], place.parity ^ 1, own < count);
                    keys_.template load<kLoaders>(
                        {shared_.keys[place.stage], shared_.scales[place.stage], shared_.parts_there[place.stage]},
                        &shared_.full[place.stage], tile, key, kLoaders > 1 ? index : (key - tile.k_begin) / kKeys,
                        own < count);  // counted where registers are left for it
                    ++index;
                }
                turn = turn == 0 ? kLoaders - 1 : turn - 1;
                ring_.advance(count);
            }
        }

    private:
        Storage& shared_;
        Keys keys_;
        const int loader_;
        RingState<kNumStages> ring_;
    };

    // The role of a warp: one of those that load keys, where that is not the work of the one that walks the schedule.
    template <int kLoaders, class Tiles>
    __device__ __forceinline__ static void load_keys(Storage& shared, Tiles tiles, const Keys& keys, int loader) {
        for (KeyLoader<kLoaders> loads(shared, keys, loader); tiles.wait(); tiles.release()) {
            const schedule::Tile tile = tiles.tile();
            loads.load(tile);
        }
    }

    // The role of a warp: walks the schedule, tells the others of tiles, and loads queries and, unless others do, keys.
    template <bool kLoadsKeys = true, class Tiles>
    __device__ __forceinline__ static void load(Storage& shared, Tiles tiles, Schedule schedule, const Queries& queries,
                                                const Keys& keys) {
        const bool leads = threadIdx.x % 32 == 0;
        RingState<kBuffers> buffer;
        KeyLoader<1> loads(shared, keys, 0);
        schedule::Tile tile;
        while (schedule.next(tile)) {
            if (leads) tiles.write(tile);
            if (tile.k_begin >= tile.k_end) continue;
            if (leads) {
                mbarrier::wait(&shared.queries_empty[buffer.stage], buffer.parity ^ 1);
                mbarrier::arrive_expect_tx(&shared.queries_full[buffer.stage], kColumns * kRowBytes);
                tma::load_3d(mbarrier::shared_address(shared.queries[buffer.stage]), queries.map,
                             &shared.queries_full[buffer.stage], 0, 0, tile.row);
            }
            buffer.advance();
            if constexpr (kLoadsKeys) loads.load(tile);
        }
        if (leads) tiles.end();
    }

    // The role of another warp. A tile without keys has no queries either.
    template <class Tiles>
    __device__ __forceinline__ static void bring_weights(Storage& shared, Tiles tiles,
                                                         const typename Schedule::Params& params, const Queries& queries,
                                                         const epilogue::Logits& logits) {
        const int lane = threadIdx.x % 32;
        const Weight* weights = static_cast<const Weight*>(queries.weights);
        RingState<kBuffers> buffer;
        for (; tiles.wait(); tiles.release()) {
            const schedule::Tile& tile = tiles.tile();
            if (tile.k_begin >= tile.k_end) continue;
            mbarrier::wait(&shared.queries_empty[buffer.stage], buffer.parity ^ 1);
#pragma unroll
            for (int column = lane; column < kColumns; column += 32) {
                const int query = column / kHeads, head = column % kHeads;
                const bool exists = query < tile.num_rows && head < queries.num_heads;
                shared.weights[buffer.stage][column] =
                    exists ? static_cast<float>(__ldcg(weights + (tile.row + query) * queries.weight_pitch + head)) : 0;
                if constexpr (kBlockScaled)
                    shared.query_scales[buffer.stage][column] =
                        exists ? __ldcg(queries.scales + int64_t{tile.row + query} * queries.num_heads + head) : 0;
            }
            if (lane < kQueries)
                shared.rows[buffer.stage][lane] =
                    lane < tile.num_rows ? logits.row(tile.row + lane, Schedule::range(params, tile.row + lane))
                                         : epilogue::Logits::no_row();
            mbarrier::arrive(&shared.queries_full[buffer.stage]);
            buffer.advance();
        }
    }
};

}  // namespace kernel
