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
enum { WIDE = 4, SOME_ROWS = 8 };
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

/* Add `rows` rows of `vectors` times 16 channels to their sums. */
INLINE void add_rows(int vectors, __mmask16 mask, const element *from, const element *origins,
                     long rows, long channels, float *sums) {
    __m512 s[WIDE], q[WIDE], origin[WIDE];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        origin[v] = load_row(origins + 16 * v, mask);
        s[v] = _mm512_maskz_loadu_ps(mask, sums + 16 * v);
        q[v] = _mm512_maskz_loadu_ps(mask, sums + channels + 16 * v);
    }
    for (long row = 0; row < rows; row++, from += channels) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            __m512 x = _mm512_sub_ps(load_row(from + 16 * v, mask), origin[v]);
            s[v] = _mm512_add_ps(s[v], x);
            q[v] = _mm512_fmadd_ps(x, x, q[v]);
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        _mm512_mask_storeu_ps(sums + 16 * v, mask, s[v]);
        _mm512_mask_storeu_ps(sums + channels + 16 * v, mask, q[v]);
    }
}

/* Add up rows `first` to `end - 1` of one picture, some at a time, which stay in the cache. */
TARGET static void add_up(const element *picture, long first, long end, long channels,
                          float *sums) {
    memset(sums, 0, (size_t)(2 * channels) * sizeof *sums);
    for (long row = first; row < end; row += SOME_ROWS) {
        const element *from = picture + row * channels;
        long rows = smaller(end - row, SOME_ROWS), c = 0;
        for (; c + 16 * WIDE <= channels; c += 16 * WIDE)
            add_rows(WIDE, 0xffff, from + c, picture + c, rows, channels, sums + c);
        for (; c < channels; c += 16)
            add_rows(1, lanes_from(c, channels), from + c, picture + c, rows, channels, sums + c);
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
    const element *origin = g->rows.from + picture * g->pixels * channels;
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

INLINE void apply_16(const element *from, element *to, const float *factors, long channels,
                     __mmask16 mask, int kind) {
    __m512 x = _mm512_fmadd_ps(load_row(from, mask), _mm512_maskz_loadu_ps(mask, factors),
                               _mm512_maskz_loadu_ps(mask, factors + channels));
    store_row(to, activation(x, kind), mask);
}

INLINE void apply(const struct group_norm *g, long task, int kind) {
    const long channels = g->rows.channels, picture = task / g->tasks;
    const long first = task % g->tasks * g->rows.rows_each;
    const long end = smaller(first + g->rows.rows_each, g->pixels);
    const float *factors = g->factors + picture * 2 * channels;
    const element *from = g->rows.from + (picture * g->pixels + first) * channels;
    element *to = g->rows.to + (picture * g->pixels + first) * channels;
    for (long row = first; row < end; row++, from += channels, to += channels) {
        long c = 0;
        for (; c + 16 <= channels; c += 16)
            apply_16(from + c, to + c, factors + c, channels, 0xffff, kind);
        if (c < channels)
            apply_16(from + c, to + c, factors + c, channels, lanes_from(c, channels), kind);
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

/* Each group of channels of each picture to mean 0 and variance 1, times `weight`, plus `bias`
 * (each may be NULL), then SiLU if `kind` is 1. `sizes`: batch, pixels, channels, groups. Returns
 * 0, or -1 when there is no memory. */
SFUMATO_EXPORT int EXPORTED(sfumato_group_norm)(const element *from, element *to,
                                                const element *weight, const element *bias,
                                                const long *sizes, float eps, int kind,
                                                int threads) {
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

/* The moments of each group of channels of each picture: pairs of the mean and of the sum of
 * squares around it. For maps of which only a part is in memory at a time; sizes as above. */
SFUMATO_EXPORT int EXPORTED(sfumato_group_moments)(const element *from, double *moments,
                                                   const long *sizes, int threads) {
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

/* Each channel of each picture times a factor plus a summand (`factors`: for each picture those of
 * all channels, then these), then SiLU if `kind` is 1. `sizes`: batch, pixels, channels. */
SFUMATO_EXPORT void EXPORTED(sfumato_scale)(const element *from, element *to, float *factors,
                                            const long *sizes, int kind, int threads) {
    struct group_norm g = {
        .rows = {.from = from, .to = to, .rows = sizes[1], .channels = sizes[2], .kind = kind},
        .batch = sizes[0],
        .pixels = sizes[1],
        .factors = factors,
    };
    g.tasks = cut_rows(&g.rows);
    run_tasks(threads, g.batch * g.tasks, apply_task, &g);
}

#endif
