// Main loop of a CTA pair of sm_100: twice the weights of a tile, against the same tokens.
//
// Each CTA loads its 128 weights and half of the tokens, so a product takes fewer bytes from L2; scales of tokens both
// load whole. Its loads signal a barrier of its own. Of the warps that multiply, that of the CTA of rank 0 issues for
// both; that of the other one passes on there that a stage is loaded, and with the first one of a tile that its
// accumulator is free. Commits arrive in both CTAs, so loaders and epilogues are those of one.
#pragma once
#include <stdint.h>

#include "mainloop/umma.cuh"
#include "number/integer.cuh"
#include "ptx/cluster.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/opaque_value.cuh"
#include "ptx/tcgen05_pairs.cuh"
#include "schedule/ring.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

// What a CTA has of the tile of a pair.
template <class Config>
struct CtaOfPair : Config {
    static constexpr int BLOCK_N = Config::BLOCK_N / tcgen05::pair::kNumCtas;
};

template <class Config, class Operands>
struct UmmaOperands<CtaOfPair<Config>, Operands> {
    static constexpr int ROW_BYTES = Operands::byte(Config::BLOCK_K);
    uint8_t weights[CtaOfPair<Config>::BLOCK_N * ROW_BYTES];
    uint8_t tokens[Config::BLOCK_M / tcgen05::pair::kNumCtas * ROW_BYTES];
};

// Columns of the instruction for so many tokens: of the first half of them CTA 0 has the tokens, of the second CTA 1.
__device__ __forceinline__ int columns_of_pair(int num_rows) { return ceil_div(num_rows, 16) * 16; }

template <class Sources>
struct PairSources : Sources {
    template <class Mainloop>
    class Loads : public Sources::template Loads<Mainloop> {
        using Base = typename Sources::template Loads<Mainloop>;
        static_assert(!Mainloop::kTokensMnMajor && !Mainloop::kWeightsMnMajor, "a half is rows of a box");

    public:
        __device__ __forceinline__ Loads(const PairSources& sources, int num_columns)
            : Base(sources, num_columns), rank_(cluster::rank()) {}

        __device__ __forceinline__ void tokens(const StagePlaces& places, mbarrier::Barrier* full,
                                               const schedule::Tile& tile, int k) const {
            schedule::Tile half = tile;  // its scales are those of all
            half.row += rank_ * columns_of_pair(tile.num_rows) / tcgen05::pair::kNumCtas;
            Base::tokens(places, full, half, k);
        }

    private:
        const int rank_;
    };
};

// Copies the scales of a stage and issues products for both CTAs; one thread.
template <class Config, class Operands, operands::Scales = Operands::SCALES>
class PairProducts;

template <class Config, class Operands>
class PairProducts<Config, Operands, operands::Scales::kBlocks> {
    using Scales = UmmaScales<Config, Operands>;
    using Stage = typename Scales::Stage;
    using Columns = typename Scales::Columns;

public:
    // scales: descriptor of the stage's; columns: those of the ring of scales.
    __device__ __forceinline__ PairProducts(uint64_t scales, uint32_t columns) : scales_(scales), columns_(columns) {}

    __device__ __forceinline__ void issue(int step, uint32_t d, uint64_t weights, uint64_t tokens,
                                          uint32_t instruction, bool accumulate) const {
        constexpr int kTokenScales = sizeof(Stage::weight_scales);
        const int word = step / Operands::STEPS_PER_WORD, byte = Operands::scale_byte(step);
        const uint32_t weight_columns = columns_ + word * Columns::kWordColumns;
        const uint32_t token_columns = weight_columns + Columns::kAtomColumns;
        if (step % Operands::STEPS_PER_WORD == 0) {
            tcgen05::pair::copy_scales(weight_columns, scales_ + (word * Scales::kAtomBytes >> 4));
#pragma unroll
            for (int atom = 0; atom < Columns::kTokenAtoms; ++atom)
                tcgen05::pair::copy_scales(
                    token_columns + atom * Columns::kAtomColumns,
                    scales_ + (kTokenScales + (atom * Columns::kScaleWords + word) * Scales::kAtomBytes >> 4));
        }
        tcgen05::pair::mma_block_scaled<Operands>(
            d, weights + (step * Operands::STEP_BYTES >> 4), tokens + (step * Operands::STEP_BYTES >> 4),
            instruction | tcgen05::scale_ids(byte, byte), weight_columns, token_columns, accumulate || step > 0);
    }

private:
    const uint64_t scales_;
    const uint32_t columns_;
};

