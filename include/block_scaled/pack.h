/* Artifacts of a manifest, and the pack as a whole. */
#ifndef BLOCK_SCALED_PACK_H
#define BLOCK_SCALED_PACK_H

#include "manifest.h"

static int bsi_is_sha256(const char *text) { return strlen(text) == 64 && strspn(text, "0123456789abcdef") == 64; }

/* A number of cuda.h for one of a few sizes in bytes. */
static int bsi_size_at(const bsi_at *object, const char *key, const int sizes[4]) {
    bsi_at at = bsi_key(object, key);
    int64_t value = bsi_integer_of(&at, 0, 256);
    int i;
    for (i = 0; i < 4; i++)
        if (sizes[i] == value) return i;
    bsi_wrong(&at, sizes[1] == 32 ? "one of 0, 32, 64, 128" : "one of 0, 64, 128, 256");
}

static void bsi_extents_at(const bsi_at *entry, const char *key, bsi_scope *scope, int rank,
                           const bsi_expression **to) {
    bsi_at list = bsi_list_at(entry, key);
    uint32_t i;
    if (list.node->count != (uint32_t)rank) bsi_wrong(&list, "1 to 5 dims, one stride fewer, as many box entries");
    for (i = 0; i < list.node->count; i++) {
        bsi_at at = bsi_item(&list, i);
        to[i] = bsi_compile(&at, bsi_known, scope);
    }
}

static void bsi_read_map(const bsi_at *entry, bsi_scope *scope, bsi_parameter *p) {
    static const int swizzles[] = {0, 32, 64, 128}, promotions[] = {0, 64, 128, 256};
    uint32_t rank = bsi_list_at(entry, "dims").node->count;
    p->element = bsi_choice_at(entry, "element", bsi_elements, BSI_ELEMENTS);
    p->rank = rank >= 1 && rank <= BSI_MAX_MAP_RANK ? (int)rank : 1; /* any other is refused here */
    bsi_extents_at(entry, "dims", scope, p->rank, p->dims);
    bsi_extents_at(entry, "strides", scope, p->rank - 1, p->strides);
    bsi_extents_at(entry, "box", scope, p->rank, p->box);
    p->swizzle = bsi_size_at(entry, "swizzle", swizzles);
    p->l2_promotion = bsi_size_at(entry, "l2_promotion", promotions);
}

/* ``end``: where the parameter before it ends. */
static void bsi_read_parameter(const bsi_at *entry, bsi_scope *scope, bsi_parameter *p, uint32_t *end) {
    static const char *const kinds[] = {"pointer", "scalar", "tensor_map"};
    uint32_t size = 8, alignment = 8;
    p->kind = (bsi_parameter_kind)bsi_choice_at(entry, "kind", kinds, 3);
    p->name = bsi_name_at(entry, "name");
    if (p->kind == BSI_SCALAR) {
        p->dtype = bsi_choice_at(entry, "dtype", bsi_scalars, BSI_SCALARS);
        p->value = bsi_expression_at(entry, "value", scope);
        size = alignment = bsi_scalar_bytes[p->dtype];
    } else {
        bsi_at at = bsi_key(entry, "argument");
        p->argument = bsi_argument_named(scope->family, bsi_text_of(&at, bsi_is_any, "the name of an argument"));
        if (p->argument < 0 || (p->kind == BSI_MAP && scope->family->arguments[p->argument].optional))
            bsi_wrong(&at, "the name of an argument");
    }
    if (p->kind == BSI_MAP) {
        bsi_read_map(entry, scope, p);
        size = BSI_MAP_BYTES;
        alignment = BSI_MAP_ALIGNMENT;
    }
    p->offset = (*end + alignment - 1) / alignment * alignment;
    p->size = size;
    *end = p->offset + size;
    if (bsi_integer_at(entry, "offset", 0, 1 << 16) != p->offset || bsi_integer_at(entry, "size", 1, 128) != size)
        bsi_fail(entry->c, BS_ERROR_MANIFEST, "%s: expected offset %u and size %u (C ABI)", bsi_path(entry), p->offset,
                 size);
}

static void bsi_read_parameters(const bsi_at *fields, bsi_scope *scope, bsi_artifact *a) {
    bsi_at list = bsi_list_at(fields, "parameters");
    uint32_t i, end = 0;
    a->parameter_count = list.node->count;
    a->parameters = BSI_NEW(fields->c, bsi_parameter, list.node->count);
    for (i = 0; i < list.node->count; i++) {
        bsi_at at = bsi_item(&list, i), entry = bsi_object(&at);
        bsi_read_parameter(&entry, scope, &a->parameters[i], &end);
    }
    a->parameter_bytes = end;
    bsi_integer_at(fields, "parameter_bytes", end, end);
}

