/* Expressions of a manifest: checked and their names resolved once, then evaluated on slots of numbers. */
#ifndef BLOCK_SCALED_EXPRESSION_H
#define BLOCK_SCALED_EXPRESSION_H

#include "fields.h"
#include "number.h"

enum { BSI_MAX_DEPTH = 100, BSI_MAX_EXPRESSION_NODES = 1000 };

typedef enum bsi_operator {
    BSI_ADD, BSI_SUBTRACT, BSI_MULTIPLY, BSI_EXACT, BSI_FLOOR, BSI_MODULO, BSI_EQUAL, BSI_UNEQUAL, BSI_LESS, BSI_MOST,
    BSI_MORE, BSI_LEAST, BSI_AND, BSI_OR, /* those above stand between their operands */
    BSI_FDIV, BSI_NEG, BSI_MIN, BSI_MAX, BSI_CEIL_DIV, BSI_ROUND_UP, BSI_NOT, BSI_IF,
    BSI_CONSTANT, BSI_NAME
} bsi_operator;

static const struct { const char *name; int operands; } bsi_operators[] = {
    {"+", 2}, {"-", 2}, {"*", 2}, {"/", 2}, {"//", 2}, {"%", 2}, {"==", 2}, {"!=", 2}, {"<", 2}, {"<=", 2}, {">", 2},
    {">=", 2}, {"and", 2}, {"or", 2}, {"fdiv", 2}, {"neg", 1}, {"min", 2}, {"max", 2}, {"ceil_div", 2},
    {"round_up", 2}, {"not", 1}, {"if", 3},
};

typedef struct bsi_expression {
    int op;
    int slot;             /* of a name */
    const char *name;
    bsi_number constant;
    const struct bsi_expression *operands[3];
} bsi_expression;

/* The slot of a name, or -1. */
typedef int bsi_lookup(bsi_context *c, void *scope, const char *name);

static void bsi_say_expression(bsi_text *text, const bsi_expression *e) {
    int i, infix = e->op <= BSI_OR;
    if (e->op == BSI_NAME) {
        bsi_say(text, "%s", e->name);
    } else if (e->op == BSI_CONSTANT) {
        bsi_say_number(text, e->constant);
    } else if (e->op == BSI_NEG || e->op == BSI_NOT) {
        bsi_say(text, e->op == BSI_NEG ? "-" : "not ");
        bsi_say_expression(text, e->operands[0]);
    } else {
        if (!infix) bsi_say(text, "%s(", bsi_operators[e->op].name);
        for (i = 0; i < bsi_operators[e->op].operands; i++) {
            int wrapped = infix && e->operands[i]->op <= BSI_OR;
            if (i) bsi_say(text, infix ? " %s " : ", ", bsi_operators[e->op].name);
            bsi_say(text, wrapped ? "(" : "");
            bsi_say_expression(text, e->operands[i]);
            bsi_say(text, wrapped ? ")" : "");
        }
        if (!infix) bsi_say(text, ")");
    }
}

/* Reading */

typedef struct bsi_compiler {
    const bsi_at *at;
    bsi_lookup *lookup;
    void *scope;
    int nodes;
} bsi_compiler;

static const bsi_expression *bsi_compile_node(bsi_compiler *k, const bsi_node *node, int depth);

static void bsi_compile_list(bsi_compiler *k, const bsi_node *node, bsi_expression *e, int depth) {
    uint32_t i;
    if (depth == BSI_MAX_DEPTH) bsi_wrong(k->at, "an expression of at most 100 operators in each other");
    if (!node->count || node->of.items[0].type != BSI_TEXT)
        bsi_wrong(k->at, "an expression whose lists start with an operator's name");
    for (e->op = 0; e->op <= BSI_IF; e->op++)
        if (!strcmp(bsi_operators[e->op].name, node->of.items[0].of.text)) break;
    if (e->op > BSI_IF) bsi_wrong(k->at, "an expression of known operators");
    if (node->count - 1 != (uint32_t)bsi_operators[e->op].operands)
        bsi_wrong(k->at, "an expression whose operators have as many operands as they take");
    for (i = 1; i < node->count; i++) e->operands[i - 1] = bsi_compile_node(k, &node->of.items[i], depth + 1);
}

static const bsi_expression *bsi_compile_node(bsi_compiler *k, const bsi_node *node, int depth) {
    bsi_expression *e = BSI_NEW(k->at->c, bsi_expression, 1);
    if (++k->nodes > BSI_MAX_EXPRESSION_NODES)
        bsi_wrong(k->at, "an expression of at most 1000 operators, names and numbers");
    e->op = BSI_CONSTANT;
    if (node->type == BSI_LIST) {
        bsi_compile_list(k, node, e, depth);
    } else if (node->type == BSI_TEXT) {
        e->op = BSI_NAME;
        e->name = node->of.text;
        e->slot = bsi_is_identifier(e->name) ? k->lookup(k->at->c, k->scope, e->name) : -1;
        if (e->slot < 0)
            bsi_fail(k->at->c, BS_ERROR_MANIFEST, "%s: an expression uses unknown %.80s", bsi_path(k->at), e->name);
    } else if (node->type == BSI_INTEGER) {
        e->constant = bsi_whole(node->negative ? -(bsi_int)node->of.magnitude : (bsi_int)node->of.magnitude);
    } else if (node->type == BSI_REAL && isfinite(node->of.real)) {
        e->constant = bsi_float(node->of.real);
    } else {
        bsi_wrong(k->at, "an expression: a finite number of at most 64 bits, a name or a list");
    }
    return e;
}

