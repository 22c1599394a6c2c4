/* JSON of an untrusted document, read in place: texts end in a zero in the buffer itself. */
#ifndef BLOCK_SCALED_JSON_H
#define BLOCK_SCALED_JSON_H

#include <locale.h>
#include <math.h>

#include "memory.h"

enum { BSI_MAX_NESTING = 128, BSI_MAX_MARKS = 2000000, BSI_MAX_NUMBER = 400 };

typedef enum bsi_type {
    BSI_NULL, BSI_FALSE, BSI_TRUE, BSI_INTEGER, BSI_LONG, BSI_REAL, BSI_TEXT, BSI_LIST, BSI_OBJECT
} bsi_type;

/* BSI_LONG is an integer of over 64 bits, which nothing takes. An object's items are keys and values in turn. */
typedef struct bsi_node {
    uint8_t type, negative;
    uint32_t count; /* of items, or of members */
    union {
        uint64_t magnitude;
        double real;
        const char *text;
        struct bsi_node *items;
    } of;
} bsi_node;

typedef struct bsi_reader {
    bsi_context *c;
    char *start, *at, *end;
    bsi_node *stack; /* items of the lists that are still open */
    size_t used, room;
} bsi_reader;

__attribute__((noreturn)) static void bsi_no_json(bsi_reader *r, const char *what) {
    bsi_fail(r->c, BS_ERROR_SYNTAX, "manifest.json is no JSON document: %s at byte %zu", what,
             (size_t)(r->at - r->start));
}

static void bsi_skip_space(bsi_reader *r) {
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\n' || *r->at == '\t' || *r->at == '\r')) r->at++;
}

static int bsi_next_is(bsi_reader *r, char expected) {
    bsi_skip_space(r);
    if (r->at == r->end || *r->at != expected) return 0;
    r->at++;
    return 1;
}

static unsigned bsi_hex4(bsi_reader *r) {
    unsigned value = 0;
    int i;
    for (i = 0; i < 4; i++, r->at++) {
        char digit = r->at < r->end ? *r->at : 0;
        if (digit >= '0' && digit <= '9') value = value * 16 + (unsigned)(digit - '0');
        else if ((digit | 32) >= 'a' && (digit | 32) <= 'f') value = value * 16 + (unsigned)((digit | 32) - 'a' + 10);
        else bsi_no_json(r, "a bad \\u escape");
    }
    return value;
}