static void bsi_triple_at(const bsi_at *launch, const char *key, int64_t high, uint32_t to[3]) {
    bsi_at list = bsi_list_at(launch, key);
    uint32_t i;
    if (list.node->count != 3) bsi_wrong(&list, "three integers");
    for (i = 0; i < 3; i++) {
        bsi_at at = bsi_item(&list, i);
        to[i] = (uint32_t)bsi_integer_of(&at, 1, high);
    }
}

static void bsi_read_launch(const bsi_at *launch, bsi_scope *scope, bsi_artifact *a) {
    bsi_at grid = bsi_list_at(launch, "grid");
    uint32_t i;
    if (grid.node->count != 3) bsi_wrong(&grid, "three expressions");
    for (i = 0; i < 3; i++) {
        bsi_at at = bsi_item(&grid, i);
        a->grid[i] = bsi_compile(&at, bsi_known, scope);
    }
    bsi_triple_at(launch, "block", 1024, a->block);
    bsi_triple_at(launch, "cluster", 16, a->cluster);
    if (a->block[0] * a->block[1] * a->block[2] > 1024)
        bsi_fail(launch->c, BS_ERROR_MANIFEST, "%s.block: expected at most 1024 threads", bsi_path(launch));
    a->shared = (uint32_t)bsi_integer_at(launch, "shared", 0, 1 << 20);
    a->programmatic = bsi_flag_at(launch, "pdl");
}

static void bsi_read_axes(const bsi_at *fields, bsi_family *family, bsi_artifact *a) {
    bsi_at axes = bsi_object_at(fields, "axes");
    uint32_t i;
    a->axes = axes.node;
    if (axes.node->count > BSI_MAX_ARGUMENTS) bsi_wrong(&axes, "at most 100 axes");
    if (axes.node->count > family->most_axes) family->most_axes = axes.node->count;
    for (i = 0; i < axes.node->count; i++) {
        bsi_at at = bsi_member(&axes, i);
        if (!bsi_is_identifier(at.key) || bsi_slot_of(family, at.key, 0, family->problem_count) >= 0)
            bsi_wrong(&at, "the name of an axis, which means nothing else");
        if (at.node->type != BSI_TEXT) bsi_integer_of(&at, -((int64_t)1 << 31), (int64_t)1 << 31);
    }
    for (i = 0; i < family->match_count; i++) bsi_key(&axes, family->matches[i].axis);
}

static void bsi_read_artifact(const bsi_at *fields, bsi_family *family, int schema, bsi_artifact *a) {
    static const char *const formats[] = {"cubin", "fatbin"};
    bsi_scope scope = {0, 0, 0};
    bsi_at launch = bsi_object_at(fields, "launch");
    scope.family = family;
    bsi_read_axes(fields, family, a);
    scope.axes = a->axes;
    a->variant = bsi_text_at(fields, "variant", bsi_is_variant, "the name of a variant");
    a->tile = bsi_text_at(fields, "tile", bsi_is_variant, "the name of a tile");
    a->symbol = bsi_name_at(fields, "symbol");
    a->arch = bsi_choice_at(fields, "arch", bsi_archs, BSI_ARCHS);
    a->file = bsi_text_at(fields, "file", bsi_is_relative, "a relative path inside the pack");
    a->sha256 = bsi_text_at(fields, "sha256", bsi_is_sha256, "64 hex digits");
    a->size = (size_t)bsi_integer_at(fields, "size", 1, BSI_MAX_FILE);
    bsi_choice_at(fields, "format", formats, 2);
    a->static_shared = (uint32_t)bsi_integer_at(fields, "static_shared", 0, (int64_t)1 << 31);
    bsi_read_parameters(fields, &scope, a);
    bsi_read_launch(&launch, &scope, a);
    if (schema >= 5) a->requirements = bsi_rules_at(fields, "requires", &scope, &a->requirement_count);
    scope.with_features = 1;
    if (bsi_key(fields, "cost").node->type != BSI_NULL) a->cost = bsi_expression_at(fields, "cost", &scope);
}

static int bsi_by_variant(const void *one, const void *other) {
    const bsi_artifact *a = *(const bsi_artifact *const *)one, *b = *(const bsi_artifact *const *)other;
    int order = strcmp(a->variant, b->variant);
    return order ? order : a->arch - b->arch;
}

static void bsi_refuse_double(bsi_context *c, const bsi_family *family) {
    bsi_artifact **sorted = BSI_NEW(c, bsi_artifact *, family->artifact_count);
    uint32_t i;
    if (!family->artifact_count) return;
    memcpy(sorted, family->artifacts, family->artifact_count * sizeof *sorted);
    qsort(sorted, family->artifact_count, sizeof *sorted, bsi_by_variant);
    for (i = 1; i < family->artifact_count; i++)
        if (!bsi_by_variant(&sorted[i - 1], &sorted[i]))
            bsi_fail(c, BS_ERROR_MANIFEST, "artifacts: %.80s/%.80s/%s appears twice", family->name, sorted[i]->variant,
                     bsi_archs[sorted[i]->arch]);
}

