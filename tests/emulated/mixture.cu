// A kernel of ordinary CUDA: divergence, early exit, a switch, shuffles, integer division, local arrays, atomics, half precision.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

extern "C" __global__ void mixture(float* values, const int* weights, uint32_t* words, int count) {
    __shared__ float row[256];
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    row[threadIdx.x] = index < count ? values[index] : 0.0f;
    __syncthreads();

    float sum = 0.0f;
    for (int j = 0; j < threadIdx.x % 7; ++j) {
        sum += row[(threadIdx.x + j) % 256] * weights[j];
        if (sum > 100.0f) break;
    }
    switch (index % 9) {
        case 0: sum += 1.0f; break;
        case 1: sum *= 3.0f; break;
        case 2: sum -= threadIdx.x; break;
        case 3: sum /= 3.0f; break;
        case 4: sum = sqrtf(fabsf(sum)); break;
        case 6: sum = sum * sum + 7.0f; break;
        default: sum = 3.0f;
    }

    uint32_t word = __shfl_xor_sync(~0u, threadIdx.x * 3, 5) + __ballot_sync(~0u, sum > 2.0f) + __reduce_add_sync(~0u, index);
    for (int distance = 16; distance > 0; distance /= 2) word += __shfl_down_sync(~0u, word, distance);
    if (threadIdx.x & 1) word ^= __popc(word) * 77;
    else word = __brev(word) + __clz(word);

    const int divisor = index % 13 == 6 ? 5 : index % 13 - 6;
    const int quotient = static_cast<int>(word) / divisor + static_cast<int>(word) % 17;
    const uint64_t wide = static_cast<uint64_t>(word) * 0x123456789ull / (index + 1);
    uint32_t stack[8];  // indexed at run time: local memory
    for (int i = 0; i < 8; ++i) stack[i] = word * (i + 1) + i;
    for (int i = 0; i < 3; ++i) stack[(word >> 3 * i) & 7] ^= stack[(word >> 5 * i + 2) & 7] + i;

    const __half2 halves = __hfma2(__float2half2_rn(sum / 64), __floats2half2_rn(1.5f, index), __floats2half2_rn(0.25f, 3));
    const __nv_bfloat16 brain = __float2bfloat16(sum);
    words[index] = word + quotient + static_cast<uint32_t>(wide >> 7) + __umulhi(word, 12345u) +
                   __byte_perm(word, quotient, 0x5140 + index % 4) + stack[index & 7] +
                   reinterpret_cast<const uint32_t&>(halves) + reinterpret_cast<const uint16_t&>(brain);
    values[index] = sum;
    atomicAdd(reinterpret_cast<int*>(&words[gridDim.x * blockDim.x]), index & 3);
    if (index % 50 == 49) return;
    atomicMax(&words[gridDim.x * blockDim.x + 1], word >> 8);
}
