// Element types to float32 and back, rounding to nearest even.
#pragma once

struct __half {
    unsigned short bits;
};

namespace convert {

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}

template <typename T>
__device__ T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
    return value;
}
template <>
__device__ inline __half from_float<__half>(float value) {
    __half rounded;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(value));
    return rounded;
}

}  // namespace convert
