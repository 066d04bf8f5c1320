/* Group normalisation of channels-last pictures, with an activation in the same pass.
 *
 * Sums per channel are taken relative to the picture's first pixel, so that a mean far from zero
 * costs no digits; they are float32 within a task and joined in float64.
 */
#ifndef SFUMATO_GROUP_NORM_H
#define SFUMATO_GROUP_NORM_H

#include <string.h>

#include "pointwise.h"

/* Registers of channels whose sums are held at a time, and rows that are gone through for them. */
enum { WIDE = 4, AT_ONCE = 8 };
/* Channels whose sums are joined at a time. */
enum { JOINED = 64 };

/* Pictures of `pixels` rows of `channels`; `tasks` shares of `rows.rows_each` pixels to each. */
struct group_norm {
    struct rows rows;
    long batch, pixels, groups, tasks;
    float *sums;      /* per picture and task: sums, then sums of squares, of each channel */
    double *moments;  /* per picture and group: mean, and sum of squares around it */
    float *factors;   /* per picture: factors, then summands, of each channel; or NULL */
};

/* Add `rows` rows of `vectors` times LANES channels to their sums. */
INLINE void add_rows(const int vectors, some lanes, const stored *from, const stored *origins,
                     long rows, long channels, float *sums) {
    vector s[WIDE], q[WIDE], origin[WIDE];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        origin[v] = load_row(origins + LANES * v, lanes);
        s[v] = v_load_some(sums + LANES * v, lanes);
        q[v] = v_load_some(sums + channels + LANES * v, lanes);
    }
    for (long row = 0; row < rows; row++, from += channels) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            vector x = v_sub(load_row(from + LANES * v, lanes), origin[v]);
            s[v] = v_add(s[v], x);
            q[v] = v_mul_add(x, x, q[v]);
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        v_store_some(sums + LANES * v, s[v], lanes);
        v_store_some(sums + channels + LANES * v, q[v], lanes);
    }
}

/* Add up rows `first` to `end - 1` of one picture, some at a time, which stay in the cache. */
TARGET static void add_up(const stored *picture, long first, long end, long channels,
                          float *sums) {
    memset(sums, 0, (size_t)(2 * channels) * sizeof *sums);
    for (long row = first; row < end; row += AT_ONCE) {
        const stored *from = picture + row * channels;
        long rows = smaller(end - row, AT_ONCE), c = 0;
        for (; c + LANES * WIDE <= channels; c += LANES * WIDE)
            add_rows(WIDE, ALL, from + c, picture + c, rows, channels, sums + c);
        for (; c < channels; c += LANES)
            add_rows(1, first_lanes(channels - c), from + c, picture + c, rows, channels, sums + c);
    }
}

TARGET static void add_up_task(void *context, long task, int worker) {
    (void)worker;
    const struct group_norm *g = context;
    long picture = task / g->tasks, first = task % g->tasks * g->rows.rows_each;
    add_up(g->rows.from + picture * g->pixels * g->rows.channels, first,
           smaller(first + g->rows.rows_each, g->pixels), g->rows.channels,
           g->sums + task * 2 * g->rows.channels);
}

/* Sums of `count` channels over all tasks of a picture, in float64; squares follow after JOINED. */
TARGET static void join_tasks(const struct group_norm *g, const float *sums, long count,
                              double *joined) {
    memset(joined, 0, 2 * JOINED * sizeof *joined);
    for (long task = 0; task < g->tasks; task++, sums += 2 * g->rows.channels)
        for (long c = 0; c < count; c++) {
            joined[c] += sums[c];
            joined[JOINED + c] += sums[g->rows.channels + c];
        }
}

/* From sums to the moments of one group. */
static void join(const struct group_norm *g, long picture, long group) {
    long channels = g->rows.channels, width = channels / g->groups, first = group * width;
    const stored *origin = g->rows.from + picture * g->pixels * channels;
    const float *sums = g->sums + picture * g->tasks * 2 * channels;
    double *moments = g->moments + 2 * (picture * g->groups + group);
    double total = 0.0, squares = 0.0, n = (double)g->pixels, base = widen(origin[first]);
    for (long c = first; c < first + width; c += JOINED) {
        double joined[2 * JOINED];
        long count = smaller(first + width - c, JOINED);
        join_tasks(g, sums + c, count, joined);
        for (long i = 0; i < count; i++) {
            double shift = widen(origin[c + i]) - base;
            total += joined[i] + n * shift;
            squares += joined[JOINED + i] + 2.0 * shift * joined[i] + n * shift * shift;
        }
    }
    double around = squares - total * total / (n * (double)width);
    moments[0] = base + total / (n * (double)width);
    moments[1] = around < 0.0 ? 0.0 : around;
}

