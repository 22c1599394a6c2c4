/* A libcuda.so.1 that keeps the rules of fake_cuda.py, loads its images, and prints every launch.
 *
 * FAKE_CUDA_DEVICES: devices as name;major;minor;sm_count;shared, joined by '|'. FAKE_CUDA_FAILS: function=status. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INVALID_VALUE = 1, INVALID_CONTEXT = 201, NO_BINARY = 209, INVALID_HANDLE = 400, NOT_FOUND = 500,
       MAX_PARAMETERS = 64, MAX_DEVICES = 16, CAPTURED = 0x6000 };

typedef struct Device { char name[64]; int major, minor, sm_count, shared; } Device;
typedef struct Image {
    char symbol[256];
    int count;
    size_t offsets[MAX_PARAMETERS], sizes[MAX_PARAMETERS];
    int device; /* of the function */
} Image;
typedef struct Attribute { uint32_t id, padding; unsigned char value[64]; } Attribute;
typedef struct Config {
    uint32_t grid[3], block[3], shared;
    void *stream;
    Attribute *attributes;
    uint32_t count;
} Config;

static Device devices[MAX_DEVICES];
static int device_count, stack[8], depth;

static int fails(const char *function) {
    const char *asked = getenv("FAKE_CUDA_FAILS");
    size_t size = strlen(function);
    return asked && !strncmp(asked, function, size) && asked[size] == '=' ? atoi(asked + size + 1) : 0;
}

#define ENTER(function) do { int status_ = fails(function); if (status_) return status_; } while (0)

int cuInit(unsigned flags) {
    const char *at = getenv("FAKE_CUDA_DEVICES");
    (void)flags;
    ENTER("cuInit");
    for (device_count = 0; at && *at && device_count < MAX_DEVICES; device_count++) {
        Device *d = &devices[device_count];
        if (sscanf(at, "%63[^;];%d;%d;%d;%d", d->name, &d->major, &d->minor, &d->sm_count, &d->shared) != 5) break;
        at = strchr(at, '|');
        at = at ? at + 1 : NULL;
    }
    return 0;
}

int cuGetErrorName(int status, const char **text) {
    *text = status == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : "CUDA_ERROR_OTHER";
    return 0;
}

int cuGetErrorString(int status, const char **text) {
    *text = status == INVALID_VALUE ? "invalid argument" : "another error";
    return 0;
}

int cuDeviceGetCount(int *count) { *count = device_count; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }

int cuDeviceGetName(char *name, int size, int device) {
    snprintf(name, (size_t)size, "%s", devices[device].name);
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    const Device *d = &devices[device];
    *value = attribute == 16 ? d->sm_count : attribute == 75 ? d->major : attribute == 76 ? d->minor : d->shared;
    return attribute == 16 || attribute == 75 || attribute == 76 || attribute == 97 ? 0 : INVALID_VALUE;
}

int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &devices[device]; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return depth ? INVALID_CONTEXT : 0; }

int cuCtxPushCurrent_v2(void *context) {
    stack[depth++] = (int)((Device *)context - devices);
    return 0;
}

int cuCtxPopCurrent_v2(void **context) {
    if (!depth) return INVALID_CONTEXT;
    *context = &devices[stack[--depth]];
    return 0;
}

int cuStreamIsCapturing(void *stream, int *capturing) {
    if (!depth) return INVALID_CONTEXT;
    *capturing = (uintptr_t)stream == CAPTURED;
    return 0;
}

