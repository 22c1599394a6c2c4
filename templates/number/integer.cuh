// Integer arithmetic of sizes.
#pragma once

// Quotient rounded up, for a >= 0 and b > 0.
__device__ __forceinline__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
