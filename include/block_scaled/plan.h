/* A launch: geometry within what hardware takes, parameters packed, queued. */
#ifndef BLOCK_SCALED_PLAN_H
#define BLOCK_SCALED_PLAN_H

#include "driver.h"

/* One block of memory: behind it lie addresses, parameters and texts. */
struct bs_plan {
    bs_device *device;
    bs_launch_info info;
    void *function;
    bsi_config config;
    bsi_attribute attributes[2];
    unsigned char *parameters;
    void **addresses; /* of each parameter */
};

typedef struct bsi_evaluator {
    bsi_context *c;
    const bsi_problem *problem;
    const bsi_artifact *artifact;
} bsi_evaluator;

static bsi_number bsi_value(const bsi_evaluator *e, const bsi_expression *expression) {
    return bsi_evaluate(e->c, expression, e->problem->slots);
}

__attribute__((noreturn))
static void bsi_limit(const bsi_evaluator *e, const char *what, bsi_number got, const char *allowed) {
    bsi_text text;
    bsi_start(&text);
    bsi_say_number(&text, got);
    bsi_fail(e->c, BS_ERROR_LIMIT, "%s/%s: %s is %s, allowed is %s", e->problem->family->name, e->artifact->variant,
             what, text.at, allowed);
}

static void bsi_find_grid(const bsi_evaluator *e, uint32_t grid[3]) {
    static const int64_t limits[] = {INT32_MAX, 65535, 65535};
    char what[16], allowed[48];
    int axis;
    for (axis = 0; axis < 3; axis++) {
        bsi_number extent = bsi_value(e, e->artifact->grid[axis]);
        snprintf(what, sizeof what, "grid.%c", "xyz"[axis]);
        snprintf(allowed, sizeof allowed, "1 .. %lld", (long long)limits[axis]);
        if (!bsi_is_whole(extent, 1, limits[axis])) bsi_limit(e, what, extent, allowed);
        snprintf(allowed, sizeof allowed, "a multiple of the cluster's %u", e->artifact->cluster[axis]);
        if (extent.whole % e->artifact->cluster[axis]) bsi_limit(e, what, extent, allowed);
        grid[axis] = (uint32_t)extent.whole;
    }
}

/* Tensor maps */

typedef struct bsi_map {
    uint64_t dims[BSI_MAX_MAP_RANK], strides[BSI_MAX_MAP_RANK];
    uint32_t box[BSI_MAX_MAP_RANK];
} bsi_map;

static uint64_t bsi_map_entry(const bsi_evaluator *e, const bsi_parameter *p, const char *list, int axis,
                              const bsi_expression *entry, bsi_int highest, bsi_int multiple, const char *allowed) {
    bsi_number extent = bsi_value(e, entry);
    bsi_text what;
    if (bsi_is_whole(extent, 1, highest) && extent.whole % multiple == 0) return (uint64_t)extent.whole;
    bsi_start(&what);
    bsi_say(&what, "%s.%s[%d]", p->name, list, axis);
    bsi_limit(e, what.at, extent, allowed);
}

