/* One way out for every failure: bsi_fail writes the message and leaves bsi_guarded, whose caller frees the arena in
 * which all that was allocated lies. So no function between them looks at a status, and nothing leaks. */
#ifndef BLOCK_SCALED_MEMORY_H
#define BLOCK_SCALED_MEMORY_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A message that is put together; what is longer is cut off. */
typedef struct bsi_text {
    size_t used;
    char at[BS_MESSAGE_BYTES];
} bsi_text;

typedef union bsi_block {
    union bsi_block *next;
    long double alignment;
} bsi_block;

typedef struct bsi_arena {
    bsi_block *blocks;
    char *free;
    size_t left;
} bsi_arena;

typedef struct bsi_context {
    jmp_buf out;
    bs_error error;
    bsi_text reason; /* why an expression has no value */
    bsi_arena arena;
} bsi_context;

__attribute__((format(printf, 2, 3)))
static void bsi_say(bsi_text *text, const char *format, ...) {
    int wrote;
    size_t left = sizeof text->at - text->used;
    va_list arguments;
    va_start(arguments, format);
    wrote = vsnprintf(text->at + text->used, left, format, arguments);
    va_end(arguments);
    text->used += wrote < 0 ? 0 : (size_t)wrote < left ? (size_t)wrote : left - 1;
}

static void bsi_start(bsi_text *text) {
    text->used = 0;
    text->at[0] = 0;
}

static void bsi_release(bsi_arena *arena) {
    while (arena->blocks) {
        bsi_block *block = arena->blocks;
        arena->blocks = block->next;
        free(block);
    }
    memset(arena, 0, sizeof *arena);
}

/* Leave bsi_guarded. What a manifest or a caller said may hold anything, and is shown as printable ASCII. */
__attribute__((noreturn, format(printf, 3, 4)))
static void bsi_fail(bsi_context *c, bs_code code, const char *format, ...) {
    char *at;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(c->error.message, sizeof c->error.message, format, arguments);
    va_end(arguments);
    for (at = c->error.message; *at; at++)
        if ((*at < ' ' && *at != '\n') || *at > '~') *at = '?';
    c->error.code = code;
    longjmp(c->out, 1);
}

/* Run ``body`` until it returns or fails; its code, with the message in ``error``. */
static bs_code bsi_guarded(bsi_context *c, void (*body)(bsi_context *, void *), void *call, bs_error *error) {
    memset(c, 0, sizeof *c);
    if (setjmp(c->out) == 0) body(c, call);
    if (c->error.code != BS_OK) bsi_release(&c->arena);
    if (error) *error = c->error;
    return c->error.code;
}

/* ``count`` zeroed elements that live as long as the arena. */
static void *bsi_allocate(bsi_context *c, size_t count, size_t size) {
    bsi_arena *arena = &c->arena;
    size_t bytes, block;
    void *found;
    if (size && count > ((size_t)1 << 40) / size) bsi_fail(c, BS_ERROR_MEMORY, "no memory for %zu elements", count);
    bytes = (count * size + 15) / 16 * 16;
    if (bytes > arena->left) {
        bsi_block *head;
        block = bytes > (1u << 18) ? bytes : (1u << 18);
        head = (bsi_block *)malloc(sizeof *head + block);
        if (!head) bsi_fail(c, BS_ERROR_MEMORY, "no memory for %zu bytes", block);
        head->next = arena->blocks;
        arena->blocks = head;
        arena->free = (char *)(head + 1);
        arena->left = block;
    }
    found = arena->free;
    arena->free += bytes;
    arena->left -= bytes;
    return memset(found, 0, bytes);
}

#define BSI_NEW(c, type, count) ((type *)bsi_allocate((c), (count), sizeof(type)))

static char *bsi_copy(bsi_context *c, const char *text) {
    size_t size = strlen(text) + 1;
    return (char *)memcpy(bsi_allocate(c, size, 1), text, size);
}

#endif