int cuLibraryLoadData(void **library, const void *code, void *a, void *b, unsigned c, void *d, void *e, unsigned f) {
    const char *text = (const char *)code + 9, *at;
    uint32_t size;
    Image *image;
    char *copy;
    (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
    ENTER("cuLibraryLoadData");
    if (memcmp(code, "\x7f" "FAKE", 5)) return NO_BINARY;
    memcpy(&size, (const char *)code + 5, 4);
    copy = (char *)calloc(1, size + 1);
    memcpy(copy, text, size);
    image = (Image *)calloc(1, sizeof *image);
    at = strstr(copy, "\"symbol\": \"");
    if (!at || sscanf(at, "\"symbol\": \"%255[^\"]", image->symbol) != 1) abort();
    for (at = strstr(copy, "\"parameters\": [") + 15; image->count < MAX_PARAMETERS; image->count++) {
        at = strchr(at, '[');
        if (!at || sscanf(at, "[%zu, %zu]", &image->offsets[image->count], &image->sizes[image->count]) != 2) break;
        at++;
    }
    free(copy);
    *library = image;
    return 0;
}

int cuLibraryUnload(void *library) {
    if (!depth) return INVALID_CONTEXT;
    free(library);
    return 0;
}

int cuLibraryGetKernel(void **kernel, void *library, const char *symbol) {
    *kernel = library;
    return strcmp(((Image *)library)->symbol, symbol) ? NOT_FOUND : 0;
}

int cuKernelGetFunction(void **function, void *kernel) {
    if (!depth) return INVALID_CONTEXT;
    ((Image *)kernel)->device = stack[depth - 1];
    *function = kernel;
    return 0;
}

int cuKernelSetAttribute(int attribute, int value, void *kernel, int device) {
    printf("attribute %s %d %d %d\n", ((Image *)kernel)->symbol, attribute, value, device);
    return 0;
}

int cuKernelGetParamInfo(void *kernel, size_t index, size_t *offset, size_t *size) {
    const Image *image = (const Image *)kernel;
    if (index >= (size_t)image->count) return INVALID_VALUE;
    *offset = image->offsets[index];
    *size = image->sizes[index];
    return 0;
}

/* The arguments themselves, in 128 bytes. */
int cuTensorMapEncodeTiled(void *map, int element, uint32_t rank, uint64_t address, const uint64_t *dims,
                           const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave,
                           int swizzle, int l2, int fill) {
    uint64_t words[5] = {(uint64_t)element, rank, (uint64_t)swizzle, (uint64_t)l2, address};
    unsigned char packed[256] = {0};
    size_t used = sizeof words, i;
    ENTER("cuTensorMapEncodeTiled");
    if (!depth) return INVALID_CONTEXT;
    if ((uintptr_t)map % 64 || address % 16 || interleave || fill) return INVALID_VALUE;
    for (i = 0; i < rank; i++)
        if (steps[i] != 1) return INVALID_VALUE;
    memcpy(packed, words, used);
    memcpy(packed + used, dims, 8 * rank);
    used += 8 * rank;
    memcpy(packed + used, strides, 8 * (rank - 1));
    used += 8 * (rank - 1);
    memcpy(packed + used, box, 4 * rank);
    memcpy(map, packed, 128);
    return 0;
}

static void print_hex(const unsigned char *at, size_t size) {
    for (; size; size--) printf("%02x", *at++);
}

int cuLaunchKernelEx(const Config *c, void *function, void **parameters, void **extra) {
    const Image *image = (const Image *)function;
    static const unsigned char zeros[64];
    size_t end = 0;
    uint32_t i;
    (void)extra;
    ENTER("cuLaunchKernelEx");
    if (!depth) return INVALID_CONTEXT;
    if (stack[depth - 1] != image->device) return INVALID_HANDLE;
    printf("launch %s %d %u %u %u %u %u %u %u %llu %u", image->symbol, image->device, c->grid[0], c->grid[1],
           c->grid[2], c->block[0], c->block[1], c->block[2], c->shared, (unsigned long long)(uintptr_t)c->stream,
           c->count);
    for (i = 0; i < c->count; i++) {
        printf(" %u ", c->attributes[i].id);
        print_hex(c->attributes[i].value, 16);
    }
    printf(" -");
    for (i = 0; i < (uint32_t)image->count; i++) {
        print_hex(zeros, image->offsets[i] - end);
        print_hex((const unsigned char *)parameters[i], image->sizes[i]);
        end = image->offsets[i] + image->sizes[i];
    }
    printf("\n");
    return 0;
}

/* Memory, for programs of a user: that of the host. */

int cuCtxSetCurrent(void *context) {
    (void)context;
    return 0;
}

int cuMemAlloc_v2(uint64_t *address, size_t size) {
    *address = (uint64_t)(uintptr_t)aligned_alloc(256, (size + 255) / 256 * 256);
    return *address ? 0 : INVALID_VALUE;
}

int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size) {
    memcpy((void *)(uintptr_t)to, from, size);
    return 0;
}

int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size) {
    memcpy(to, (const void *)(uintptr_t)from, size);
    return 0;
}
