/* Reads calls and makes them: "pack <directory>", or "call <device> <kernel> <variant or -> <stream> <values>" and that
 * many lines "buffer <name> <dtype number> <address> <rank> <extents>", "integer <name> <value>", "real <name> <value>"
 * or "word <name> <word>"; "nothing". Prints "ok <variant> <arch> <reason>", or "error <code> <message>", for each. */
#define BLOCK_SCALED_IMPLEMENTATION
#include "block_scaled.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_VALUES = 128, MAX_DEVICES = 16, MAX_LINE = 4096 };

static char names[MAX_VALUES][256], words[MAX_VALUES][256];

static bs_value read_value(int index) {
    char kind[16], number[64];
    char *name = names[index], *word = words[index];
    int64_t shape[BS_MAX_RANK] = {0}, whole;
    uint64_t address;
    int dtype, rank, axis;
    if (scanf("%15s %255s", kind, name) != 2) abort();
    if (!strcmp(kind, "buffer")) {
        if (scanf("%d %" SCNu64 " %d", &dtype, &address, &rank) != 3) abort();
        for (axis = 0; axis < rank; axis++)
            if (scanf("%" SCNd64, &shape[axis]) != 1) abort();
        return bs_buffer(name, (bs_dtype)dtype, address, rank, shape);
    }
    if (!strcmp(kind, "integer")) {
        if (scanf("%" SCNd64, &whole) != 1) abort();
        return bs_integer(name, whole);
    }
    if (!strcmp(kind, "real")) {
        if (scanf("%63s", number) != 1) abort();
        return bs_real(name, strtod(number, NULL));
    }
    if (scanf("%255s", word) != 1) abort();
    return bs_word(name, word);
}

static void print_outcome(const bs_error *error, const bs_launch_info *info) {
    const char *at;
    if (error->code == BS_OK) {
        printf("ok %s %s %s\n", info->variant ? info->variant : "-", info->arch ? info->arch : "-", info->reason);
        return;
    }
    printf("error %d ", error->code);
    for (at = error->message; *at; at++) fputc(*at == '\n' ? '\t' : *at, stdout);
    printf("\n");
}

/* Calls without what they are about. */
static void call_with_nothing(bs_pack *pack) {
    bs_pack *none;
    bs_plan *plan;
    bs_error error;
    bs_pack_open(NULL, &none, &error);
    print_outcome(&error, NULL);
    bs_plan_make(pack, NULL, "x", NULL, NULL, 0, NULL, &plan, &error);
    print_outcome(&error, NULL);
    bs_plan_launch(plan, NULL, &error);
    print_outcome(&error, NULL);
    bs_pack_open("/nowhere", &none, NULL);
    bs_plan_close(plan);
    bs_device_close(NULL);
    bs_pack_close(none);
}

int main(void) {
    static bs_value values[MAX_VALUES];
    bs_device *devices[MAX_DEVICES] = {NULL};
    bs_pack *pack = NULL;
    bs_plan *plan = NULL;
    bs_error error;
    char kind[16], kernel[256], variant[256], directory[MAX_LINE];
    uint64_t stream;
    int ordinal, count, i;
    while (scanf("%15s", kind) == 1) {
        if (!strcmp(kind, "pack")) {
            bs_pack_close(pack);
            if (scanf("%4095s", directory) != 1) abort();
            if (bs_pack_open(directory, &pack, &error)) print_outcome(&error, NULL);
            else printf("opened\n");
            continue;
        }
        if (!strcmp(kind, "nothing")) {
            call_with_nothing(pack);
            continue;
        }
        if (scanf("%d %255s %255s %" SCNu64 " %d", &ordinal, kernel, variant, &stream, &count) != 5) abort();
        if (ordinal < 0 || ordinal >= MAX_DEVICES || count < 0 || count > MAX_VALUES) abort();
        for (i = 0; i < count; i++) values[i] = read_value(i);
        if (!pack) {
            printf("error 0 there is no pack\n");
            continue;
        }
        if (!devices[ordinal] && bs_device_open(ordinal, &devices[ordinal], &error)) {
            print_outcome(&error, NULL);
            continue;
        }
        if (!bs_plan_make(pack, devices[ordinal], kernel, strcmp(variant, "-") ? variant : NULL, values, count,
                          (void *)(uintptr_t)stream, &plan, &error))
            bs_plan_launch(plan, (void *)(uintptr_t)stream, &error);
        print_outcome(&error, plan ? bs_plan_info(plan) : NULL);
        bs_plan_close(plan);
    }
    for (i = 0; i < MAX_DEVICES; i++) bs_device_close(devices[i]);
    bs_pack_close(pack);
    return 0;
}
