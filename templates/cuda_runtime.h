// What kernels take of CUDA. nvcc reads the header of this name before every file, and finds this one before the
// toolkit's, whose host API and C++ library take longer to read than most kernels to compile. <cuda_fp16.h> and its like
// need those, so they are not there either: what kernels take of them is in number/.
#pragma once
#define __CUDA_INCLUDE_COMPILER_INTERNAL_HEADERS__
#include "vector_functions.h"

#include "crt/device_functions.h"
#include "device_launch_parameters.h"

#include <initializer_list>
#undef __CUDA_INCLUDE_COMPILER_INTERNAL_HEADERS__

// Functions that the compiler knows by name.
extern "C" {
__device__ __device_builtin__ float fabsf(float);
__device__ __device_builtin__ float fminf(float, float);
__device__ __device_builtin__ float fmaxf(float, float);
__device__ __device_builtin__ float fmaf(float, float, float);
__device__ __device_builtin__ int min(int, int);
__device__ __device_builtin__ int max(int, int);
__device__ __device_builtin__ unsigned umin(unsigned, unsigned);
__device__ __device_builtin__ unsigned umax(unsigned, unsigned);
__device__ __device_builtin__ long long llmin(long long, long long);
__device__ __device_builtin__ long long llmax(long long, long long);
}
static __device__ __inline__ unsigned min(unsigned a, unsigned b) { return umin(a, b); }
static __device__ __inline__ unsigned max(unsigned a, unsigned b) { return umax(a, b); }
static __device__ __inline__ long min(long a, long b) { return llmin(a, b); }
static __device__ __inline__ long max(long a, long b) { return llmax(a, b); }