/* From moments to what each channel of a group is multiplied with, and what is added. */
static void set_factors(const struct group_norm *g, long picture, long group) {
    long channels = g->rows.channels, width = channels / g->groups, first = group * width;
    const double *moments = g->moments + 2 * (picture * g->groups + group);
    float *factors = g->factors + picture * 2 * channels;
    double variance = moments[1] / ((double)g->pixels * (double)width);
    double factor = 1.0 / sqrt(variance + g->rows.eps);
    for (long c = first; c < first + width; c++) {
        double scaled = factor * (g->rows.weight ? widen(g->rows.weight[c]) : 1.0);
        factors[c] = (float)scaled;
        factors[channels + c] =
            (float)((g->rows.bias ? widen(g->rows.bias[c]) : 0.0) - moments[0] * scaled);
    }
}

static void join_task(void *context, long task, int worker) {
    (void)worker;
    const struct group_norm *g = context;
    join(g, task / g->groups, task % g->groups);
    if (g->factors) set_factors(g, task / g->groups, task % g->groups);
}

INLINE void apply_vector(const stored *from, stored *to, const float *factors, long channels,
                         some lanes, int kind) {
    vector x = v_mul_add(load_row(from, lanes), v_load_some(factors, lanes),
                         v_load_some(factors + channels, lanes));
    store_row(to, activation(x, kind), lanes);
}

INLINE void apply(const struct group_norm *g, long task, int kind) {
    const long channels = g->rows.channels, picture = task / g->tasks;
    const long first = task % g->tasks * g->rows.rows_each;
    const long end = smaller(first + g->rows.rows_each, g->pixels);
    const float *factors = g->factors + picture * 2 * channels;
    const stored *from = g->rows.from + (picture * g->pixels + first) * channels;
    stored *to = g->rows.to + (picture * g->pixels + first) * channels;
    for (long row = first; row < end; row++, from += channels, to += channels) {
        long c = 0;
        for (; c + LANES <= channels; c += LANES)
            apply_vector(from + c, to + c, factors + c, channels, ALL, kind);
        if (c < channels)
            apply_vector(from + c, to + c, factors + c, channels, first_lanes(channels - c), kind);
    }
}

TARGET static void apply_task(void *context, long task, int worker) {
    (void)worker;
    const struct group_norm *g = context;
    if (g->rows.kind == SILU)
        apply(g, task, SILU);
    else
        apply(g, task, 0);
}

static int group_norm(const void *from, void *to, const void *weight, const void *bias,
                      const long *sizes, float eps, int kind, int threads) {
    struct group_norm g = {
        .rows = {from, weight, bias, to, sizes[1], sizes[2], 0, eps, kind},
        .batch = sizes[0],
        .pixels = sizes[1],
        .groups = sizes[3],
    };
    g.tasks = cut_rows(&g.rows);
    long sums = g.batch * g.tasks * 2 * g.rows.channels, factors = g.batch * 2 * g.rows.channels;
    long moments = g.batch * 2 * g.groups;
    g.moments = take_scratch((size_t)moments * sizeof(double) +
                             (size_t)(sums + factors) * sizeof(float));
    if (!g.moments) return -1;
    g.sums = (float *)(g.moments + moments);
    g.factors = g.sums + sums;
    run_tasks(threads, g.batch * g.tasks, add_up_task, &g);
    run_tasks(threads, g.batch * g.groups, join_task, &g);
    run_tasks(threads, g.batch * g.tasks, apply_task, &g);
    return_scratch(g.moments);
    return 0;
}

static int group_moments(const void *from, double *moments, const long *sizes, int threads) {
    struct group_norm g = {
        .rows = {.from = from, .rows = sizes[1], .channels = sizes[2]},
        .batch = sizes[0],
        .pixels = sizes[1],
        .groups = sizes[3],
        .moments = moments,
    };
    g.tasks = cut_rows(&g.rows);
    g.sums = take_scratch((size_t)(g.batch * g.tasks * 2 * g.rows.channels) * sizeof(float));
    if (!g.sums) return -1;
    run_tasks(threads, g.batch * g.tasks, add_up_task, &g);
    run_tasks(threads, g.batch * g.groups, join_task, &g);
    return_scratch(g.sums);
    return 0;
}

static int scale(const void *from, void *to, float *factors, const long *sizes, int kind,
                 int threads) {
    struct group_norm g = {
        .rows = {.from = from, .to = to, .rows = sizes[1], .channels = sizes[2], .kind = kind},
        .batch = sizes[0],
        .pixels = sizes[1],
        .factors = factors,
    };
    g.tasks = cut_rows(&g.rows);
    run_tasks(threads, g.batch * g.tasks, apply_task, &g);
    return 0;
}

#endif