static const bsi_expression *bsi_compile(const bsi_at *at, bsi_lookup *lookup, void *scope) {
    bsi_compiler k;
    k.at = at;
    k.lookup = lookup;
    k.scope = scope;
    k.nodes = 0;
    return bsi_compile_node(&k, at->node, 0);
}

/* Evaluation. These return 0 where there is no value, and have said why in c->reason. */

static int bsi_no_value(bsi_context *c, const bsi_expression *e, const char *why) {
    bsi_say_expression(&c->reason, e);
    bsi_say(&c->reason, " %s", why);
    return 0;
}

/* Nothing, if an inner part has said why already. */
static int bsi_too_long(bsi_context *c, const bsi_expression *e) {
    return c->reason.used ? 0 : bsi_no_value(c, e, "cannot be computed: it has over 126 bits");
}

static int bsi_exact(bsi_context *c, bsi_number a, bsi_number b, bsi_number *out) {
    bsi_number remainder;
    bsi_divide(a, b, out, &remainder);
    if (!bsi_is_true(remainder)) return 1;
    bsi_say_number(&c->reason, a);
    bsi_say(&c->reason, " / ");
    bsi_say_number(&c->reason, b);
    bsi_say(&c->reason, " is not a whole number");
    return 0;
}

/* + - * of two numbers, or 0 where an integer gets too long. */
static int bsi_arithmetic(int op, bsi_number a, bsi_number b, bsi_number *out) {
    if (a.kind == BSI_FLOAT || b.kind == BSI_FLOAT) {
        double x = bsi_double(a), y = bsi_double(b);
        *out = bsi_float(op == BSI_ADD ? x + y : op == BSI_SUBTRACT ? x - y : x * y);
        return 1;
    }
    *out = bsi_whole(0);
    if (op == BSI_ADD ? __builtin_add_overflow(a.whole, b.whole, &out->whole)
        : op == BSI_SUBTRACT ? __builtin_sub_overflow(a.whole, b.whole, &out->whole)
        : __builtin_mul_overflow(a.whole, b.whole, &out->whole)) return 0;
    return out->whole <= BSI_LARGEST && out->whole >= -BSI_LARGEST;
}

/* Divisions; ``b`` is not 0. */
static int bsi_quotient(bsi_context *c, int op, bsi_number a, bsi_number b, bsi_number *out) {
    bsi_number other;
    if (op == BSI_EXACT) return bsi_exact(c, a, b, out);
    if (op == BSI_FDIV) {
        int floats = a.kind == BSI_FLOAT || b.kind == BSI_FLOAT;
        *out = bsi_float(floats ? bsi_double(a) / bsi_double(b) : bsi_ratio(a.whole, b.whole));
    } else if (op == BSI_FLOOR) {
        bsi_divide(a, b, out, &other);
    } else if (op == BSI_MODULO) {
        bsi_divide(a, b, &other, out);
    } else { /* ceil_div and round_up are minus the quotient of minus a */
        bsi_divide(bsi_negate(a), b, out, &other);
        *out = bsi_negate(*out);
        if (op == BSI_ROUND_UP) return bsi_arithmetic(BSI_MULTIPLY, *out, b, out);
    }
    return 1;
}

static bsi_number bsi_comparison(int op, bsi_number a, bsi_number b) {
    int order = bsi_compare(a, b);
    switch (op) {
    case BSI_EQUAL: return bsi_truth(order == 0);
    case BSI_UNEQUAL: return bsi_truth(order != 0);
    case BSI_LESS: return bsi_truth(order == -1);
    case BSI_MOST: return bsi_truth(order == -1 || order == 0);
    case BSI_MORE: return bsi_truth(order == 1);
    case BSI_LEAST: return bsi_truth(order == 1 || order == 0);
    case BSI_MIN: return order == 1 ? b : a;
    default: return order == -1 ? b : a; /* max */
    }
}