/* The conditions of cuTensorMapEncodeTiled, whose own answer is only "invalid value". */
static void bsi_find_map(const bsi_evaluator *e, const bsi_parameter *p, bsi_map *map) {
    static const uint32_t swizzles[] = {0, 32, 64, 128};
    int unpacks = p->element == BSI_UNPACKED, axis;
    uint32_t swizzle = swizzles[p->swizzle], bytes;
    char allowed[64];
    bsi_text what;
    for (axis = 0; axis < p->rank; axis++)
        map->dims[axis] = bsi_map_entry(e, p, "dims", axis, p->dims[axis], (bsi_int)1 << 32, 1, "1 .. 2^32");
    for (axis = 0; axis < p->rank - 1; axis++)
        map->strides[axis] = bsi_map_entry(e, p, "strides", axis, p->strides[axis], ((bsi_int)1 << 40) - 1,
                                           unpacks ? 32 : 16, unpacks ? "a multiple of 32 below 2^40"
                                                                      : "a multiple of 16 below 2^40");
    for (axis = 0; axis < p->rank; axis++)
        map->box[axis] = (uint32_t)bsi_map_entry(e, p, "box", axis, p->box[axis], 256, 1, "1 .. 256");
    if (unpacks && (map->dims[0] % 128 || map->box[0] != 128))
        bsi_fail(e->c, BS_ERROR_LIMIT, "%s/%s: %s: dims[0] and box[0] is (%llu, %u), allowed is a multiple of 128, "
                 "and 128", e->problem->family->name, e->artifact->variant, p->name, (unsigned long long)map->dims[0],
                 map->box[0]);
    bytes = map->box[0] * (uint32_t)bsi_element_bytes[p->element];
    if (bytes % 16 == 0 && (!swizzle || bytes <= swizzle)) return;
    bsi_start(&what);
    bsi_say(&what, "%s: bytes of box[0]", p->name);
    snprintf(allowed, sizeof allowed, swizzle ? "a multiple of 16, at most %u" : "a multiple of 16", swizzle);
    bsi_limit(e, what.at, bsi_whole(bytes), allowed);
}

static void bsi_encode(const bsi_evaluator *e, const bs_device *device, const bsi_parameter *p, uint64_t address,
                       unsigned char *to) {
    static const uint32_t steps[BSI_MAX_MAP_RANK] = {1, 1, 1, 1, 1};
    bsi_map map;
    memset(&map, 0, sizeof map);
    bsi_find_map(e, p, &map);
    bsi_check(e->c, &device->driver,
              device->driver.encode(to, bsi_element_number[p->element], (uint32_t)p->rank, address, map.dims,
                                    map.strides, map.box, steps, 0, p->swizzle, p->l2_promotion, 0),
              "cuTensorMapEncodeTiled", p->name);
}

/* Parameters */

static void bsi_pack_scalar(const bsi_evaluator *e, const bsi_parameter *p, unsigned char *to) {
    bsi_number value = bsi_value(e, p->value);
    bsi_text allowed;
    if (!bsi_fits(p->dtype, value)) {
        bsi_start(&allowed);
        bsi_say(&allowed, "what fits %s", bsi_scalars[p->dtype]);
        bsi_limit(e, p->name, value, allowed.at);
    }
    if (p->dtype == BSI_F32) {
        float number = (float)bsi_double(value);
        memcpy(to, &number, sizeof number);
    } else {
        int64_t number = (int64_t)value.whole;
        memcpy(to, &number, p->size); /* little-endian, as every host of CUDA is */
    }
}

static void bsi_pack(const bsi_evaluator *e, bs_plan *plan) {
    const bsi_artifact *a = e->artifact;
    uint32_t i;
    int maps;
    for (maps = 0; maps <= 1; maps++) /* scalars first: what is wrong with them costs no call of the driver */
        for (i = 0; i < a->parameter_count; i++) {
            const bsi_parameter *p = &a->parameters[i];
            unsigned char *to = plan->parameters + p->offset;
            const bs_value *buffer = p->kind == BSI_SCALAR ? NULL : e->problem->buffers[p->argument];
            uint64_t address = buffer ? buffer->address : 0;
            if ((p->kind == BSI_MAP) != maps) continue;
            plan->addresses[i] = to;
            if (p->kind == BSI_POINTER) memcpy(to, &address, sizeof address);
            else if (p->kind == BSI_SCALAR) bsi_pack_scalar(e, p, to);
            else bsi_encode(e, plan->device, p, address, to);
        }
}

