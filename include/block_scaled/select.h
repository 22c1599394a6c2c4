/* Which artifact runs a problem on a device: the fastest at the nearest measured point, else the lowest estimate. */
#ifndef BLOCK_SCALED_SELECT_H
#define BLOCK_SCALED_SELECT_H

#include "signature.h"

typedef struct bsi_facts {
    char name[256];
    int major, minor, sm_count;
    int64_t shared_limit;
} bsi_facts;

typedef struct bsi_selection {
    const bsi_artifact *artifact;
    const char *reason;
} bsi_selection;

/* The candidates of a problem, in the order of the manifest. */
typedef struct bsi_choice {
    bsi_context *c;
    const bsi_problem *problem;
    const bsi_facts *facts;
    const char *variant; /* NULL where the call names none */
    unsigned char *fits; /* of each artifact: it runs on the device, and is the most specific one of its variant */
    unsigned char *unfit; /* of these: it requires something else of the problem */
} bsi_choice;

/* Why an artifact cannot run on a device or with these dtypes; 0 where it can. ``why`` may be NULL. */
static int bsi_refusal(const bsi_choice *choice, const bsi_artifact *a, bsi_text *why) {
    const bsi_family *family = choice->problem->family;
    const bsi_facts *facts = choice->facts;
    bsi_arch arch = bsi_arch_of[a->arch];
    bsi_text unused;
    int64_t needed = (int64_t)a->shared + a->static_shared;
    uint32_t i;
    bsi_start(&unused);
    if (!why) why = &unused;
    if (choice->variant && strcmp(choice->variant, a->variant)) {
        bsi_say(why, "the call asks for variant %s", choice->variant);
    } else if (arch.major != facts->major) {
        bsi_say(why, "sm_%s runs on compute capability %d.x only, the device has %d.%d", bsi_archs[a->arch],
                arch.major, facts->major, facts->minor);
    } else if (arch.specific ? arch.minor != facts->minor : arch.minor > facts->minor) {
        bsi_say(why, "sm_%s runs on compute capability %d.%d %s, the device has %d.%d", bsi_archs[a->arch],
                arch.major, arch.minor, arch.specific ? "only" : "or higher", facts->major, facts->minor);
    } else if (needed > facts->shared_limit) {
        bsi_say(why, "needs %lld bytes of shared memory, the device gives %lld", (long long)needed,
                (long long)facts->shared_limit);
    } else {
        for (i = 0; i < family->match_count && !why->used; i++) {
            const bsi_node *axis = bsi_find(a->axes, family->matches[i].axis);
            const char *has = axis->type == BSI_TEXT ? axis->of.text : "a number";
            const char *called = bsi_dtypes[choice->problem->dtypes[family->matches[i].argument]];
            if (strcmp(has, called))
                bsi_say(why, "computes %s as %s, the call has %s", family->arguments[family->matches[i].argument].name,
                        has, called);
        }
    }
    return why->used != 0;
}

/* Of the archs that run on one device, the most specific one is the largest. */
static int bsi_rank(const bsi_artifact *a) { return bsi_arch_of[a->arch].minor * 2 + bsi_arch_of[a->arch].specific; }

static void bsi_find_fitting(bsi_choice *choice) {
    const bsi_family *family = choice->problem->family;
    uint32_t i, j;
    choice->fits = BSI_NEW(choice->c, unsigned char, family->artifact_count);
    choice->unfit = BSI_NEW(choice->c, unsigned char, family->artifact_count);
    for (i = 0; i < family->artifact_count; i++) {
        if (bsi_refusal(choice, family->artifacts[i], NULL)) continue;
        choice->fits[i] = 1;
        for (j = 0; j < i; j++) {
            if (!choice->fits[j] || strcmp(family->artifacts[i]->variant, family->artifacts[j]->variant)) continue;
            choice->fits[bsi_rank(family->artifacts[i]) > bsi_rank(family->artifacts[j]) ? j : i] = 0;
        }
    }
}

