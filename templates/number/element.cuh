// Elements of operands that a tensor core reads as they lie in memory, by their names in kernels.yaml.
#pragma once

namespace number {

struct e4m3 {
    static constexpr int kBytes = 1;
};
struct bf16 {
    static constexpr int kBytes = 2;
};
struct f16 {
    static constexpr int kBytes = 2;
};

}  // namespace number
