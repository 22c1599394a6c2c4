// Main loop of sm_90 for operands without scales (BF16): weights . tokens^T by wgmma on shared memory.
//
// Roles: one thread loads by TMA, two warpgroups multiply.
#pragma once
#include <stdint.h>

#include "mainloop/shared_operands.cuh"
#include "number/integer.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma.cuh"
#include "schedule/tile.cuh"

namespace mainloop {

// Columns of weights of an instruction whose rows are tokens.
template <class Config>
constexpr int kSharedColumns = Config::BLOCK_N / (Config::BLOCK_M <= 64 && !Config::kSharesK ? 2 : 1);

template <class Config, class OwnSources = PlainSources>
struct WgmmaShared : SharedOperands<Config, kSharedColumns<Config>> {
    using Base = SharedOperands<Config, kSharedColumns<Config>>;
    using Sources = OwnSources;
    using typename Base::Accumulators, typename Base::Storage;
    static constexpr int BLOCK_M = Base::BLOCK_M, BLOCK_K = Base::BLOCK_K, kTiles = Base::kTiles;

    // The two warpgroups that multiply.
    class Multiplier {
    public:
        __device__ __forceinline__ Multiplier(Storage& shared, const Sources&, int, int)
            : shared_(shared), products_(shared) {}

        // The sums of the tile; those of rows that it does not have are anything.
        __device__ __forceinline__ void multiply(Accumulators& sums, const schedule::Tile& tile) {
            const bool has_warp_lead = threadIdx.x % 32 == 0;
            const int blocks = ceil_div(tile.k_end - tile.k_begin, BLOCK_K), before = stages_.begin(blocks);
#pragma unroll
            for (auto& of_tile : sums)
#pragma unroll
                for (float& sum : of_tile) sum = 0;
            for (int block = before; block < blocks; block += Base::kStride) {
                mbarrier::wait(&shared_.full[stages_.stage()], stages_.parity());
                wgmma::fence();
#pragma unroll
                for (int t = 0; t < kTiles; ++t)
                    products_.issue(sums[t], stages_.stage(), t, true);
                wgmma::commit();
                // The products of the stage before are over, so it is free.
                wgmma::wait<1>();
                if (block > before && has_warp_lead) mbarrier::arrive(&shared_.empty[stages_.previous()]);
                stages_.advance();
            }
            wgmma::wait<0>();
            if (before < blocks && has_warp_lead) mbarrier::arrive(&shared_.empty[stages_.previous()]);
            __syncwarp();
        }

    private:
        Storage& shared_;
        const typename Base::Products products_;
        typename Base::OwnStages stages_;
    };
};

}  // namespace mainloop
