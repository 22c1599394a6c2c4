/* Numbers of expressions with the arithmetic of docs/manifest.md: integers are exact, divisions round down. An integer
 * of more than 126 bits has no value here. */
#ifndef BLOCK_SCALED_NUMBER_H
#define BLOCK_SCALED_NUMBER_H

#include "json.h"

__extension__ typedef __int128 bsi_int;
__extension__ typedef unsigned __int128 bsi_uint;

#define BSI_LARGEST (((bsi_int)1 << 126) - 1)

typedef enum bsi_number_kind { BSI_WHOLE, BSI_TRUTH, BSI_FLOAT } bsi_number_kind;

typedef struct bsi_number {
    bsi_number_kind kind;
    bsi_int whole; /* 0 or 1 of a BSI_TRUTH */
    double real;   /* of a BSI_FLOAT */
} bsi_number;

static bsi_number bsi_whole(bsi_int value) {
    bsi_number n = {BSI_WHOLE, 0, 0};
    n.whole = value;
    return n;
}

static bsi_number bsi_truth(int value) {
    bsi_number n = {BSI_TRUTH, 0, 0};
    n.whole = value != 0;
    return n;
}

static bsi_number bsi_float(double value) {
    bsi_number n = {BSI_FLOAT, 0, 0};
    n.real = value;
    return n;
}

static double bsi_double(bsi_number n) { return n.kind == BSI_FLOAT ? n.real : (double)n.whole; }

static bsi_number bsi_negate(bsi_number n) { return n.kind == BSI_FLOAT ? bsi_float(-n.real) : bsi_whole(-n.whole); }

static int bsi_is_true(bsi_number n) { return n.kind == BSI_FLOAT ? n.real != 0 : n.whole != 0; }

/* Whether it is an integer, neither a truth value nor a float, from ``low`` to ``high``. */
static int bsi_is_whole(bsi_number n, bsi_int low, bsi_int high) {
    return n.kind == BSI_WHOLE && n.whole >= low && n.whole <= high;
}

static void bsi_say_number(bsi_text *text, bsi_number n) {
    char digits[48];
    size_t at = sizeof digits - 1;
    bsi_uint left = (bsi_uint)(n.whole < 0 ? -n.whole : n.whole);
    if (n.kind == BSI_FLOAT) {
        int precision = fabs(n.real) >= 1e15 && fabs(n.real) < 1e16 ? 16 : 15;
        do snprintf(digits, sizeof digits, "%.*g", precision, n.real); /* the fewest digits that give it back */
        while (strtod(digits, NULL) != n.real && precision++ < 17);
        bsi_say(text, "%s%s", digits, isfinite(n.real) && !strpbrk(digits, ".,e") ? ".0" : "");
        return;
    }
    if (n.kind == BSI_TRUTH) {
        bsi_say(text, "%s", n.whole ? "True" : "False");
        return;
    }
    digits[at] = 0;
    do digits[--at] = (char)('0' + (int)(left % 10));
    while (left /= 10);
    bsi_say(text, "%s%s", n.whole < 0 ? "-" : "", digits + at);
}

/* Three-way comparison, exact between integers and floats; 2 where one is no number. */
static int bsi_compare(bsi_number a, bsi_number b) {
    if (a.kind != BSI_FLOAT && b.kind != BSI_FLOAT) return (a.whole > b.whole) - (a.whole < b.whole);
    if (a.kind == BSI_FLOAT && b.kind == BSI_FLOAT) {
        if (isnan(a.real) || isnan(b.real)) return 2;
        return (a.real > b.real) - (a.real < b.real);
    }
    if (b.kind == BSI_FLOAT) {
        bsi_int floor_of_b;
        if (isnan(b.real)) return 2;
        if (fabs(b.real) >= ldexp(1, 126)) return b.real > 0 ? -1 : 1;
        floor_of_b = (bsi_int)floor(b.real);
        if (a.whole != floor_of_b) return a.whole > floor_of_b ? 1 : -1;
        return b.real > floor(b.real) ? -1 : 0;
    }
    {
        int other = bsi_compare(b, a);
        return other == 2 ? 2 : -other;
    }
}

static int bsi_bits(bsi_uint value) {
    int bits = 0;
    for (; value; value >>= 1) bits++;
    return bits;
}

/* The quotient of two integers, rounded once. */
static double bsi_ratio(bsi_int a, bsi_int b) {
    bsi_uint above = (bsi_uint)(a < 0 ? -a : a), below = (bsi_uint)(b < 0 ? -b : b), quotient;
    int shift = 55 + bsi_bits(below) - bsi_bits(above);
    double ratio;
    if ((bsi_bits(above) <= 53 && bsi_bits(below) <= 53) || bsi_bits(below) + 55 > 126)
        return (double)a / (double)b;
    if (shift >= 0) above <<= shift;
    else below <<= -shift;
    quotient = above / below;
    if (above % below) quotient |= 1; /* 55 bits or more: the last one is below what rounding keeps */
    ratio = ldexp((double)(uint64_t)quotient, -shift);
    return (a < 0) != (b < 0) ? -ratio : ratio;
}

/* Quotient and remainder, which has the sign of ``b``; ``b`` is not 0. */
static void bsi_divide(bsi_number a, bsi_number b, bsi_number *quotient, bsi_number *remainder) {
    if (a.kind != BSI_FLOAT && b.kind != BSI_FLOAT) {
        bsi_int q = a.whole / b.whole, r = a.whole % b.whole;
        if (r && (r < 0) != (b.whole < 0)) {
            q--;
            r += b.whole;
        }
        *quotient = bsi_whole(q);
        *remainder = bsi_whole(r);
    } else {
        double x = bsi_double(a), y = bsi_double(b), r = fmod(x, y), q = (x - r) / y;
        if (r != 0 && (r < 0) != (y < 0)) {
            r += y;
            q -= 1;
        } else if (r == 0) {
            r = copysign(0, y);
        }
        if (q != 0) {
            double below = floor(q);
            q = q - below > 0.5 ? below + 1 : below;
        } else {
            q = copysign(0, x / y);
        }
        *quotient = bsi_float(q);
        *remainder = bsi_float(r);
    }
}

#endif
