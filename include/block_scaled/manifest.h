/* What a manifest says (docs/manifest.md), as far as a launch needs it, checked when the pack is opened. */
#ifndef BLOCK_SCALED_MANIFEST_H
#define BLOCK_SCALED_MANIFEST_H

#include "expression.h"
#include "files.h"

enum {
    BSI_MAX_MANIFEST = 24 << 20, BSI_MAX_FILE = 64 << 20, BSI_MAX_ARGUMENTS = 100,
    BSI_MAX_MAP_RANK = 5, BSI_MAP_BYTES = 128, BSI_MAP_ALIGNMENT = 64, BSI_SCHEMA = 5, BSI_ABI = 1
};

enum { BSI_DTYPES = 10 };
static const char *const bsi_dtypes[BSI_DTYPES] = {"e2m1x2", "ue4m3", "ue8m0", "e4m3", "u8", "i32", "i64", "f32",
                                                   "f16", "bf16"}; /* as bs_dtype */
static const int bsi_dtype_bytes[BSI_DTYPES] = {1, 1, 1, 1, 1, 4, 8, 4, 2, 2};

enum { BSI_I32, BSI_I64, BSI_U32, BSI_F32, BSI_SCALARS };
static const char *const bsi_scalars[BSI_SCALARS] = {"i32", "i64", "u32", "f32"};
static const uint32_t bsi_scalar_bytes[BSI_SCALARS] = {4, 8, 4, 4};

/* "a" runs on that compute capability, "f" on it and on higher minor ones of the same major. */
typedef struct bsi_arch { int major, minor, specific; } bsi_arch;
enum { BSI_ARCHS = 7 };
static const char *const bsi_archs[BSI_ARCHS] = {"90a", "100a", "103a", "100f", "120a", "121a", "120f"};
static const bsi_arch bsi_arch_of[BSI_ARCHS] = {{9, 0, 1}, {10, 0, 1}, {10, 3, 1}, {10, 0, 0}, {12, 0, 1}, {12, 1, 1},
                                                {12, 0, 0}};

/* Elements of a tensor map: their number in cuda.h, and bytes in shared memory. */
enum { BSI_ELEMENTS = 8, BSI_UNPACKED = 7 };
static const char *const bsi_elements[BSI_ELEMENTS] = {"u8", "u16", "u32", "f32", "tf32", "bf16", "f16",
                                                       "u4_align16"};
static const int bsi_element_number[BSI_ELEMENTS] = {0, 1, 2, 7, 11, 9, 6, 14};
static const int bsi_element_bytes[BSI_ELEMENTS] = {1, 2, 4, 4, 4, 2, 2, 1};

typedef struct bsi_argument {
    const char *name;
    int written, optional, rank;
    int dtype_count;
    bs_dtype dtypes[BSI_DTYPES];
    const bsi_expression *shape[BS_MAX_RANK];
    uint32_t alignment;
} bsi_argument;

typedef struct bsi_scalar {
    const char *name;
    int dtype, has_default;
    bsi_number value; /* the default */
    uint32_t choice_count;
    const char **choices;
} bsi_scalar;

typedef struct bsi_rule {
    const char *text;
    const bsi_expression *expression;
} bsi_rule;

typedef struct bsi_row {
    int arch;
    const char *device;
    double *features;
    uint32_t count;
    const char **tiles;
    double *microseconds;
} bsi_row;

typedef struct bsi_match {
    const char *axis;
    int argument;
} bsi_match;

typedef enum bsi_parameter_kind { BSI_POINTER, BSI_SCALAR, BSI_MAP } bsi_parameter_kind;

typedef struct bsi_parameter {
    bsi_parameter_kind kind;
    const char *name;
    uint32_t offset, size;
    int argument;
    int dtype;
    const bsi_expression *value;
    int element, rank, swizzle, l2_promotion; /* the last two as numbers of cuda.h */
    const bsi_expression *dims[BSI_MAX_MAP_RANK], *strides[BSI_MAX_MAP_RANK], *box[BSI_MAX_MAP_RANK];
} bsi_parameter;

