/* Files of a pack: regular ones inside it, whose size and sha256 (FIPS 180-4) are those of the manifest. */
#ifndef BLOCK_SCALED_FILES_H
#define BLOCK_SCALED_FILES_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory.h"

static uint32_t bsi_turn(uint32_t word, int by) { return word >> by | word << (32 - by); }

static void bsi_sha256_block(uint32_t state[8], const unsigned char *data) {
    static const uint32_t constants[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t words[64], v[8];
    int i;
    for (i = 0; i < 16; i++)
        words[i] = (uint32_t)data[4 * i] << 24 | (uint32_t)data[4 * i + 1] << 16 | (uint32_t)data[4 * i + 2] << 8 |
                   data[4 * i + 3];
    for (; i < 64; i++) {
        uint32_t a = words[i - 15], b = words[i - 2];
        words[i] = words[i - 16] + (bsi_turn(a, 7) ^ bsi_turn(a, 18) ^ a >> 3) + words[i - 7] +
                   (bsi_turn(b, 17) ^ bsi_turn(b, 19) ^ b >> 10);
    }
    memcpy(v, state, sizeof v);
    for (i = 0; i < 64; i++) {
        uint32_t one = v[7] + (bsi_turn(v[4], 6) ^ bsi_turn(v[4], 11) ^ bsi_turn(v[4], 25)) +
                       ((v[4] & v[5]) ^ (~v[4] & v[6])) + constants[i] + words[i];
        uint32_t two = (bsi_turn(v[0], 2) ^ bsi_turn(v[0], 13) ^ bsi_turn(v[0], 22)) +
                       ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += one;
        v[0] = one + two;
    }
    for (i = 0; i < 8; i++) state[i] += v[i];
}

/* The digest of ``data`` as 64 hex digits. */
static void bsi_sha256(const unsigned char *data, size_t size, char hex[65]) {
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab,
                         0x5be0cd19};
    unsigned char tail[128] = {0};
    size_t whole = size / 64 * 64, left = size - whole, end = left < 56 ? 64 : 128, at;
    int i;
    for (at = 0; at < whole; at += 64) bsi_sha256_block(state, data + at);
    if (left) memcpy(tail, data + whole, left);
    tail[left] = 0x80;
    for (i = 0; i < 8; i++) tail[end - 1 - (size_t)i] = (unsigned char)((uint64_t)size * 8 >> 8 * i);
    for (at = 0; at < end; at += 64) bsi_sha256_block(state, tail + at);
    for (i = 0; i < 8; i++) snprintf(hex + 8 * i, 9, "%08x", (unsigned)state[i]);
}

/* Parts of letters, digits, _ - + and ., none of which begins with a dot. */
static int bsi_is_relative(const char *path) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+-.";
    if (strlen(path) > 1000) return 0;
    for (;;) {
        size_t part = strspn(path, letters);
        if (!part || part > 200 || *path == '.') return 0;
        path += part;
        if (!*path) return 1;
        if (*path++ != '/') return 0;
    }
}

static char *bsi_joined(bsi_context *c, const char *directory, const char *file) {
    size_t size = strlen(directory) + strlen(file) + 2;
    char *path = BSI_NEW(c, char, size);
    snprintf(path, size, "%s/%s", directory, file);
    return path;
}

/* The path of a file, links resolved, which must not lead out of the pack. */
static void bsi_resolve(bsi_context *c, const char *directory, const char *file, char path[PATH_MAX]) {
    char root[PATH_MAX];
    size_t size;
    if (!realpath(directory, root) || !realpath(bsi_joined(c, root, file), path))
        bsi_fail(c, BS_ERROR_FILE, "%s of pack %s cannot be read: %s", file, directory, strerror(errno));
    size = strlen(root);
    if (size > 1 && (strncmp(path, root, size) || path[size] != '/'))
        bsi_fail(c, BS_ERROR_FILE, "%s leads out of pack %s", file, directory);
}

/* The bytes of a regular file, at most ``limit``. */
static char *bsi_read_file(bsi_context *c, const char *directory, const char *file, size_t limit, size_t *size) {
    char path[PATH_MAX], *data;
    struct stat facts;
    ssize_t got = 1;
    int handle;
    bsi_resolve(c, directory, file, path);
    if (stat(path, &facts) || !S_ISREG(facts.st_mode))
        bsi_fail(c, BS_ERROR_FILE, "%s of pack %s is no regular file", file, directory);
    if ((uint64_t)facts.st_size > limit)
        bsi_fail(c, BS_ERROR_INTEGRITY, "%s of pack %s has %lld bytes, at most %zu are read", file, directory,
                 (long long)facts.st_size, limit);
    data = BSI_NEW(c, char, (size_t)facts.st_size + 1);
    handle = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* does not wait for the other end of a pipe */
    for (*size = 0; handle >= 0 && got > 0 && *size < (size_t)facts.st_size; *size += got > 0 ? (size_t)got : 0)
        got = read(handle, data + *size, (size_t)facts.st_size - *size);
    if (handle >= 0) close(handle);
    if (handle < 0 || got < 0) bsi_fail(c, BS_ERROR_FILE, "%s of pack %s cannot be read", file, directory);
    return data;
}

/* The bytes of a file that the manifest names, checked against it. */
static char *bsi_read_stored(bsi_context *c, const char *directory, const char *file, size_t size,
                             const char *sha256) {
    size_t found;
    char digest[65], *data = bsi_read_file(c, directory, file, size, &found);
    if (found != size)
        bsi_fail(c, BS_ERROR_INTEGRITY, "%s in pack %s has %zu bytes, the manifest says %zu", file, directory, found,
                 size);
    bsi_sha256((const unsigned char *)data, size, digest);
    if (strcmp(digest, sha256))
        bsi_fail(c, BS_ERROR_INTEGRITY, "%s in pack %s has sha256 %s, the manifest says %s", file, directory, digest,
                 sha256);
    return data;
}

#endif
