/* A call against its family: arguments by name, dtypes, shapes, dimensions, constraints, addresses. */
#ifndef BLOCK_SCALED_SIGNATURE_H
#define BLOCK_SCALED_SIGNATURE_H

#include "pack.h"

/* A checked call. ``slots`` has room for the axes of any variant. */
typedef struct bsi_problem {
    const bsi_family *family;
    const bs_value **buffers; /* NULL of an optional argument that is left out */
    int *dtypes;
    uint64_t *bytes;
    bsi_number *slots;
    int *order, ordered; /* slots in the order in which they got their values */
} bsi_problem;

bs_value bs_buffer(const char *name, bs_dtype dtype, uint64_t address, int rank, const int64_t *shape) {
    bs_value value;
    int axis;
    memset(&value, 0, sizeof value);
    value.name = name;
    value.kind = BS_KIND_BUFFER;
    value.dtype = dtype;
    value.address = address;
    value.rank = rank;
    for (axis = 0; axis < rank && axis < BS_MAX_RANK; axis++) value.shape[axis] = shape[axis];
    return value;
}

bs_value bs_integer(const char *name, int64_t number) {
    bs_value value = bs_buffer(name, BS_U8, 0, 0, NULL);
    value.kind = BS_KIND_INTEGER;
    value.integer = number;
    return value;
}

bs_value bs_real(const char *name, double number) {
    bs_value value = bs_buffer(name, BS_U8, 0, 0, NULL);
    value.kind = BS_KIND_REAL;
    value.real = number;
    return value;
}

bs_value bs_word(const char *name, const char *word) {
    bs_value value = bs_buffer(name, BS_U8, 0, 0, NULL);
    value.kind = BS_KIND_WORD;
    value.word = word;
    return value;
}

static void bsi_set(bsi_problem *p, int slot, bsi_number value) {
    p->slots[slot] = value;
    p->order[p->ordered++] = slot;
}

/* Names and what is given */

static void bsi_say_names(bsi_text *text, const bsi_family *family) {
    int i;
    for (i = 0; i < family->argument_count; i++) bsi_say(text, "%s%s", i ? ", " : "", family->arguments[i].name);
    for (i = 0; i < family->scalar_count; i++)
        bsi_say(text, "%s%s", i || family->argument_count ? ", " : "", family->scalars[i].name);
}

/* The value of each argument, then of each scalar; NULL where none is given. */
static const bs_value **bsi_in_order(bsi_context *c, const bsi_family *family, const bs_value *values, int count) {
    int total = family->argument_count + family->scalar_count, i, missing = 0;
    const bs_value **given = BSI_NEW(c, const bs_value *, (size_t)total);
    bsi_text text;
    bsi_start(&text);
    for (i = 0; i < count; i++) {
        const char *name = values[i].name ? values[i].name : "";
        int at = bsi_argument_named(family, name);
        if (at < 0 && (at = bsi_scalar_named(family, name)) >= 0) at += family->argument_count;
        if ((unsigned)values[i].kind > BS_KIND_WORD)
            bsi_fail(c, BS_ERROR_ARGUMENT, "%s: %.80s is of kind %d, which is none", family->name, name,
                     (int)values[i].kind);
        if (at < 0) {
            bsi_say_names(&text, family);
            bsi_fail(c, BS_ERROR_ARGUMENT, "%s has no argument '%.80s'; it takes %s", family->name, name, text.at);
        }
        if (given[at]) bsi_fail(c, BS_ERROR_ARGUMENT, "%s: %s is given twice", family->name, name);
        given[at] = &values[i];
    }
    for (i = 0; i < total; i++) {
        int argument = i < family->argument_count;
        const bsi_scalar *scalar = argument ? NULL : &family->scalars[i - family->argument_count];
        if (given[i] || (argument ? family->arguments[i].optional : scalar->has_default)) continue;
        bsi_say(&text, "%s%s", missing++ ? ", " : "", argument ? family->arguments[i].name : scalar->name);
    }
    if (missing) bsi_fail(c, BS_ERROR_ARGUMENT, "%s: missing %s", family->name, text.at);
    return given;
}

/* Buffers */

static int bsi_is_byte(int dtype) { return dtype <= BS_U8; }

