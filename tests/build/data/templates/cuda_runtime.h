// What these kernels take of CUDA: as templates/cuda_runtime.h, since most of a build's time would be the toolkit's.
#pragma once
#include "device_launch_parameters.h"