typedef struct bsi_artifact {
    const char *variant, *tile, *symbol, *file, *sha256;
    int arch;
    size_t size;
    const bsi_node *axes;
    bsi_parameter *parameters;
    uint32_t parameter_count, parameter_bytes, static_shared, shared;
    uint32_t block[3], cluster[3];
    int programmatic;
    const bsi_expression *grid[3], *cost;
    bsi_rule *requirements;
    uint32_t requirement_count;
} bsi_artifact;

/* Numbers of a problem lie in slots: scalars, then sizeof_<argument>, sm_count, dimensions, and features; behind them
 * the axes of a variant. Whether a name of a shape is a dimension shows while shapes are read. */
typedef struct bsi_family {
    const char *name, *overloads;
    int argument_count, scalar_count, sm_count, problem_count, feature_count, name_count, name_room;
    bsi_argument *arguments;
    bsi_scalar *scalars;
    const char **names;
    uint32_t constraint_count, match_count, row_count, artifact_count, most_axes;
    bsi_rule *constraints;
    const bsi_expression *skip;
    bsi_match *matches;
    const bsi_expression **features;
    bsi_row *rows;
    bsi_artifact **artifacts;
} bsi_family;

struct bs_pack {
    bsi_arena arena;
    const char *directory;
    uint32_t family_count;
    bsi_family *families;
    const bsi_node *composites; /* NULL where there are none */
};

/* Names that a signature may not use: keywords of the loader's calls, and what the loader sets itself. */
static int bsi_is_reserved(const char *name) {
    static const char *const words[] = {"stream", "device", "variant", "packs", "trust", "workspace", "sm_count",
                                        "workspace_bytes"};
    size_t i;
    for (i = 0; i < sizeof words / sizeof *words; i++)
        if (!strcmp(name, words[i])) return 1;
    return !strncmp(name, "sizeof_", 7);
}

static int bsi_is_free_name(const char *name) { return bsi_is_identifier(name) && !bsi_is_reserved(name); }

/* Scopes */

/* ``axes``: NULL outside of a variant. */
typedef struct bsi_scope {
    bsi_family *family;
    const bsi_node *axes;
    int with_features;
} bsi_scope;

static int bsi_slot_of(const bsi_family *family, const char *name, int first, int end) {
    for (; first < end; first++)
        if (!strcmp(family->names[first], name)) return first;
    return -1;
}

/* Axes hide features, which hide numbers of the problem. */
static int bsi_known(bsi_context *c, void *context, const char *name) {
    const bsi_scope *scope = (const bsi_scope *)context;
    const bsi_family *family = scope->family;
    uint32_t i;
    int slot = -1;
    (void)c;
    for (i = 0; scope->axes && i < scope->axes->count; i++)
        if (scope->axes->of.items[2 * i + 1].type == BSI_INTEGER && !strcmp(scope->axes->of.items[2 * i].of.text, name))
            return family->name_count + (int)i;
    if (scope->with_features) slot = bsi_slot_of(family, name, family->problem_count, family->name_count);
    return slot >= 0 ? slot : bsi_slot_of(family, name, 0, family->problem_count);
}

static void bsi_add_name(bsi_family *family, const char *name) { family->names[family->name_count++] = name; }

/* In shapes a name that is no scalar is a dimension. */
static int bsi_declared(bsi_context *c, void *context, const char *name) {
    bsi_family *family = ((bsi_scope *)context)->family;
    int slot = bsi_slot_of(family, name, 0, family->name_count);
    (void)c;
    if (bsi_is_reserved(name)) return -1;
    if (slot >= 0) return slot;
    if (family->name_count == family->name_room) return -1; /* more than shapes have entries, which give one each */
    bsi_add_name(family, name);
    return family->name_count - 1;
}

static const bsi_expression *bsi_expression_at(const bsi_at *object, const char *key, bsi_scope *scope) {
    bsi_at at = bsi_key(object, key);
    return bsi_compile(&at, bsi_known, scope);
}