/* Put the integer axes of an artifact behind the numbers of the problem, where its expressions find them. */
static void bsi_use_axes(const bsi_problem *p, const bsi_artifact *a) {
    uint32_t i;
    for (i = 0; i < a->axes->count; i++) {
        const bsi_node *axis = &a->axes->of.items[2 * i + 1];
        if (axis->type == BSI_INTEGER)
            p->slots[p->family->name_count + (int)i] =
                bsi_whole(axis->negative ? -(bsi_int)axis->of.magnitude : (bsi_int)axis->of.magnitude);
    }
}

static void bsi_find_unfit(bsi_choice *choice) {
    const bsi_family *family = choice->problem->family;
    uint32_t i, r;
    for (i = 0; i < family->artifact_count; i++) {
        const bsi_artifact *a = family->artifacts[i];
        if (!choice->fits[i]) continue;
        bsi_use_axes(choice->problem, a);
        for (r = 0; r < a->requirement_count; r++)
            if (!bsi_is_true(bsi_evaluate(choice->c, a->requirements[r].expression, choice->problem->slots)))
                choice->unfit[i] = 1;
    }
}

/* Measured rows */

/* A row is far from a problem where some feature of one is more than so many times that of the other. */
#define BSI_FAR 2

/* The microseconds of an artifact in a row, or -1. */
static double bsi_time(const bsi_row *row, const bsi_artifact *a) {
    uint32_t i;
    for (i = 0; a->arch == row->arch && i < row->count; i++)
        if (!strcmp(row->tiles[i], a->tile)) return row->microseconds[i];
    return -1;
}

/* Whether a row times a candidate; ``able``: one that runs this problem. */
static int bsi_is_timed(const bsi_choice *choice, const bsi_row *row, int able) {
    const bsi_family *family = choice->problem->family;
    uint32_t i;
    for (i = 0; i < family->artifact_count; i++)
        if (choice->fits[i] && !(able && choice->unfit[i]) && bsi_time(row, family->artifacts[i]) >= 0) return 1;
    return 0;
}

/* A feature as a binary logarithm; one of 0 counts as 2^-20. */
static double bsi_log(double feature) { return log2(feature >= ldexp(1, -20) ? feature : ldexp(1, -20)); }

/* The nearest row that times a candidate which runs the problem, of those of this very device if there are some that
 * time a candidate at all. NULL where there is none; ``any``: whether some row times a candidate; ``how``: whether it
 * is one of this very problem, a near or a far one. */
static const bsi_row *bsi_nearest(const bsi_choice *choice, const double *here, int *any, const char **how) {
    const bsi_family *family = choice->problem->family;
    const bsi_row *nearest = NULL;
    double least = 0;
    uint32_t i;
    int f, own = 0;
    for (i = 0; i < family->row_count; i++) {
        if (!bsi_is_timed(choice, &family->rows[i], 0)) continue;
        *any = 1;
        own |= !strcmp(family->rows[i].device, choice->facts->name);
    }
    for (i = 0; i < family->row_count; i++) {
        const bsi_row *row = &family->rows[i];
        long double sum = 0; /* wider than the result, so that equal distances come out equal */
        double distance;
        int equal = 1, far = 0;
        if ((own && strcmp(row->device, choice->facts->name)) || !bsi_is_timed(choice, row, 1)) continue;
        for (f = 0; f < family->feature_count; f++) {
            double apart = bsi_log(here[f]) - bsi_log(row->features[f]);
            sum += (long double)apart * apart;
            equal &= apart == 0;
            far |= fmax(here[f], row->features[f]) > BSI_FAR * fmin(here[f], row->features[f]);
        }
        distance = (double)sqrtl(sum);
        if (nearest && !(distance < least)) continue;
        nearest = row;
        least = distance;
        *how = equal && own ? "measured" : far ? "far" : "nearest";
    }
    return nearest;
}

/* The outcome */