/* Plain bytes stand for any type of a byte, and E4M3 for scales without a sign, where one of these is taken. */
static int bsi_dtype_of(bsi_context *c, const bsi_family *family, const bsi_argument *argument, const bs_value *value) {
    int i, found = -1, fitting = 0, got = (int)value->dtype;
    bsi_text expected;
    if (got < 0 || got >= BSI_DTYPES)
        bsi_fail(c, BS_ERROR_DTYPE, "%s: %s has dtype number %d, which is none", family->name, argument->name, got);
    bsi_start(&expected);
    for (i = 0; i < argument->dtype_count; i++) {
        int taken = (int)argument->dtypes[i];
        int fits = taken == got || (got == BS_U8 && bsi_is_byte(taken)) || (got == BS_E4M3 && taken == BS_UE4M3);
        bsi_say(&expected, "%s%s", i ? " or " : "", bsi_dtypes[taken]);
        if (fits && taken == got && got != BS_U8 && got != BS_E4M3) return taken;
        if (fits) found = taken;
        fitting += fits;
    }
    if (fitting == 1) return found;
    bsi_fail(c, BS_ERROR_DTYPE, "%s: %s expects %s, got %s", family->name, argument->name, expected.at,
             bsi_dtypes[got]);
}

static void bsi_say_shape(bsi_text *text, const bsi_argument *argument) {
    int axis;
    bsi_say(text, "[");
    for (axis = 0; axis < argument->rank; axis++) {
        bsi_say(text, axis ? ", " : "");
        bsi_say_expression(text, argument->shape[axis]);
    }
    bsi_say(text, "]");
}

static void bsi_check_buffer(bsi_context *c, bsi_problem *p, int index) {
    const bsi_argument *argument = &p->family->arguments[index];
    const bs_value *value = p->buffers[index];
    bsi_uint bytes;
    int axis;
    if (value->kind != BS_KIND_BUFFER)
        bsi_fail(c, BS_ERROR_ARGUMENT, "%s: %s expects a buffer, got a %s", p->family->name, argument->name,
                 value->kind == BS_KIND_WORD ? "word" : "number");
    p->dtypes[index] = bsi_dtype_of(c, p->family, argument, value);
    if (value->rank != argument->rank) {
        bsi_text shape;
        bsi_start(&shape);
        bsi_say_shape(&shape, argument);
        bsi_fail(c, BS_ERROR_SHAPE, "%s: %s expects %d dimensions %s, got %d", p->family->name, argument->name,
                 argument->rank, shape.at, value->rank);
    }
    bytes = (bsi_uint)bsi_dtype_bytes[p->dtypes[index]];
    for (axis = 0; axis < value->rank; axis++) {
        if (value->shape[axis] < 0)
            bsi_fail(c, BS_ERROR_SHAPE, "%s: %s dimension %d is %lld", p->family->name, argument->name, axis,
                     (long long)value->shape[axis]);
        bytes *= (bsi_uint)value->shape[axis];
        if (bytes >> 64)
            bsi_fail(c, BS_ERROR_SHAPE, "%s: %s has over 2^64 bytes", p->family->name, argument->name);
    }
    p->bytes[index] = (uint64_t)bytes;
}

/* Scalars */

static bsi_number bsi_scalar_value(bsi_context *c, const bsi_family *family, const bsi_scalar *scalar,
                                   const bs_value *value) {
    static const char *const kinds[] = {"a buffer", "int", "float", "a word"};
    bsi_number number;
    bsi_text text;
    uint32_t i;
    if (!value) return scalar->value;
    bsi_start(&text);
    if (scalar->choice_count) {
        for (i = 0; i < scalar->choice_count; i++) {
            if (value->kind == BS_KIND_WORD && value->word && !strcmp(value->word, scalar->choices[i]))
                return bsi_whole(i);
            bsi_say(&text, "%s'%s'", i ? " or " : "", scalar->choices[i]);
        }
        if (value->kind == BS_KIND_WORD)
            bsi_fail(c, BS_ERROR_SCALAR, "%s: %s expects %s, got '%.80s'", family->name, scalar->name, text.at,
                     value->word ? value->word : "");
        bsi_fail(c, BS_ERROR_SCALAR, "%s: %s expects %s, got %s", family->name, scalar->name, text.at,
                 kinds[value->kind]);
    }
    if (value->kind != BS_KIND_INTEGER && (value->kind != BS_KIND_REAL || scalar->dtype != BSI_F32))
        bsi_fail(c, BS_ERROR_SCALAR, "%s: %s expects a number of type %s, got %s", family->name, scalar->name,
                 bsi_scalars[scalar->dtype], kinds[value->kind]);
    number = value->kind == BS_KIND_REAL ? bsi_float(value->real) : bsi_whole(value->integer);
    if (scalar->dtype == BSI_F32) number = bsi_float(bsi_double(number));
    if (bsi_fits(scalar->dtype, number)) return number;
    bsi_say_number(&text, number);
    bsi_fail(c, BS_ERROR_SCALAR, "%s: %s = %s does not fit %s", family->name, scalar->name, text.at,
             bsi_scalars[scalar->dtype]);
}