static bsi_rule *bsi_rules_at(const bsi_at *object, const char *key, bsi_scope *scope, uint32_t *count) {
    bsi_at list = bsi_list_at(object, key);
    bsi_rule *rules = BSI_NEW(object->c, bsi_rule, list.node->count);
    uint32_t i;
    for (i = 0; i < list.node->count; i++) {
        bsi_at at = bsi_item(&list, i), entry = bsi_object(&at);
        rules[i].text = bsi_text_at(&entry, "text", bsi_is_any, "text");
        rules[i].expression = bsi_expression_at(&entry, "expression", scope);
    }
    *count = list.node->count;
    return rules;
}

/* Signatures */

static int bsi_argument_named(const bsi_family *family, const char *name) {
    int i;
    for (i = 0; i < family->argument_count; i++)
        if (!strcmp(family->arguments[i].name, name)) return i;
    return -1;
}

static int bsi_scalar_named(const bsi_family *family, const char *name) {
    int i;
    for (i = 0; i < family->scalar_count; i++)
        if (!strcmp(family->scalars[i].name, name)) return i;
    return -1;
}

static void bsi_new_name(const bsi_at *entry, const bsi_family *family, const char *name) {
    if (bsi_argument_named(family, name) >= 0 || bsi_scalar_named(family, name) >= 0)
        bsi_fail(entry->c, BS_ERROR_MANIFEST, "%s: the name %.80s appears twice", bsi_path(entry), name);
}

static void bsi_read_argument(const bsi_at *entry, bsi_family *family) {
    static const char *const directions[] = {"in", "out", "inout"};
    bsi_argument *argument = &family->arguments[family->argument_count];
    bsi_at dtypes = bsi_list_at(entry, "dtypes");
    uint32_t i;
    argument->name = bsi_text_at(entry, "name", bsi_is_free_name, "a name that no signature has for itself");
    bsi_new_name(entry, family, argument->name);
    argument->written = bsi_choice_at(entry, "direction", directions, 3) != 0;
    if (!dtypes.node->count || dtypes.node->count > BSI_DTYPES) bsi_wrong(&dtypes, "one dtype or several");
    for (i = 0; i < dtypes.node->count; i++) {
        bsi_at at = bsi_item(&dtypes, i);
        argument->dtypes[argument->dtype_count++] = (bs_dtype)bsi_choice_of(&at, bsi_dtypes, BSI_DTYPES);
    }
    argument->alignment = (uint32_t)bsi_integer_at(entry, "alignment", 1, 4096);
    if (argument->alignment & (argument->alignment - 1))
        bsi_fail(entry->c, BS_ERROR_MANIFEST, "%s.alignment: expected a power of two, got %u", bsi_path(entry),
                 argument->alignment);
    argument->optional = bsi_has(entry, "optional") && bsi_flag_at(entry, "optional");
    argument->rank = (int)bsi_list_at(entry, "shape").node->count;
    if (argument->rank > BS_MAX_RANK) bsi_wrong(entry, "a shape of at most 8 dimensions");
    family->argument_count++;
}

static void bsi_read_shape(const bsi_at *entry, bsi_family *family, bsi_argument *argument) {
    bsi_scope scope = {0, 0, 0};
    bsi_at shape = bsi_list_at(entry, "shape");
    int axis;
    scope.family = family;
    for (axis = 0; axis < argument->rank; axis++) {
        bsi_at at = bsi_item(&shape, (uint32_t)axis);
        argument->shape[axis] = bsi_compile(&at, bsi_declared, &scope);
    }
}

/* Whether a number has a place in a scalar's type; an integer also fits f32. */
static int bsi_fits(int dtype, bsi_number n) {
    if (dtype == BSI_F32)
        return !isfinite(bsi_double(n)) ? n.kind == BSI_FLOAT : isfinite((double)(float)bsi_double(n));
    if (n.kind == BSI_FLOAT) return 0;
    if (dtype == BSI_U32) return n.whole >= 0 && n.whole <= (bsi_int)UINT32_MAX;
    return dtype == BSI_I32 ? n.whole >= INT32_MIN && n.whole <= INT32_MAX
                            : n.whole >= INT64_MIN && n.whole <= INT64_MAX;
}