__attribute__((noreturn)) static void bsi_no_kernel(const bsi_choice *choice) {
    const bsi_family *family = choice->problem->family;
    const bsi_facts *facts = choice->facts;
    bsi_text lines, why;
    uint32_t i, r;
    bsi_start(&lines);
    for (i = 0; i < family->artifact_count; i++) {
        const bsi_artifact *a = family->artifacts[i];
        bsi_start(&why);
        if (!bsi_refusal(choice, a, &why)) {
            bsi_say(&why, choice->unfit[i] ? "requires " : choice->fits[i] ? "neither measured nor estimated"
                                                                           : "another arch is more specific");
            for (r = 0; choice->unfit[i] && r < a->requirement_count; r++)
                bsi_say(&why, "%s%s", r ? " and " : "", a->requirements[r].text);
        }
        bsi_say(&lines, "\n  %s sm_%s: %s", a->variant, bsi_archs[a->arch], why.at);
    }
    bsi_fail(choice->c, BS_ERROR_NO_KERNEL, "no variant of %s runs this on %s (compute capability %d.%d)%s",
             family->name, facts->name, facts->major, facts->minor,
             family->artifact_count ? lines.at : "; the pack holds no artifact of it");
}

static void bsi_check_variant(const bsi_choice *choice) {
    const bsi_family *family = choice->problem->family;
    bsi_text known;
    uint32_t i;
    bsi_start(&known);
    for (i = 0; i < family->artifact_count; i++) {
        if (!strcmp(family->artifacts[i]->variant, choice->variant)) return;
        bsi_say(&known, "%s%s", i ? ", " : "", family->artifacts[i]->variant);
    }
    bsi_fail(choice->c, BS_ERROR_UNKNOWN_VARIANT, "%s has no variant '%.80s'; known are %s", family->name,
             choice->variant, known.at);
}

/* The estimate of an artifact, or 0 and no value where it has none; features count as names in it. */
static int bsi_estimate(const bsi_choice *choice, const bsi_artifact *a, bsi_number *cost) {
    if (!a->cost) return 0;
    bsi_use_axes(choice->problem, a);
    *cost = bsi_evaluate(choice->c, a->cost, choice->problem->slots);
    return 1;
}

static bsi_selection bsi_select(bsi_context *c, const bsi_problem *p, const bsi_facts *facts, const char *variant) {
    const bsi_family *family = p->family;
    bsi_choice choice = {0, 0, 0, 0, 0, 0};
    bsi_selection selection = {NULL, "only"};
    bsi_number least = bsi_whole(0), score;
    const bsi_row *row;
    double *here = BSI_NEW(c, double, (size_t)family->feature_count);
    uint32_t i, left = 0, last = 0;
    const char *how = "estimated";
    int f, any = 0;
    choice.c = c;
    choice.problem = p;
    choice.facts = facts;
    choice.variant = variant;
    if (variant) bsi_check_variant(&choice);
    bsi_find_fitting(&choice);
    bsi_find_unfit(&choice);
    for (f = 0; f < family->feature_count; f++) {
        bsi_number feature = bsi_evaluate(c, family->features[f], p->slots);
        p->slots[family->problem_count + f] = feature;
        here[f] = bsi_double(feature);
    }
    row = bsi_nearest(&choice, here, &any, &how);
    for (i = 0; i < family->artifact_count; i++) {
        const bsi_artifact *a = family->artifacts[i];
        int order;
        if (!choice.fits[i] || choice.unfit[i]) continue;
        left++;
        last = i;
        if (row) score = bsi_float(bsi_time(row, a));
        if (row ? score.real < 0 : any || !bsi_estimate(&choice, a, &score)) continue;
        order = selection.artifact ? bsi_compare(score, least) : -1;
        if (order == -1 || (order == 0 && strcmp(a->variant, selection.artifact->variant) < 0)) {
            selection.artifact = a;
            least = score;
        }
        selection.reason = how;
    }
    if (!selection.artifact && left == 1) selection.artifact = family->artifacts[last];
    if (!selection.artifact) bsi_no_kernel(&choice);
    if (variant) selection.reason = "named";
    return selection;
}

#endif
