/* Launches the kernels of a pack from C11 or C++17. Needs libc, and at run time the CUDA driver: libcuda.so.1.
 *
 * In one source file, before every other #include:
 *
 *     #define BLOCK_SCALED_IMPLEMENTATION
 *     #include "block_scaled.h"
 *
 * and elsewhere the #include alone. Link with -ldl -lm. docs/c.md has an example, and what this does not do.
 *
 * A pack may be used by several threads at once; a device and its plans by one at a time.
 */
#ifndef BLOCK_SCALED_H
#define BLOCK_SCALED_H

#if defined(BLOCK_SCALED_IMPLEMENTATION) && !defined(_XOPEN_SOURCE) && !defined(_GNU_SOURCE)
#define _XOPEN_SOURCE 700 /* realpath */
#endif

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BS_MESSAGE_BYTES 1024
#define BS_MAX_RANK 8

typedef enum bs_code {
    BS_OK,
    BS_ERROR_MEMORY,           /* the host has no memory left */
    BS_ERROR_FILE,             /* a file of the pack is missing, cannot be read, or leads out of the pack */
    BS_ERROR_INTEGRITY,        /* a file's size or sha256 is not that of the manifest */
    BS_ERROR_SYNTAX,           /* the manifest is no JSON document */
    BS_ERROR_SCHEMA,           /* its schema or abi is none that this header reads */
    BS_ERROR_MANIFEST,         /* it says something that docs/manifest.md does not allow */
    BS_ERROR_EXPRESSION,       /* an expression of it has no value for this call */
    BS_ERROR_UNKNOWN_KERNEL,
    BS_ERROR_COMPOSITE,        /* the name is of a composite, which this header does not run */
    BS_ERROR_UNKNOWN_VARIANT,
    BS_ERROR_NO_KERNEL,        /* no variant runs this problem on this device */
    BS_ERROR_ARGUMENT,         /* an argument is missing, unknown, given twice, or of another kind */
    BS_ERROR_DTYPE,
    BS_ERROR_SHAPE,
    BS_ERROR_SCALAR,
    BS_ERROR_CONSTRAINT,       /* the problem breaks a rule of the kernel */
    BS_ERROR_ADDRESS,          /* an address is 0 or not aligned, or a result shares memory */
    BS_ERROR_LIMIT,            /* the launch exceeds what hardware takes */
    BS_ERROR_NO_DRIVER,        /* there is no CUDA driver, or one too old */
    BS_ERROR_CUDA,             /* a call of the driver failed */
    BS_ERROR_PARAMETERS,       /* the image takes other parameters than the manifest says */
    BS_ERROR_CAPTURE           /* a kernel would have to be loaded while a stream is being captured */
} bs_code;

/* What went wrong: one message, printable ASCII, that names the argument, what was expected and what came. */
typedef struct bs_error {
    bs_code code;
    char message[BS_MESSAGE_BYTES];
} bs_error;

/* Element types. BS_E2M1X2 is two FP4 values in a byte, and shapes count bytes. */
typedef enum bs_dtype {
    BS_E2M1X2, BS_UE4M3, BS_UE8M0, BS_E4M3, BS_U8, BS_I32, BS_I64, BS_F32, BS_F16, BS_BF16
} bs_dtype;

typedef enum bs_kind { BS_KIND_BUFFER, BS_KIND_INTEGER, BS_KIND_REAL, BS_KIND_WORD } bs_kind;

/* One argument of a call, by its name. Make them by the functions below. */
typedef struct bs_value {
    const char *name;
    bs_kind kind;
    bs_dtype dtype;             /* of a buffer, which is row major and contiguous */
    int rank;
    int64_t shape[BS_MAX_RANK]; /* elements as they are stored */
    uint64_t address;           /* a CUdeviceptr */
    int64_t integer;
    double real;
    const char *word;           /* for a scalar with choices */
} bs_value;

/* ``shape``: ``rank`` extents in elements, at most BS_MAX_RANK; it is copied. */
bs_value bs_buffer(const char *name, bs_dtype dtype, uint64_t address, int rank, const int64_t *shape);
bs_value bs_integer(const char *name, int64_t value);
bs_value bs_real(const char *name, double value);
bs_value bs_word(const char *name, const char *word);

typedef struct bs_pack bs_pack;
typedef struct bs_device bs_device;
typedef struct bs_plan bs_plan;

/* What a plan launches. Texts and parameters are the plan's own. */
typedef struct bs_launch_info {
    const char *kernel, *variant, *arch; /* variant and arch are NULL where there is nothing to compute */
    const char *reason;                  /* named, measured, nearest, far, estimated, only; "skipped" */
    uint32_t grid[3], block[3], cluster[3];
    uint32_t shared_bytes;               /* dynamic, of a CTA */
    int programmatic;                    /* programmatic dependent launch */
    const void *parameters;              /* as the kernel gets them, at a multiple of 64 */
    size_t parameter_bytes;
} bs_launch_info;

/* Every function below returns BS_OK or what it wrote into ``error``, which may be NULL. */

/* Read and check the manifest of the pack in a directory. Its signature is not looked at. */
bs_code bs_pack_open(const char *directory, bs_pack **pack, bs_error *error);
void bs_pack_close(bs_pack *pack);

/* Open the driver at its first use, and retain the primary context of a device. */
bs_code bs_device_open(int ordinal, bs_device **device, bs_error *error);
/* Unload what was loaded on it. Its plans are closed before it; kernels in flight must be done. */
void bs_device_close(bs_device *device);

/* Check a call, select a variant, load it, and pack its parameters. ``variant``: NULL lets measurements choose.
 * ``stream`` only serves to refuse loading while it is being captured. The pack may be closed before the plan. */
bs_code bs_plan_make(const bs_pack *pack, bs_device *device, const char *kernel, const char *variant,
                     const bs_value *values, int count, void *stream, bs_plan **plan, bs_error *error);
const bs_launch_info *bs_plan_info(const bs_plan *plan);
/* Queue it on a stream (a CUstream); it copies nothing and waits for nothing. */
bs_code bs_plan_launch(bs_plan *plan, void *stream, bs_error *error);
void bs_plan_close(bs_plan *plan);

/* A plan made, launched and closed. */
bs_code bs_launch(const bs_pack *pack, bs_device *device, const char *kernel, const bs_value *values, int count,
                  void *stream, bs_error *error);

#ifdef __cplusplus
}
#endif
#endif

#if defined(BLOCK_SCALED_IMPLEMENTATION) && !defined(BLOCK_SCALED_IMPLEMENTED)
#define BLOCK_SCALED_IMPLEMENTED
#ifdef __cplusplus
extern "C" {
#endif
#include "block_scaled/plan.h"
#ifdef __cplusplus
}
#endif
#endif