static void bsi_describe(bs_plan *plan, const bsi_artifact *a) {
    bs_launch_info *info = &plan->info;
    bsi_config *config = &plan->config;
    memcpy(info->block, a->block, sizeof info->block);
    memcpy(info->cluster, a->cluster, sizeof info->cluster);
    info->shared_bytes = a->shared;
    info->programmatic = a->programmatic;
    info->parameters = plan->parameters;
    info->parameter_bytes = a->parameter_bytes;
    memcpy(config->grid, info->grid, sizeof config->grid);
    memcpy(config->block, info->block, sizeof config->block);
    config->shared = a->shared;
    config->attributes = plan->attributes;
    if (a->cluster[0] * a->cluster[1] * a->cluster[2] > 1) {
        bsi_attribute *attribute = &plan->attributes[config->attribute_count++];
        attribute->id = BSI_CLUSTER;
        memcpy(attribute->value, a->cluster, sizeof a->cluster);
    }
    if (a->programmatic) {
        bsi_attribute *attribute = &plan->attributes[config->attribute_count++];
        attribute->id = BSI_PROGRAMMATIC;
        attribute->value[0] = 1;
    }
}

/* Making a plan */

typedef struct bsi_call {
    const bs_pack *pack;
    bs_device *device;
    const char *kernel, *variant;
    const bs_value *values;
    int count;
    void *stream;
    bs_plan *plan;
    int entered; /* the context of the device is current */
} bsi_call;

/* The family that a call is of: one that overloads the name where an argument is given that it alone requires. */
static const bsi_family *bsi_called(bsi_context *c, const bsi_call *call) {
    const bs_pack *pack = call->pack;
    const bsi_family *base = call->kernel ? bsi_family_named(pack, call->kernel) : NULL;
    uint32_t i;
    int v;
    if (!base && call->kernel && pack->composites && bsi_find(pack->composites, call->kernel))
        bsi_fail(c, BS_ERROR_COMPOSITE, "%s runs several kernels; here they are called one by one", call->kernel);
    if (!base)
        bsi_fail(c, BS_ERROR_UNKNOWN_KERNEL, "no kernel '%.80s' in pack %s", call->kernel ? call->kernel : "",
                 pack->directory);
    for (i = 0; i < pack->family_count; i++) {
        const bsi_family *other = &pack->families[i];
        if (!other->overloads || strcmp(other->overloads, base->name)) continue;
        for (v = 0; v < call->count; v++) {
            const char *name = call->values[v].name ? call->values[v].name : "";
            int own = bsi_argument_named(other, name);
            if (own >= 0 && !other->arguments[own].optional && bsi_argument_named(base, name) < 0) return other;
        }
    }
    return base;
}

/* ``a``: NULL where there is nothing to compute. */
static bs_plan *bsi_new_plan(bsi_context *c, bsi_call *call, const char *kernel, const bsi_artifact *a) {
    size_t addresses = a ? a->parameter_count * sizeof(void *) : 0;
    size_t bytes = a ? a->parameter_bytes + (size_t)BSI_MAP_ALIGNMENT : 0;
    size_t name = strlen(kernel) + 1, variant = a ? strlen(a->variant) + 1 : 0;
    bs_plan *plan = (bs_plan *)calloc(1, sizeof *plan + addresses + bytes + name + variant);
    unsigned char *packed;
    if (!plan) bsi_fail(c, BS_ERROR_MEMORY, "no memory for a plan of %s", kernel);
    call->plan = plan; /* which bs_plan_make frees if something fails from here on */
    plan->device = call->device;
    plan->addresses = (void **)(plan + 1);
    packed = (unsigned char *)plan->addresses + addresses;
    plan->parameters = packed + (BSI_MAP_ALIGNMENT - (uintptr_t)packed % BSI_MAP_ALIGNMENT) % BSI_MAP_ALIGNMENT;
    plan->info.kernel = (char *)memcpy(packed + bytes, kernel, name);
    plan->info.variant = a ? (char *)memcpy(packed + bytes + name, a->variant, variant) : NULL;
    return plan;
}