// Config: of the pair, whose tiles have BLOCK_M tokens and BLOCK_N weights.
template <class Config, class Operands>
struct UmmaPairs : Umma<CtaOfPair<Config>, Operands, true,
                        PairSources<typename UmmaScales<CtaOfPair<Config>, Operands>::Sources>> {
    using Own = CtaOfPair<Config>;
    using Base = Umma<Own, Operands, true, PairSources<typename UmmaScales<Own, Operands>::Sources>>;
    using typename Base::Columns;
    using typename Base::Scales;
    using typename Base::Stage;
    using typename Base::Storage;
    static constexpr int BLOCK_K = Base::BLOCK_K, kNumStages = Base::kNumStages, kSteps = Base::kSteps;
    static constexpr int BYTES_PER_STAGE = Base::BYTES_PER_STAGE - Config::BLOCK_M / 2 * Operands::token_bytes(BLOCK_K);
    static constexpr int kNumBuffers = Columns::kNumScaleBuffers;
    static constexpr bool kReusesScales = kNumBuffers < kNumStages;
    static constexpr bool kPairs = true;
    static_assert(Own::BLOCK_N == tcgen05::kNumLanes, "a CTA has the rows of its tensor memory");
    static_assert(Config::BLOCK_M % 128 == 0 && !Base::kMovesScales, "tiles begin at the first row of a scale block");
    static_assert(!kReusesScales || (kNumStages == 2 * kNumBuffers && (kNumBuffers & (kNumBuffers - 1)) == 0),
                  "of the barriers of two stages with the same scales the addresses differ in one bit");

    __device__ __forceinline__ static void allocate(uint32_t* address) {
        tcgen05::pair::allocate<tcgen05::kNumColumns>(address);
        tcgen05::pair::relinquish_allocation();
    }
    __device__ __forceinline__ static void free(uint32_t address) {
        tcgen05::pair::free<tcgen05::kNumColumns>(address);
    }

    // num_readers: threads of the epilogue of one CTA. A stage is full where products are issued when both CTAs have
    // loaded it and, if stages share columns of scales, when the products that read these have completed.
    __device__ __forceinline__ static void init(Storage& shared, int num_readers) {
        const bool leads = cluster::rank() == 0;
#pragma unroll 1
        for (int i = 0; i < kNumStages; ++i) {
            mbarrier::init(&shared.full[i], leads ? 2 + kReusesScales : 1);
            mbarrier::init(&shared.empty[i], 1);
        }
        for (int i = 0; i < 2; ++i) {
            mbarrier::init(&shared.accumulator_full[i], 1);
            mbarrier::init(&shared.accumulator_empty[i], num_readers);
        }
        if (leads && kReusesScales)
            for (int i = 0; i < kNumBuffers; ++i) mbarrier::arrive(&shared.full[i]);
    }

    // One warp of each CTA, behind a barrier of the cluster.
    class Multiplier {
    public:
        __device__ __forceinline__ Multiplier(Storage& shared, uint32_t tensor_memory)
            : shared_(shared),
              tensor_memory_(tensor_memory),
              // By a shuffle, or the compiler adds it up in front of each stage, once more for the copies.
              scale_columns_(__shfl_sync(0xFFFFFFFF, tensor_memory + Columns::kFirstScaleColumn, 0)),
              leads_(cluster::rank() == 0) {
            // The address of shared memory has the CTA's rank in its cluster above these bits, a descriptor has not.
            const uint32_t first = mbarrier::shared_address(&shared.stages[0]) & tcgen05::kAddressBits;
            weights_ = opaque_value(tcgen05::swizzle128_descriptor(first));
            scales_ = opaque_value(tcgen05::scale_descriptor(first + sizeof(UmmaOperands<Own, Operands>)));
        }

        __device__ __forceinline__ void multiply(const schedule::Tile& tile) {
            if (leads_) multiply_as<true>(tile);
            else multiply_as<false>(tile);
        }

    private:
        template <bool kLeads>
        __device__ __forceinline__ void multiply_as(const schedule::Tile& tile) {
            const int depth = tile.k_end - tile.k_begin;
            const int full_blocks = ceil_div(depth, BLOCK_K) - 1;  // the last block may be partial
            const int last_steps = ceil_div(depth, Operands::STEP_K) - full_blocks * kSteps;
            const uint32_t instruction = tcgen05::pair::of_both(Scales::instruction(columns_of_pair(tile.num_rows)));
            mbarrier::wait(&shared_.accumulator_empty[accumulator_.stage], accumulator_.parity);
            const bool issues = elect_one();  // here, since in the loop it is an instruction
#pragma unroll 1
            for (int block = 0; block < full_blocks; ++block) {
                wait_for_stage<kLeads>();
                if (issues) {
                    if constexpr (kLeads) issue_stage(kSteps, instruction, block > 0);
                    else tell_leader();
                }
                ring_.advance();
            }
            wait_for_stage<kLeads>();
            Scales::clear_padding(shared_.stages[ring_.stage], depth, last_steps - 1);
            if (elect_one()) {
                if constexpr (kLeads) {
                    issue_stage(last_steps, instruction, full_blocks > 0);
                    tcgen05::pair::commit(&shared_.accumulator_full[accumulator_.stage]);
                } else {
                    tell_leader();
                }
            }
            __syncwarp();
            ring_.advance();
            accumulator_.advance();
        }

        template <bool kLeads>
        __device__ __forceinline__ void wait_for_stage() const {
            mbarrier::wait(&shared_.full[ring_.stage], ring_.parity);
            if constexpr (kLeads) tcgen05::fence_after_sync();
        }

        // One thread. What it has waited for is read by the asynchronous proxy.
        __device__ __forceinline__ void tell_leader() const {
            cluster::arrive_on(cluster::place_in(0, &shared_.full[ring_.stage]));
        }

        // Issues the products of the first num_steps steps of the stage, and commits the stage; one thread.
        __device__ __forceinline__ void issue_stage(int num_steps, uint32_t instruction, bool accumulate) const {
            const uint32_t stage = ring_.stage;
            const uint64_t offset = uint64_t(stage) * (sizeof(Stage) >> 4);
            const uint64_t weights = weights_ + offset, tokens = weights + (sizeof(Stage::weights) >> 4);
            // One of two numbers would be a choice to the compiler, which takes more instructions than to multiply.
            const uint32_t buffer = kReusesScales ? opaque_value(stage % kNumBuffers) : stage;
            const PairProducts<Own, Operands> products(scales_ + offset,
                                                       scale_columns_ + buffer * Columns::kScaleColumns);
            const uint32_t d = tensor_memory_ + accumulator_.stage * Columns::kSecondAccumulator;
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                if (step == num_steps) break;
                products.issue(step, d, weights, tokens, instruction, accumulate);
            }
            if constexpr (kReusesScales)  // the stage that takes these columns next
                tcgen05::pair::commit_here(mbarrier::shared_address(&shared_.full[stage]) ^
                                           kNumBuffers * sizeof(mbarrier::Barrier));
            tcgen05::pair::commit(&shared_.empty[stage]);
        }

        Storage& shared_;
        const uint32_t tensor_memory_, scale_columns_;
        const bool leads_;
        uint64_t weights_, scales_;
        RingState<kNumStages> ring_;
        RingState<2> accumulator_;
    };
};

}  // namespace mainloop
