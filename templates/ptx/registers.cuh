// setmaxnreg: registers move between warpgroups at run time (PTX ISA 9.0, section 9.7.19.5).
#pragma once

namespace registers {

// Registers a thread of a CTA is launched with, where the launch bounds promise ctas_per_sm of them a multiprocessor.
// setmaxnreg.inc waits for ever for more than the CTA has in all.
constexpr int at_launch(int num_threads, int ctas_per_sm) { return 65536 / ctas_per_sm / num_threads / 8 * 8; }

// Register budget a thread of this warpgroup from here on, a multiple of 8; all four warps of the warpgroup call it.
template <int kRegisters>
__device__ __forceinline__ void decrease() {
    static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256, "setmaxnreg: 24 to 256 in steps of 8");
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void increase() {
    static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256, "setmaxnreg: 24 to 256 in steps of 8");
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace registers
