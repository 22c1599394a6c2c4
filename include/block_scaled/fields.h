/* Values of a document with their places in it: what is wrong is named by its path. */
#ifndef BLOCK_SCALED_FIELDS_H
#define BLOCK_SCALED_FIELDS_H

#include "json.h"

typedef struct bsi_at {
    bsi_context *c;
    const bsi_node *node;
    const struct bsi_at *outer; /* NULL of the document */
    const char *key;            /* NULL of an item of a list */
    uint32_t index;
} bsi_at;

static void bsi_say_path(bsi_text *text, const bsi_at *at) {
    if (!at->outer) return;
    bsi_say_path(text, at->outer);
    if (at->key) bsi_say(text, "%s%.80s", text->used ? "." : "", at->key);
    else bsi_say(text, "[%u]", at->index);
}

/* ``families.grouped_fp4.arguments[0].shape``; it stays until the next failure. */
static const char *bsi_path(const bsi_at *at) {
    bsi_start(&at->c->reason);
    bsi_say_path(&at->c->reason, at);
    return at->c->reason.used ? at->c->reason.at : "manifest";
}

__attribute__((noreturn)) static void bsi_wrong(const bsi_at *at, const char *expected) {
    static const char *const kinds[] = {"null", "false", "true", "", "an integer of over 64 bits", "", "", "a list",
                                        "an object"};
    const bsi_node *node = at->node;
    const char *path = bsi_path(at);
    bsi_context *c = at->c;
    if (node->type == BSI_TEXT)
        bsi_fail(c, BS_ERROR_MANIFEST, "%s: expected %s, got '%.80s'", path, expected, node->of.text);
    if (node->type == BSI_REAL)
        bsi_fail(c, BS_ERROR_MANIFEST, "%s: expected %s, got %.17g", path, expected, node->of.real);
    if (node->type == BSI_INTEGER)
        bsi_fail(c, BS_ERROR_MANIFEST, "%s: expected %s, got %s%llu", path, expected, node->negative ? "-" : "",
                 (unsigned long long)node->of.magnitude);
    bsi_fail(c, BS_ERROR_MANIFEST, "%s: expected %s, got %s", path, expected, kinds[node->type]);
}

static bsi_at bsi_inside(const bsi_at *outer, const bsi_node *node, const char *key, uint32_t index) {
    bsi_at at;
    at.c = outer->c;
    at.node = node;
    at.outer = outer;
    at.key = key;
    at.index = index;
    return at;
}

static const bsi_node *bsi_find(const bsi_node *object, const char *key) {
    uint32_t i;
    for (i = 0; i < object->count; i++)
        if (!strcmp(object->of.items[2 * i].of.text, key)) return &object->of.items[2 * i + 1];
    return NULL;
}

static int bsi_has(const bsi_at *object, const char *key) { return bsi_find(object->node, key) != NULL; }

/* A member of what has been found to be an object. */
static bsi_at bsi_key(const bsi_at *object, const char *key) {
    const bsi_node *found = bsi_find(object->node, key);
    if (!found) bsi_fail(object->c, BS_ERROR_MANIFEST, "%s: key '%s' is missing", bsi_path(object), key);
    return bsi_inside(object, found, key, 0);
}

static bsi_at bsi_member(const bsi_at *object, uint32_t index) {
    const bsi_node *key = &object->node->of.items[2 * index];
    return bsi_inside(object, key + 1, key->of.text, 0);
}

static bsi_at bsi_item(const bsi_at *list, uint32_t index) {
    return bsi_inside(list, &list->node->of.items[index], NULL, index);
}

static bsi_at bsi_object(const bsi_at *at) {
    if (at->node->type != BSI_OBJECT) bsi_wrong(at, "an object");
    return *at;
}

static bsi_at bsi_object_at(const bsi_at *object, const char *key) {
    bsi_at at = bsi_key(object, key);
    return bsi_object(&at);
}

static bsi_at bsi_list_at(const bsi_at *object, const char *key) {
    bsi_at at = bsi_key(object, key);
    if (at.node->type != BSI_LIST) bsi_wrong(&at, "a list");
    return at;
}

static int bsi_is_identifier(const char *text) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789";
    return *text && !(*text >= '0' && *text <= '9') && text[strspn(text, letters)] == 0;
}

static int bsi_is_variant(const char *text) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789.-";
    return *text && *text != '.' && *text != '-' && text[strspn(text, letters)] == 0;
}

static int bsi_is_any(const char *text) { return text != NULL; }

static const char *bsi_text_of(const bsi_at *at, int (*is)(const char *), const char *expected) {
    if (at->node->type != BSI_TEXT || !is(at->node->of.text)) bsi_wrong(at, expected);
    return at->node->of.text;
}

static const char *bsi_text_at(const bsi_at *object, const char *key, int (*is)(const char *), const char *expected) {
    bsi_at at = bsi_key(object, key);
    return bsi_text_of(&at, is, expected);
}

static const char *bsi_name_at(const bsi_at *object, const char *key) {
    return bsi_text_at(object, key, bsi_is_identifier, "a name");
}

static int64_t bsi_integer_of(const bsi_at *at, int64_t low, int64_t high) {
    const bsi_node *node = at->node;
    char expected[80];
    if (node->type == BSI_INTEGER && node->of.magnitude <= INT64_MAX) {
        int64_t value = node->negative ? -(int64_t)node->of.magnitude : (int64_t)node->of.magnitude;
        if (value >= low && value <= high) return value;
    }
    snprintf(expected, sizeof expected, "an integer in %lld .. %lld", (long long)low, (long long)high);
    bsi_wrong(at, expected);
}

static int64_t bsi_integer_at(const bsi_at *object, const char *key, int64_t low, int64_t high) {
    bsi_at at = bsi_key(object, key);
    return bsi_integer_of(&at, low, high);
}

static double bsi_real_of(const bsi_at *at) {
    const bsi_node *node = at->node;
    if (node->type == BSI_REAL && isfinite(node->of.real)) return node->of.real;
    if (node->type != BSI_INTEGER) bsi_wrong(at, "a number");
    return node->negative ? -(double)node->of.magnitude : (double)node->of.magnitude;
}

static int bsi_flag_at(const bsi_at *object, const char *key) {
    bsi_at at = bsi_key(object, key);
    if (at.node->type != BSI_TRUE && at.node->type != BSI_FALSE) bsi_wrong(&at, "true or false");
    return at.node->type == BSI_TRUE;
}

/* The index of a text among ``count`` words. */
static int bsi_choice_of(const bsi_at *at, const char *const *words, int count) {
    bsi_text expected;
    int i;
    for (i = 0; i < count; i++)
        if (at->node->type == BSI_TEXT && !strcmp(at->node->of.text, words[i])) return i;
    bsi_start(&expected);
    for (i = 0; i < count; i++) bsi_say(&expected, "%s%s", i ? ", " : "one of ", words[i]);
    bsi_wrong(at, expected.at);
}

static int bsi_choice_at(const bsi_at *object, const char *key, const char *const *words, int count) {
    bsi_at at = bsi_key(object, key);
    return bsi_choice_of(&at, words, count);
}

#endif