static int bsi_compute(bsi_context *c, const bsi_expression *e, const bsi_number *slots, bsi_number *out) {
    bsi_number a, b;
    switch (e->op) {
    case BSI_CONSTANT:
        *out = e->constant;
        return 1;
    case BSI_NAME:
        *out = slots[e->slot];
        return 1;
    case BSI_IF:
        if (!bsi_compute(c, e->operands[0], slots, &a)) return 0;
        return bsi_compute(c, e->operands[bsi_is_true(a) ? 1 : 2], slots, out);
    case BSI_AND:
    case BSI_OR:
        if (!bsi_compute(c, e->operands[0], slots, &a)) return 0;
        if (bsi_is_true(a) == (e->op == BSI_AND) && !bsi_compute(c, e->operands[1], slots, &a)) return 0;
        *out = bsi_truth(bsi_is_true(a));
        return 1;
    default: break;
    }
    if (!bsi_compute(c, e->operands[0], slots, &a)) return 0;
    if (e->op == BSI_NOT) {
        *out = bsi_truth(!bsi_is_true(a));
        return 1;
    }
    if (e->op == BSI_NEG) {
        *out = bsi_negate(a);
        return 1;
    }
    if (!bsi_compute(c, e->operands[1], slots, &b)) return 0;
    switch (e->op) {
    case BSI_ADD:
    case BSI_SUBTRACT:
    case BSI_MULTIPLY:
        return bsi_arithmetic(e->op, a, b, out) || bsi_too_long(c, e);
    case BSI_EXACT:
    case BSI_FLOOR:
    case BSI_MODULO:
    case BSI_FDIV:
    case BSI_CEIL_DIV:
    case BSI_ROUND_UP:
        if (!bsi_is_true(b)) return bsi_no_value(c, e, "divides by zero");
        return bsi_quotient(c, e->op, a, b, out) || bsi_too_long(c, e);
    default:
        *out = bsi_comparison(e->op, a, b);
        return 1;
    }
}

static bsi_number bsi_evaluate(bsi_context *c, const bsi_expression *e, const bsi_number *slots) {
    bsi_number value;
    if (!bsi_compute(c, e, slots, &value)) bsi_fail(c, BS_ERROR_EXPRESSION, "%s", c->reason.at);
    return value;
}

/* Solving */

static int bsi_uses(const bsi_expression *e, int slot) {
    int i, uses = e->op == BSI_NAME && e->slot == slot;
    if (e->op < BSI_CONSTANT)
        for (i = 0; i < bsi_operators[e->op].operands; i++) uses |= bsi_uses(e->operands[i], slot);
    return uses;
}

/* The first name without a value, -1 where all have one; ``several``: whether there is another. */
static int bsi_unknown(const bsi_expression *e, const unsigned char *given, int *several) {
    int i, found = -1;
    if (e->op == BSI_NAME) return given[e->slot] ? -1 : e->slot;
    if (e->op == BSI_CONSTANT) return -1;
    for (i = 0; i < bsi_operators[e->op].operands; i++) {
        int other = bsi_unknown(e->operands[i], given, several);
        if (found >= 0 && other >= 0 && other != found) *several = 1;
        if (found < 0) found = other;
    }
    return found;
}

/* Whether the name occurs once, under + - * / and neg only. */
static int bsi_solvable(const bsi_expression *e, int slot) {
    int left, right;
    if (e->op >= BSI_CONSTANT) return e->op == BSI_NAME && e->slot == slot;
    if (e->op == BSI_NEG) return bsi_solvable(e->operands[0], slot);
    if (e->op > BSI_EXACT) return 0;
    left = bsi_uses(e->operands[0], slot);
    right = bsi_uses(e->operands[1], slot);
    return left != right && bsi_solvable(e->operands[left ? 0 : 1], slot);
}

/* The value of a name for which a solvable expression is ``result``; 0 where it has none. */
static int bsi_solve(bsi_context *c, const bsi_expression *e, int slot, const char *name, bsi_number result,
                     const bsi_number *slots, bsi_number *out) {
    bsi_number other = bsi_whole(0);
    int left, done = 1;
    if (e->op == BSI_NAME) {
        *out = result;
        return 1;
    }
    left = e->op == BSI_NEG || bsi_uses(e->operands[0], slot);
    if (e->op != BSI_NEG && !bsi_compute(c, e->operands[left ? 1 : 0], slots, &other)) return 0;
    if ((e->op == BSI_MULTIPLY || e->op == BSI_EXACT) &&
        (!bsi_is_true(other) || (e->op == BSI_EXACT && !left && !bsi_is_true(result)))) {
        bsi_say_expression(&c->reason, e);
        bsi_say(&c->reason, " = ");
        bsi_say_number(&c->reason, result);
        bsi_say(&c->reason, " does not give %s", name);
        return 0;
    }
    if (e->op == BSI_NEG) result = bsi_negate(result);
    else if (e->op == BSI_ADD) done = bsi_arithmetic(BSI_SUBTRACT, result, other, &result);
    else if (e->op == BSI_SUBTRACT && left) done = bsi_arithmetic(BSI_ADD, result, other, &result);
    else if (e->op == BSI_SUBTRACT) done = bsi_arithmetic(BSI_SUBTRACT, other, result, &result);
    else if (e->op == BSI_MULTIPLY) done = bsi_exact(c, result, other, &result);
    else if (left) done = bsi_arithmetic(BSI_MULTIPLY, result, other, &result);
    else done = bsi_exact(c, other, result, &result);
    if (!done) return bsi_too_long(c, e);
    return bsi_solve(c, e->operands[left ? 0 : 1], slot, name, result, slots, out);
}

#endif