/* An escaped character as UTF-8, which is never longer than its escape. */
static char *bsi_unescape(bsi_reader *r, char *to) {
    static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
    unsigned code;
    const char *known;
    char letter = r->at < r->end ? *r->at++ : 0;
    if (letter != 'u') {
        known = letter ? strchr(from, letter) : NULL;
        if (!known) bsi_no_json(r, "a bad escape");
        *to++ = into[known - from];
        return to;
    }
    code = bsi_hex4(r);
    if (code >= 0xd800 && code < 0xdc00 && r->end - r->at >= 2 && r->at[0] == '\\' && r->at[1] == 'u') {
        unsigned low;
        r->at += 2;
        low = bsi_hex4(r);
        if (low < 0xdc00 || low > 0xdfff) bsi_no_json(r, "half a character");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    if (code == 0 || (code >= 0xd800 && code <= 0xdfff)) bsi_no_json(r, "half a character");
    if (code < 0x80) {
        *to++ = (char)code;
    } else if (code < 0x800) {
        *to++ = (char)(0xc0 | code >> 6);
        *to++ = (char)(0x80 | (code & 63));
    } else {
        if (code < 0x10000) {
            *to++ = (char)(0xe0 | code >> 12);
        } else {
            *to++ = (char)(0xf0 | code >> 18);
            *to++ = (char)(0x80 | (code >> 12 & 63));
        }
        *to++ = (char)(0x80 | (code >> 6 & 63));
        *to++ = (char)(0x80 | (code & 63));
    }
    return to;
}

static void bsi_read_text(bsi_reader *r, bsi_node *node) {
    char *to;
    if (!bsi_next_is(r, '"')) bsi_no_json(r, "no text");
    node->type = BSI_TEXT;
    node->of.text = to = r->at;
    for (;;) {
        if (r->at == r->end) bsi_no_json(r, "a text without an end");
        if (*r->at == '"') break;
        if ((unsigned char)*r->at < ' ') bsi_no_json(r, "a control character in a text");
        if (*r->at == '\\') {
            r->at++;
            to = bsi_unescape(r, to);
        } else {
            *to++ = *r->at++;
        }
    }
    r->at++;
    *to = 0; /* at the latest where the closing quote was */
}

static int bsi_digits(bsi_reader *r) {
    char *start = r->at;
    while (r->at < r->end && *r->at >= '0' && *r->at <= '9') r->at++;
    if (r->at == start) bsi_no_json(r, "no number");
    return (int)(r->at - start < 64 ? r->at - start : 64);
}

/* strtod with the locale's decimal point in the place of JSON's. */
static double bsi_to_double(bsi_reader *r, const char *start, size_t size) {
    char text[BSI_MAX_NUMBER + 16];
    const char *point = localeconv()->decimal_point;
    size_t used = 0, i;
    if (strlen(point) > 8) bsi_no_json(r, "a number of a locale with a long decimal point");
    for (i = 0; i < size; i++) {
        if (start[i] == '.') {
            memcpy(text + used, point, strlen(point));
            used += strlen(point);
        } else {
            text[used++] = start[i];
        }
    }
    text[used] = 0;
    return strtod(text, NULL);
}

static void bsi_read_number(bsi_reader *r, bsi_node *node) {
    char *start = r->at, *digit;
    int count, real = 0;
    if (*r->at == '-') r->at++;
    digit = r->at;
    count = bsi_digits(r);
    if (count > 1 && *digit == '0') bsi_no_json(r, "a number that begins with 0");
    if (r->at < r->end && *r->at == '.') {
        real = 1;
        r->at++;
        bsi_digits(r);
    }
    if (r->at < r->end && (*r->at | 32) == 'e') {
        real = 1;
        r->at++;
        if (r->at < r->end && (*r->at == '+' || *r->at == '-')) r->at++;
        bsi_digits(r);
    }
    node->negative = *start == '-';
    if (r->at - start > BSI_MAX_NUMBER) bsi_no_json(r, "a number of too many digits");
    if (real) {
        node->type = BSI_REAL;
        node->of.real = bsi_to_double(r, start, (size_t)(r->at - start));
        return;
    }
    node->type = BSI_INTEGER;
    for (; digit < r->at; digit++) {
        uint64_t value = (uint64_t)(*digit - '0');
        if (node->of.magnitude > (UINT64_MAX - value) / 10) {
            node->type = BSI_LONG;
            return;
        }
        node->of.magnitude = node->of.magnitude * 10 + value;
    }
}

static bsi_node *bsi_push(bsi_reader *r, const bsi_node *node) {
    if (r->used == r->room) {
        bsi_node *larger = BSI_NEW(r->c, bsi_node, 2 * r->room + 256);
        if (r->used) memcpy(larger, r->stack, r->used * sizeof *larger);
        r->stack = larger;
        r->room = 2 * r->room + 256;
    }
    r->stack[r->used] = *node;
    return &r->stack[r->used++];
}

static int bsi_by_text(const void *one, const void *other) {
    return strcmp(*(const char *const *)one, *(const char *const *)other);
}

static void bsi_refuse_twice(bsi_reader *r, const bsi_node *object) {
    uint32_t i, count = object->count;
    const char **keys;
    bsi_arena before = r->c->arena; /* keys are needed here alone; a block that they take stays */
    if (count < 2) return;
    keys = BSI_NEW(r->c, const char *, count);
    for (i = 0; i < count; i++) keys[i] = object->of.items[2 * i].of.text;
    qsort(keys, count, sizeof *keys, bsi_by_text);
    for (i = 1; i < count; i++)
        if (!strcmp(keys[i - 1], keys[i]))
            bsi_fail(r->c, BS_ERROR_SYNTAX, "manifest.json is no JSON document: the key '%.80s' appears twice",
                     keys[i]);
    if (r->c->arena.blocks == before.blocks) r->c->arena = before;
}

static void bsi_read_value(bsi_reader *r, bsi_node *node, int depth);

/* What stands between brackets, or braces. */
static void bsi_read_items(bsi_reader *r, bsi_node *node, int depth) {
    size_t first = r->used;
    char closing = node->type == BSI_LIST ? ']' : '}';
    bsi_node item;
    if (depth == BSI_MAX_NESTING) bsi_no_json(r, "values too deep in each other");
    if (!bsi_next_is(r, closing)) {
        do {
            if (node->type == BSI_OBJECT) {
                memset(&item, 0, sizeof item);
                bsi_read_text(r, &item);
                bsi_push(r, &item);
                if (!bsi_next_is(r, ':')) bsi_no_json(r, "no colon");
            }
            bsi_read_value(r, &item, depth + 1);
            bsi_push(r, &item);
            node->count++;
        } while (bsi_next_is(r, ','));
        if (!bsi_next_is(r, closing)) bsi_no_json(r, "no end of a list or an object");
    }
    node->of.items = BSI_NEW(r->c, bsi_node, r->used - first);
    if (r->used > first) memcpy(node->of.items, r->stack + first, (r->used - first) * sizeof *r->stack);
    r->used = first;
    if (node->type == BSI_OBJECT) bsi_refuse_twice(r, node);
}

static void bsi_read_word(bsi_reader *r, const char *word) {
    size_t size = strlen(word);
    if ((size_t)(r->end - r->at) < size || memcmp(r->at, word, size)) bsi_no_json(r, "no value");
    r->at += size;
}

static void bsi_read_value(bsi_reader *r, bsi_node *node, int depth) {
    memset(node, 0, sizeof *node);
    bsi_skip_space(r);
    if (r->at == r->end) bsi_no_json(r, "no value");
    switch (*r->at) {
    case '"':
        bsi_read_text(r, node);
        return;
    case '[':
    case '{':
        node->type = *r->at++ == '[' ? BSI_LIST : BSI_OBJECT;
        bsi_read_items(r, node, depth);
        return;
    case 't':
        node->type = BSI_TRUE;
        bsi_read_word(r, "true");
        return;
    case 'f':
        node->type = BSI_FALSE;
        bsi_read_word(r, "false");
        return;
    case 'n':
        bsi_read_word(r, "null");
        return;
    default:
        if (*r->at != '-' && (*r->at < '0' || *r->at > '9')) bsi_no_json(r, "no value");
        bsi_read_number(r, node);
    }
}

/* What UTF-8 does not allow: pieces of characters, characters written longer than needed, surrogates. */
static void bsi_check_utf8(bsi_reader *r) {
    const unsigned char *data = (const unsigned char *)r->start;
    size_t size = (size_t)(r->end - r->start), at = 0;
    while (at < size) {
        unsigned char lead = data[at];
        int more = lead < 0x80 ? 0 : lead >= 0xc2 && lead < 0xe0 ? 1 : (lead & 0xf0) == 0xe0 ? 2 : lead >= 0xf0 &&
                   lead < 0xf5 ? 3 : -1, i;
        unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
        unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
        r->at = r->start + at++;
        if (more < 0 || size - at < (size_t)more) bsi_no_json(r, "no UTF-8");
        for (i = 0; i < more; i++, low = 0x80, high = 0xbf, at++)
            if (data[at] < low || data[at] > high) bsi_no_json(r, "no UTF-8");
    }
    r->at = r->start;
}

/* The document in ``data``, which is changed. */
static bsi_node bsi_parse(bsi_context *c, char *data, size_t size) {
    bsi_reader r;
    bsi_node node;
    size_t i, marks = 0;
    memset(&r, 0, sizeof r);
    r.c = c;
    r.start = r.at = data;
    r.end = data + size;
    for (i = 0; i < size; i++) marks += data[i] == ',' || data[i] == ':' || data[i] == '[' || data[i] == '{';
    if (marks > BSI_MAX_MARKS)
        bsi_fail(c, BS_ERROR_SYNTAX, "manifest.json: %zu values and keys, at most %d are read", marks, BSI_MAX_MARKS);
    bsi_check_utf8(&r);
    bsi_read_value(&r, &node, 0);
    bsi_skip_space(&r);
    if (r.at != r.end) bsi_no_json(&r, "more behind its end");
    return node;
}

#endif
