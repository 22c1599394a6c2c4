/* The CUDA driver, opened by dlopen at the first device. Layouts and numbers: cuda.h 13.0. */
#ifndef BLOCK_SCALED_DRIVER_H
#define BLOCK_SCALED_DRIVER_H

#include <dlfcn.h>

#include "select.h"

enum {
    BSI_INVALID_VALUE = 1, BSI_CAPTURE_FIRST = 900, BSI_CAPTURE_LAST = 908, /* statuses */
    BSI_SM_COUNT = 16, BSI_MAJOR = 75, BSI_MINOR = 76, BSI_SHARED_LIMIT = 97, /* attributes of a device */
    BSI_MAX_SHARED = 8, BSI_NON_PORTABLE = 14, /* of a function */
    BSI_CLUSTER = 4, BSI_PROGRAMMATIC = 6 /* of a launch */
};

typedef struct bsi_attribute {
    uint32_t id, padding;
    uint32_t value[16];
} bsi_attribute;

typedef struct bsi_config {
    uint32_t grid[3], block[3], shared;
    void *stream;
    bsi_attribute *attributes;
    uint32_t attribute_count;
} bsi_config;

/* Field, symbol, and the types of its arguments. */
#define BSI_DRIVER(each) \
    each(init, "cuInit", (unsigned)) \
    each(error_name, "cuGetErrorName", (int, const char **)) \
    each(error_text, "cuGetErrorString", (int, const char **)) \
    each(device_count, "cuDeviceGetCount", (int *)) \
    each(device_get, "cuDeviceGet", (int *, int)) \
    each(device_name, "cuDeviceGetName", (char *, int, int)) \
    each(device_attribute, "cuDeviceGetAttribute", (int *, int, int)) \
    each(context_retain, "cuDevicePrimaryCtxRetain", (void **, int)) \
    each(context_release, "cuDevicePrimaryCtxRelease_v2", (int)) \
    each(context_push, "cuCtxPushCurrent_v2", (void *)) \
    each(context_pop, "cuCtxPopCurrent_v2", (void **)) \
    each(is_capturing, "cuStreamIsCapturing", (void *, int *)) \
    each(library_load, "cuLibraryLoadData", \
         (void **, const void *, void *, void *, unsigned, void *, void *, unsigned)) \
    each(library_unload, "cuLibraryUnload", (void *)) \
    each(library_kernel, "cuLibraryGetKernel", (void **, void *, const char *)) \
    each(kernel_function, "cuKernelGetFunction", (void **, void *)) \
    each(kernel_set, "cuKernelSetAttribute", (int, int, void *, int)) \
    each(kernel_parameter, "cuKernelGetParamInfo", (void *, size_t, size_t *, size_t *)) \
    each(encode, "cuTensorMapEncodeTiled", \
         (void *, int, uint32_t, uint64_t, const uint64_t *, const uint64_t *, const uint32_t *, const uint32_t *, \
          int, int, int, int)) \
    each(launch, "cuLaunchKernelEx", (const bsi_config *, void *, void **, void **))

#define BSI_FIELD(field, symbol, types) int(*field) types;
typedef struct bsi_driver {
    BSI_DRIVER(BSI_FIELD)
} bsi_driver;
#undef BSI_FIELD

/* A kernel that is loaded on a device, found by the digest of its file and its symbol. */
typedef struct bsi_function {
    struct bsi_function *next;
    void *library, *handle;
    char sha256[65], *symbol;
} bsi_function;

struct bs_device {
    bsi_driver driver;
    void *context;
    int handle, ordinal;
    bsi_facts facts;
    bsi_function *functions;
};

static void bsi_check(bsi_context *c, const bsi_driver *driver, int status, const char *call, const char *of) {
    const char *name = NULL, *text = NULL;
    if (!status) return;
    driver->error_name(status, &name);
    driver->error_text(status, &text);
    bsi_fail(c, BS_ERROR_CUDA, "%s failed: %s (%d): %s [%s]", call, name ? name : "error", status, text ? text : "",
             of);
}

static int bsi_attribute_of(bsi_context *c, bs_device *device, int attribute) {
    int value = 0;
    bsi_check(c, &device->driver, device->driver.device_attribute(&value, attribute, device->handle),
              "cuDeviceGetAttribute", device->facts.name);
    return value;
}

static void bsi_open_device(bsi_context *c, void *call) {
    bs_device *device = (bs_device *)call;
    bsi_driver *driver = &device->driver;
    int count = 0;
    char of[32];
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL); /* never closed: it has threads of its own */
    snprintf(of, sizeof of, "device %d", device->ordinal);
    if (!library) bsi_fail(c, BS_ERROR_NO_DRIVER, "no CUDA driver on this machine: %s", dlerror());
#define BSI_SYMBOL(field, symbol, types) \
    *(void **)&driver->field = dlsym(library, symbol); \
    if (!driver->field) \
        bsi_fail(c, BS_ERROR_NO_DRIVER, "the CUDA driver has no %s; 12.4 is the oldest that has all", symbol);
    BSI_DRIVER(BSI_SYMBOL)