static void bsi_read_scalar(const bsi_at *entry, bsi_family *family) {
    bsi_scalar *scalar = &family->scalars[family->scalar_count];
    uint32_t i;
    scalar->name = bsi_text_at(entry, "name", bsi_is_free_name, "a name that no signature has for itself");
    bsi_new_name(entry, family, scalar->name);
    scalar->dtype = bsi_choice_at(entry, "dtype", bsi_scalars, BSI_SCALARS);
    if (bsi_has(entry, "choices")) {
        bsi_at choices = bsi_list_at(entry, "choices");
        scalar->choice_count = choices.node->count;
        scalar->choices = BSI_NEW(entry->c, const char *, choices.node->count);
        for (i = 0; i < choices.node->count; i++) {
            bsi_at at = bsi_item(&choices, i);
            scalar->choices[i] = bsi_text_of(&at, bsi_is_any, "a word");
        }
    }
    if (bsi_has(entry, "default")) {
        bsi_at at = bsi_key(entry, "default");
        scalar->has_default = at.node->type != BSI_NULL;
        if (scalar->choice_count && scalar->has_default) {
            scalar->value = bsi_whole(bsi_choice_of(&at, scalar->choices, (int)scalar->choice_count));
        } else if (scalar->has_default) {
            double real = bsi_real_of(&at);
            scalar->value = at.node->type == BSI_REAL ? bsi_float(real) : bsi_whole(
                at.node->negative ? -(bsi_int)at.node->of.magnitude : (bsi_int)at.node->of.magnitude);
            if (!bsi_fits(scalar->dtype, scalar->value)) bsi_wrong(&at, "a value of its dtype");
        }
    }
    family->scalar_count++;
}

static void bsi_read_signature(const bsi_at *fields, bsi_family *family) {
    bsi_context *c = fields->c;
    bsi_at arguments = bsi_list_at(fields, "arguments"), scalars = bsi_list_at(fields, "scalars");
    uint32_t i;
    int a;
    if (arguments.node->count + (uint64_t)scalars.node->count > BSI_MAX_ARGUMENTS)
        bsi_fail(c, BS_ERROR_MANIFEST, "%s: expected at most %d arguments and scalars", bsi_path(fields),
                 BSI_MAX_ARGUMENTS);
    family->arguments = BSI_NEW(c, bsi_argument, arguments.node->count);
    family->scalars = BSI_NEW(c, bsi_scalar, scalars.node->count);
    family->name_room = (int)(arguments.node->count + scalars.node->count) + 1;
    for (i = 0; i < arguments.node->count; i++) {
        bsi_at at = bsi_item(&arguments, i), entry = bsi_object(&at);
        bsi_read_argument(&entry, family);
        family->name_room += family->arguments[i].rank;
    }
    family->names = BSI_NEW(c, const char *, (size_t)family->name_room);
    for (i = 0; i < scalars.node->count; i++) {
        bsi_at at = bsi_item(&scalars, i), entry = bsi_object(&at);
        bsi_read_scalar(&entry, family);
        bsi_add_name(family, family->scalars[i].name);
    }
    for (a = 0; a < family->argument_count; a++) {
        size_t size = strlen(family->arguments[a].name) + 8;
        char *name = BSI_NEW(c, char, size);
        snprintf(name, size, "sizeof_%s", family->arguments[a].name);
        bsi_add_name(family, name);
    }
    family->sm_count = family->name_count;
    bsi_add_name(family, "sm_count");
    for (i = 0; i < arguments.node->count; i++) {
        bsi_at entry = bsi_item(&arguments, i);
        bsi_read_shape(&entry, family, &family->arguments[i]);
    }
    family->problem_count = family->name_count;
}

/* Selection */