static void bsi_make_plan(bsi_context *c, void *context) {
    bsi_call *call = (bsi_call *)context;
    bs_device *device = call->device;
    const bsi_family *family;
    bs_plan *plan;
    bsi_problem problem;
    bsi_selection selection;
    bsi_evaluator e;
    if (!call->pack || !device || call->count < 0 || (call->count && !call->values))
        bsi_fail(c, BS_ERROR_ARGUMENT, "a plan needs a pack, a device and the values of its call");
    family = bsi_called(c, call);
    bsi_check_call(c, family, call->values, call->count, device->facts.sm_count, &problem);
    if (family->skip && bsi_is_true(bsi_evaluate(c, family->skip, problem.slots))) {
        bsi_new_plan(c, call, family->name, NULL)->info.reason = "skipped";
        return;
    }
    selection = bsi_select(c, &problem, &device->facts, call->variant);
    plan = bsi_new_plan(c, call, family->name, selection.artifact);
    plan->info.arch = bsi_archs[selection.artifact->arch];
    plan->info.reason = selection.reason;
    e.c = c;
    e.problem = &problem;
    e.artifact = selection.artifact;
    bsi_use_axes(&problem, e.artifact);
    bsi_find_grid(&e, plan->info.grid);
    bsi_check(c, &device->driver, device->driver.context_push(device->context), "cuCtxPushCurrent", family->name);
    call->entered = 1;
    plan->function = bsi_function_of(c, device, call->pack->directory, e.artifact, call->stream);
    bsi_pack(&e, plan);
    bsi_describe(plan, e.artifact);
}

bs_code bs_plan_make(const bs_pack *pack, bs_device *device, const char *kernel, const char *variant,
                     const bs_value *values, int count, void *stream, bs_plan **plan, bs_error *error) {
    bsi_context c;
    bsi_call call;
    bs_code code;
    void *current;
    memset(&call, 0, sizeof call);
    call.pack = pack;
    call.device = device;
    call.kernel = kernel;
    call.variant = variant;
    call.values = values;
    call.count = count;
    call.stream = stream;
    code = bsi_guarded(&c, bsi_make_plan, &call, error);
    bsi_release(&c.arena);
    if (call.entered) device->driver.context_pop(&current);
    if (code != BS_OK) bs_plan_close(call.plan);
    *plan = code == BS_OK ? call.plan : NULL;
    return code;
}

const bs_launch_info *bs_plan_info(const bs_plan *plan) { return &plan->info; }

typedef struct bsi_launching {
    bs_plan *plan;
    void *stream;
} bsi_launching;

static void bsi_launch_plan(bsi_context *c, void *context) {
    bsi_launching *launching = (bsi_launching *)context;
    bs_plan *plan = launching->plan;
    const bsi_driver *driver;
    void *current;
    int status;
    if (!plan) bsi_fail(c, BS_ERROR_ARGUMENT, "there is no plan to launch");
    if (!plan->function) return; /* nothing to compute */
    driver = &plan->device->driver;
    plan->config.stream = launching->stream;
    bsi_check(c, driver, driver->context_push(plan->device->context), "cuCtxPushCurrent", plan->info.kernel);
    status = driver->launch(&plan->config, plan->function, plan->addresses, NULL);
    driver->context_pop(&current);
    bsi_check(c, driver, status, "cuLaunchKernelEx", plan->info.kernel);
}

bs_code bs_plan_launch(bs_plan *plan, void *stream, bs_error *error) {
    bsi_context c;
    bsi_launching launching;
    launching.plan = plan;
    launching.stream = stream;
    return bsi_guarded(&c, bsi_launch_plan, &launching, error);
}

void bs_plan_close(bs_plan *plan) { free(plan); }

bs_code bs_launch(const bs_pack *pack, bs_device *device, const char *kernel, const bs_value *values, int count,
                  void *stream, bs_error *error) {
    bs_plan *plan;
    bs_code code = bs_plan_make(pack, device, kernel, NULL, values, count, stream, &plan, error);
    if (code == BS_OK) code = bs_plan_launch(plan, stream, error);
    bs_plan_close(plan);
    return code;
}

#endif