#undef BSI_SYMBOL
    bsi_check(c, driver, driver->init(0), "cuInit", of);
    bsi_check(c, driver, driver->device_count(&count), "cuDeviceGetCount", of);
    if (device->ordinal < 0 || device->ordinal >= count)
        bsi_fail(c, BS_ERROR_ARGUMENT, "there is no device %d, expected 0 to %d", device->ordinal, count - 1);
    bsi_check(c, driver, driver->device_get(&device->handle, device->ordinal), "cuDeviceGet", of);
    bsi_check(c, driver, driver->device_name(device->facts.name, (int)sizeof device->facts.name, device->handle),
              "cuDeviceGetName", of);
    device->facts.name[sizeof device->facts.name - 1] = 0;
    device->facts.sm_count = bsi_attribute_of(c, device, BSI_SM_COUNT);
    device->facts.major = bsi_attribute_of(c, device, BSI_MAJOR);
    device->facts.minor = bsi_attribute_of(c, device, BSI_MINOR);
    device->facts.shared_limit = bsi_attribute_of(c, device, BSI_SHARED_LIMIT);
    bsi_check(c, driver, driver->context_retain(&device->context, device->handle), "cuDevicePrimaryCtxRetain", of);
}

/* Loaded kernels, with the primary context of the device current */

static void bsi_refuse_capture(bsi_context *c, bs_device *device, void *stream, const char *kernel) {
    int capturing = 0, status = device->driver.is_capturing(stream, &capturing);
    if (capturing || (status >= BSI_CAPTURE_FIRST && status <= BSI_CAPTURE_LAST))
        bsi_fail(c, BS_ERROR_CAPTURE, "%s is not loaded yet and the stream is being captured; make a plan of it before",
                 kernel);
    bsi_check(c, &device->driver, status, "cuStreamIsCapturing", kernel);
}

static void bsi_check_parameters(bsi_context *c, bs_device *device, void *kernel, const bsi_artifact *a) {
    size_t first = 0, offset = 0, size = 0, i;
    int status;
    for (i = 0; i <= a->parameter_count; i++) {
        status = device->driver.kernel_parameter(kernel, i, &offset, &size);
        if (status == BSI_INVALID_VALUE && i == a->parameter_count) return; /* one past the last */
        if (status != BSI_INVALID_VALUE) bsi_check(c, &device->driver, status, "cuKernelGetParamInfo", a->symbol);
        if (i == 0) first = offset; /* where the driver's own bytes end */
        if (status || i == a->parameter_count || offset - first != a->parameters[i].offset ||
            size != a->parameters[i].size) break;
    }
    bsi_fail(c, BS_ERROR_PARAMETERS, "%s: parameter %zu of %s is not where the manifest says", a->file, i, a->symbol);
}

static void bsi_load(bsi_context *c, bs_device *device, const char *directory, const bsi_artifact *a,
                     bsi_function *function) {
    const bsi_driver *driver = &device->driver;
    const char *image = bsi_read_stored(c, directory, a->file, a->size, a->sha256);
    void *kernel = NULL;
    bsi_check(c, driver, driver->library_load(&function->library, image, NULL, NULL, 0, NULL, NULL, 0),
              "cuLibraryLoadData", a->file);
    bsi_check(c, driver, driver->library_kernel(&kernel, function->library, a->symbol), "cuLibraryGetKernel",
              a->symbol);
    bsi_check_parameters(c, device, kernel, a);
    if (a->shared)
        bsi_check(c, driver, driver->kernel_set(BSI_MAX_SHARED, (int)a->shared, kernel, device->handle),
                  "cuKernelSetAttribute", a->symbol);
    if (a->cluster[0] * a->cluster[1] * a->cluster[2] > 8)
        bsi_check(c, driver, driver->kernel_set(BSI_NON_PORTABLE, 1, kernel, device->handle),
                  "cuKernelSetAttribute", a->symbol);
    bsi_check(c, driver, driver->kernel_function(&function->handle, kernel), "cuKernelGetFunction", a->symbol);
}

static void *bsi_function_of(bsi_context *c, bs_device *device, const char *directory, const bsi_artifact *a,
                             void *stream) {
    bsi_function *function;
    for (function = device->functions; function; function = function->next)
        if (function->handle && !strcmp(function->sha256, a->sha256) && !strcmp(function->symbol, a->symbol))
            return function->handle;
    bsi_refuse_capture(c, device, stream, a->symbol);
    function = (bsi_function *)calloc(1, sizeof *function + strlen(a->symbol) + 1);
    if (!function) bsi_fail(c, BS_ERROR_MEMORY, "no memory for %s", a->symbol);
    function->symbol = (char *)(function + 1);
    memcpy(function->symbol, a->symbol, strlen(a->symbol) + 1);
    memcpy(function->sha256, a->sha256, sizeof function->sha256);
    function->next = device->functions;
    device->functions = function; /* from here the device frees it, whatever fails */
    bsi_load(c, device, directory, a, function);
    return function->handle;
}

void bs_device_close(bs_device *device) {
    void *context;
    if (!device) return;
    if (device->context) device->driver.context_push(device->context);
    while (device->functions) {
        bsi_function *function = device->functions;
        device->functions = function->next;
        if (function->library) device->driver.library_unload(function->library);
        free(function);
    }
    if (device->context) {
        device->driver.context_pop(&context);
        device->driver.context_release(device->handle);
    }
    free(device);
}

bs_code bs_device_open(int ordinal, bs_device **device, bs_error *error) {
    bsi_context c;
    bs_code code;
    bs_device *opened = (bs_device *)calloc(1, sizeof *opened);
    *device = NULL;
    if (!opened) {
        if (error) {
            error->code = BS_ERROR_MEMORY;
            snprintf(error->message, sizeof error->message, "no memory for a device");
        }
        return BS_ERROR_MEMORY;
    }
    opened->ordinal = ordinal;
    code = bsi_guarded(&c, bsi_open_device, opened, error);
    bsi_release(&c.arena);
    if (code == BS_OK) *device = opened;
    else bs_device_close(opened);
    return code;
}

#endif