static double bsi_count_of(const bsi_at *at) {
    double value = bsi_real_of(at);
    if (value < 0) bsi_wrong(at, "a number that is not negative");
    return value;
}

static void bsi_read_row(const bsi_at *entry, const bsi_family *family, bsi_row *row) {
    bsi_at features = bsi_object_at(entry, "features"), times = bsi_object_at(entry, "microseconds");
    uint32_t i;
    int f;
    row->arch = bsi_choice_at(entry, "arch", bsi_archs, BSI_ARCHS);
    row->device = bsi_text_at(entry, "device", bsi_is_any, "text");
    row->features = BSI_NEW(entry->c, double, (size_t)family->feature_count);
    for (f = 0; f < family->feature_count; f++) {
        bsi_at at = bsi_key(&features, family->names[family->problem_count + f]);
        row->features[f] = bsi_count_of(&at);
    }
    row->count = times.node->count;
    row->tiles = BSI_NEW(entry->c, const char *, row->count);
    row->microseconds = BSI_NEW(entry->c, double, row->count);
    for (i = 0; i < row->count; i++) {
        bsi_at at = bsi_member(&times, i);
        row->tiles[i] = at.key;
        row->microseconds[i] = bsi_count_of(&at);
    }
}

static void bsi_read_selection(const bsi_at *fields, bsi_family *family, bsi_scope *scope) {
    bsi_context *c = fields->c;
    bsi_at select = bsi_object_at(fields, "select"), match = bsi_object_at(&select, "match"),
           features = bsi_object_at(&select, "features"), measured = bsi_list_at(&select, "measured");
    const char **names;
    uint32_t i;
    family->match_count = match.node->count;
    family->matches = BSI_NEW(c, bsi_match, match.node->count);
    for (i = 0; i < match.node->count; i++) {
        bsi_at at = bsi_member(&match, i);
        family->matches[i].axis = at.key;
        family->matches[i].argument = bsi_argument_named(family, bsi_text_of(&at, bsi_is_any, "an argument"));
        if (family->matches[i].argument < 0 || family->arguments[family->matches[i].argument].optional)
            bsi_wrong(&at, "the name of an argument that is not optional");
    }
    if (features.node->count > BSI_MAX_ARGUMENTS) bsi_wrong(&features, "at most 100 features");
    family->features = BSI_NEW(c, const bsi_expression *, features.node->count);
    for (i = 0; i < features.node->count; i++) {
        bsi_at at = bsi_member(&features, i);
        if (!bsi_is_free_name(at.key)) bsi_wrong(&at, "the name of a feature");
        family->features[i] = bsi_compile(&at, bsi_known, scope);
    }
    family->feature_count = (int)features.node->count;
    names = BSI_NEW(c, const char *, (size_t)(family->problem_count + family->feature_count));
    memcpy(names, family->names, (size_t)family->problem_count * sizeof *names);
    family->names = names;
    for (i = 0; i < features.node->count; i++) bsi_add_name(family, bsi_member(&features, i).key);
    family->row_count = measured.node->count;
    family->rows = BSI_NEW(c, bsi_row, measured.node->count);
    for (i = 0; i < measured.node->count; i++) {
        bsi_at at = bsi_item(&measured, i), entry = bsi_object(&at);
        bsi_read_row(&entry, family, &family->rows[i]);
    }
}

static void bsi_read_family(const bsi_at *fields, bsi_family *family) {
    bsi_scope scope = {0, 0, 0};
    scope.family = family;
    if (!bsi_is_identifier(fields->key)) bsi_wrong(fields, "the name of a family");
    family->name = fields->key;
    bsi_read_signature(fields, family);
    family->constraints = bsi_rules_at(fields, "constraints", &scope, &family->constraint_count);
    if (bsi_key(fields, "skip").node->type != BSI_NULL) family->skip = bsi_expression_at(fields, "skip", &scope);
    if (bsi_has(fields, "overloads")) family->overloads = bsi_name_at(fields, "overloads");
    bsi_read_selection(fields, family, &scope);
}

#endif