static bsi_family *bsi_family_named(const bs_pack *pack, const char *name) {
    uint32_t i;
    for (i = 0; i < pack->family_count; i++)
        if (!strcmp(pack->families[i].name, name)) return &pack->families[i];
    return NULL;
}

static bsi_family *bsi_family_at(const bsi_at *fields, const bs_pack *pack) {
    bsi_at at = bsi_key(fields, "family");
    bsi_family *family = bsi_family_named(pack, bsi_text_of(&at, bsi_is_any, "the name of a family"));
    if (!family) bsi_wrong(&at, "a family of this manifest");
    return family;
}

static void bsi_read_artifacts(const bsi_at *document, bs_pack *pack, int schema) {
    bsi_at list = bsi_list_at(document, "artifacts");
    bsi_artifact *artifacts = BSI_NEW(document->c, bsi_artifact, list.node->count);
    uint32_t i;
    for (i = 0; i < list.node->count; i++) {
        bsi_at at = bsi_item(&list, i), fields = bsi_object(&at);
        bsi_family *family = bsi_family_at(&fields, pack);
        bsi_read_artifact(&fields, family, schema, &artifacts[i]);
        family->artifact_count++;
    }
    for (i = 0; i < pack->family_count; i++) {
        pack->families[i].artifacts = BSI_NEW(document->c, bsi_artifact *, pack->families[i].artifact_count);
        pack->families[i].artifact_count = 0;
    }
    for (i = 0; i < list.node->count; i++) {
        bsi_at fields = bsi_item(&list, i);
        bsi_family *family = bsi_family_at(&fields, pack);
        family->artifacts[family->artifact_count++] = &artifacts[i];
    }
    for (i = 0; i < pack->family_count; i++) bsi_refuse_double(document->c, &pack->families[i]);
}

static int bsi_version_at(const bsi_at *document, const char *key, int newest) {
    bsi_at at = bsi_key(document, key);
    if (at.node->type != BSI_INTEGER || at.node->negative || !at.node->of.magnitude ||
        at.node->of.magnitude > (uint64_t)newest)
        bsi_fail(document->c, BS_ERROR_SCHEMA, "manifest.json: %s is none that is read here: 1 to %d", key, newest);
    return (int)at.node->of.magnitude;
}

typedef struct bsi_opening {
    const char *directory;
    bs_pack *pack;
} bsi_opening;

static void bsi_open_pack(bsi_context *c, void *call) {
    bsi_opening *opening = (bsi_opening *)call;
    bs_pack *pack = BSI_NEW(c, bs_pack, 1);
    size_t size;
    char *data;
    bsi_node *root;
    bsi_at top = {0, 0, 0, 0, 0}, document, families;
    uint32_t i;
    int schema;
    if (!opening->directory) bsi_fail(c, BS_ERROR_ARGUMENT, "a pack needs a directory");
    data = bsi_read_file(c, opening->directory, "manifest.json", BSI_MAX_MANIFEST, &size);
    root = BSI_NEW(c, bsi_node, 1);
    *root = bsi_parse(c, data, size);
    top.c = c;
    top.node = root;
    document = bsi_object(&top);
    schema = bsi_version_at(&document, "schema", BSI_SCHEMA);
    bsi_version_at(&document, "abi", BSI_ABI);
    pack->directory = bsi_copy(c, opening->directory);
    families = bsi_object_at(&document, "families");
    pack->family_count = families.node->count;
    pack->families = BSI_NEW(c, bsi_family, families.node->count);
    for (i = 0; i < families.node->count; i++) {
        bsi_at at = bsi_member(&families, i), fields = bsi_object(&at);
        bsi_read_family(&fields, &pack->families[i]);
    }
    if (schema >= 2) pack->composites = bsi_object_at(&document, "composites").node;
    bsi_read_artifacts(&document, pack, schema);
    pack->arena = c->arena;
    opening->pack = pack;
}

bs_code bs_pack_open(const char *directory, bs_pack **pack, bs_error *error) {
    bsi_context c;
    bsi_opening opening = {NULL, NULL};
    bs_code code;
    opening.directory = directory;
    code = bsi_guarded(&c, bsi_open_pack, &opening, error);
    *pack = code == BS_OK ? opening.pack : NULL;
    return code;
}

void bs_pack_close(bs_pack *pack) {
    bsi_arena arena;
    if (!pack) return;
    arena = pack->arena; /* in which the pack itself lies */
    bsi_release(&arena);
}

#endif
