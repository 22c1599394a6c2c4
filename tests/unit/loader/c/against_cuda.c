/* What block_scaled/driver.h writes of cuda.h by hand, compared with the real one while this is compiled. */
#define BLOCK_SCALED_IMPLEMENTATION
#include "block_scaled.h"

#include <cuda.h>

#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #theirs)

SAME(sizeof(bsi_config), sizeof(CUlaunchConfig));
SAME(offsetof(bsi_config, block), offsetof(CUlaunchConfig, blockDimX));
SAME(offsetof(bsi_config, shared), offsetof(CUlaunchConfig, sharedMemBytes));
SAME(offsetof(bsi_config, stream), offsetof(CUlaunchConfig, hStream));
SAME(offsetof(bsi_config, attributes), offsetof(CUlaunchConfig, attrs));
SAME(offsetof(bsi_config, attribute_count), offsetof(CUlaunchConfig, numAttrs));
SAME(sizeof(bsi_attribute), sizeof(CUlaunchAttribute));
SAME(offsetof(bsi_attribute, value), offsetof(CUlaunchAttribute, value));
SAME(BSI_MAP_BYTES, sizeof(CUtensorMap));
SAME(BSI_INVALID_VALUE, CUDA_ERROR_INVALID_VALUE);
SAME(BSI_CAPTURE_FIRST, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
SAME(BSI_CAPTURE_LAST, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
SAME(BSI_SM_COUNT, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
SAME(BSI_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME(BSI_MINOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
SAME(BSI_SHARED_LIMIT, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
SAME(BSI_MAX_SHARED, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
SAME(BSI_NON_PORTABLE, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED);
SAME(BSI_CLUSTER, CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
SAME(BSI_PROGRAMMATIC, CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);

int main(void) { return 0; }