/* Dimensions */

static void bsi_say_known(bsi_text *text, const bsi_problem *p) {
    int i;
    for (i = 0; i < p->ordered; i++) {
        bsi_say(text, "%s%s = ", i ? ", " : " (with ", p->family->names[p->order[i]]);
        bsi_say_number(text, p->slots[p->order[i]]);
    }
    if (p->ordered) bsi_say(text, ")");
}

/* The constraints on the dimensions of a shape entry, as the end of a message. */
static void bsi_say_requirements(bsi_text *text, const bsi_family *family, const bsi_expression *entry) {
    uint32_t i;
    int slot, said = 0;
    for (i = 0; i < family->constraint_count; i++) {
        for (slot = 0; slot < family->problem_count; slot++)
            if (bsi_uses(entry, slot) && bsi_uses(family->constraints[i].expression, slot)) break;
        if (slot < family->problem_count)
            bsi_say(text, "%s%s", said++ ? ", " : "; it requires ", family->constraints[i].text);
    }
}

__attribute__((noreturn))
static void bsi_no_extent(bsi_context *c, const bsi_problem *p, const bsi_argument *argument, int axis,
                          const char *what) {
    bsi_text entry, known;
    bsi_start(&entry);
    bsi_start(&known);
    bsi_say_expression(&entry, argument->shape[axis]);
    bsi_say_known(&known, p);
    bsi_say_requirements(&known, p->family, argument->shape[axis]);
    bsi_fail(c, BS_ERROR_SHAPE, "%s: %s dimension %d (%s) %s: %s%s", p->family->name, argument->name, axis, entry.at,
             what, c->reason.at, known.at);
}

__attribute__((noreturn))
static void bsi_wrong_extent(bsi_context *c, const bsi_problem *p, const bsi_argument *argument, int axis,
                             const char *expected, int64_t got) {
    bsi_text entry, known;
    bsi_start(&entry);
    bsi_start(&known);
    bsi_say_expression(&entry, argument->shape[axis]);
    bsi_say_known(&known, p);
    bsi_fail(c, BS_ERROR_SHAPE, "%s: %s dimension %d (%s) expects %s, got %lld%s", p->family->name, argument->name,
             axis, entry.at, expected, (long long)got, known.at);
}

/* One shape entry, of which at most the name in ``slot`` has no value yet: it gives it, or is compared. */
static void bsi_step(bsi_context *c, bsi_problem *p, const bsi_argument *argument, int axis, int64_t size, int slot) {
    const bsi_expression *entry = argument->shape[axis];
    bsi_number value;
    bsi_text text;
    bsi_start(&text);
    if (slot < 0) {
        if (!bsi_compute(c, entry, p->slots, &value)) bsi_no_extent(c, p, argument, axis, "has no size");
        if (bsi_compare(value, bsi_whole(size)) == 0) return;
        bsi_say_number(&text, value);
    } else {
        const char *name = p->family->names[slot];
        if (!bsi_solve(c, entry, slot, name, bsi_whole(size), p->slots, &value)) {
            char what[48];
            snprintf(what, sizeof what, "cannot be %lld", (long long)size);
            bsi_no_extent(c, p, argument, axis, what);
        }
        bsi_set(p, slot, value);
        if (bsi_double(value) >= 0) return;
        bsi_say(&text, "a size that gives %s >= 0", name);
    }
    bsi_wrong_extent(c, p, argument, axis, text.at, size);
}

/* Every dimension: each from the first shape entry from which it follows, every other entry checked against it. What
 * the arguments that are left out would give is 0. */
static void bsi_solve_shapes(bsi_context *c, bsi_problem *p) {
    const bsi_family *family = p->family;
    unsigned char *given = BSI_NEW(c, unsigned char, (size_t)family->name_count), (*done)[BS_MAX_RANK];
    int i, axis, slot, left = 0, before = -1;
    done = (unsigned char (*)[BS_MAX_RANK])bsi_allocate(c, (size_t)family->argument_count, sizeof *done);
    memset(given, 1, (size_t)family->scalar_count);
    do {
        if (before >= 0 && left == before)
            bsi_fail(c, BS_ERROR_MANIFEST, "%s: no shape of this call gives some dimension", family->name);
        for (i = 0, before = left = 0; i < family->argument_count; i++)
            for (axis = 0; p->buffers[i] && axis < p->buffers[i]->rank; axis++) {
                int several = 0;
                if (done[i][axis]) continue;
                before++;
                slot = bsi_unknown(family->arguments[i].shape[axis], given, &several);
                if (slot >= 0 && (several || !bsi_solvable(family->arguments[i].shape[axis], slot))) {
                    left++;
                    continue;
                }
                bsi_step(c, p, &family->arguments[i], axis, p->buffers[i]->shape[axis], slot);
                done[i][axis] = 1;
                if (slot >= 0) given[slot] = 1;
            }
    } while (left);
    for (slot = family->sm_count + 1; slot < family->problem_count; slot++)
        if (!given[slot]) p->slots[slot] = bsi_whole(0);
}

/* Constraints and addresses */

static void bsi_check_constraints(bsi_context *c, const bsi_problem *p) {
    const bsi_family *family = p->family;
    uint32_t i;
    int slot, used = 0, at;
    const char **names;
    bsi_text text;
    for (i = 0; i < family->constraint_count; i++)
        if (!bsi_is_true(bsi_evaluate(c, family->constraints[i].expression, p->slots))) break;
    if (i == family->constraint_count) return;
    names = BSI_NEW(c, const char *, (size_t)family->problem_count);
    for (slot = 0; slot < family->problem_count; slot++)
        if (bsi_uses(family->constraints[i].expression, slot)) names[used++] = family->names[slot];
    qsort(names, (size_t)used, sizeof *names, bsi_by_text);
    bsi_start(&text);
    for (at = 0; at < used; at++) {
        bsi_say(&text, "%s%s = ", at ? ", " : " (with ", names[at]);
        bsi_say_number(&text, p->slots[bsi_slot_of(family, names[at], 0, family->problem_count)]);
    }
    bsi_fail(c, BS_ERROR_CONSTRAINT, "%s: %s does not hold%s%s", family->name, family->constraints[i].text, text.at,
             used ? ")" : "");
}

static void bsi_check_addresses(bsi_context *c, const bsi_problem *p) {
    const bsi_family *family = p->family;
    int i, j;
    for (i = 0; i < family->argument_count; i++) {
        const bsi_argument *argument = &family->arguments[i];
        if (!p->bytes[i]) continue;
        if (!p->buffers[i]->address)
            bsi_fail(c, BS_ERROR_ADDRESS, "%s: %s has address 0", family->name, argument->name);
        if (p->buffers[i]->address % argument->alignment)
            bsi_fail(c, BS_ERROR_ADDRESS, "%s: %s must start at a multiple of %u bytes, got address 0x%llx",
                     family->name, argument->name, argument->alignment, (unsigned long long)p->buffers[i]->address);
    }
    for (i = 0; i < family->argument_count; i++)
        for (j = 0; j < family->argument_count; j++) {
            uint64_t one, other;
            if (i == j || !family->arguments[i].written || !p->bytes[i] || !p->bytes[j]) continue;
            one = p->buffers[i]->address;
            other = p->buffers[j]->address;
            if (one < other ? other - one < p->bytes[i] : one - other < p->bytes[j])
                bsi_fail(c, BS_ERROR_ADDRESS, "%s: %s is written and shares memory with %s", family->name,
                         family->arguments[i].name, family->arguments[j].name);
        }
}

static void bsi_check_call(bsi_context *c, const bsi_family *family, const bs_value *values, int count,
                           int64_t sm_count, bsi_problem *p) {
    const bs_value **given = bsi_in_order(c, family, values, count);
    int i;
    memset(p, 0, sizeof *p);
    p->family = family;
    p->buffers = given;
    p->dtypes = BSI_NEW(c, int, (size_t)family->argument_count);
    p->bytes = BSI_NEW(c, uint64_t, (size_t)family->argument_count);
    p->slots = BSI_NEW(c, bsi_number, (size_t)family->name_count + family->most_axes);
    p->order = BSI_NEW(c, int, (size_t)family->name_count);
    for (i = 0; i < family->argument_count; i++)
        if (given[i]) bsi_check_buffer(c, p, i);
    for (i = 0; i < family->scalar_count; i++)
        bsi_set(p, i, bsi_scalar_value(c, family, &family->scalars[i], given[family->argument_count + i]));
    bsi_solve_shapes(c, p);
    for (i = 0; i < family->argument_count; i++)
        p->slots[family->scalar_count + i] = bsi_whole(given[i] ? bsi_dtype_bytes[p->dtypes[i]] : 0);
    p->slots[family->sm_count] = bsi_whole(sm_count);
    bsi_check_constraints(c, p);
    bsi_check_addresses(c, p);
}

#endif
