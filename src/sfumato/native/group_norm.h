/* Group normalisation of channels-last pictures, with an activation in the same pass.
 *
 * Sums per channel are taken relative to the picture's first pixel, so that a mean far from zero
 * costs no digits; they are float32 within a task and joined in float64.
 */
#ifndef SFUMATO_GROUP_NORM_H
#define SFUMATO_GROUP_NORM_H

#include <string.h>

#include "pointwise.h"

/* Pictures of `pixels` rows of `channels`; `tasks` shares of `rows.rows_each` pixels to each. */
struct group_norm {
    struct rows rows;
    long batch, pixels, groups, tasks;
    float *sums;    /* per picture and task: sums, then sums of squares, of each channel */
    float *factors; /* per picture: factors, then summands, of each channel */
};

/* Add up rows `first` to `end - 1` of one picture, four at a time to spare the sums. */
TARGET static void add_up(const element *picture, long first, long end, long channels,
                          float *sums) {
    float *squares = sums + channels;
    memset(sums, 0, (size_t)(2 * channels) * sizeof *sums);
    for (long row = first; row < end; row += 4) {
        const element *from = picture + row * channels;
        int rows = (int)smaller(end - row, 4);
        for (long c = 0; c < channels; c += 16) {
            __mmask16 mask = lanes_from(c, channels);
            __m512 origin = load_row(picture + c, mask);
            __m512 s = _mm512_maskz_loadu_ps(mask, sums + c);
            __m512 q = _mm512_maskz_loadu_ps(mask, squares + c);
            for (int i = 0; i < rows; i++) {
                __m512 x = _mm512_sub_ps(load_row(from + i * channels + c, mask), origin);
                s = _mm512_add_ps(s, x);
                q = _mm512_fmadd_ps(x, x, q);
            }
            _mm512_mask_storeu_ps(sums + c, mask, s);
            _mm512_mask_storeu_ps(squares + c, mask, q);
        }
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

/* From sums to what each channel is multiplied with and what is added, for one group. */
static void join(const struct group_norm *g, long picture, long group) {
    long channels = g->rows.channels, width = channels / g->groups, first = group * width;
    const element *origin = g->rows.from + picture * g->pixels * channels;
    const float *sums = g->sums + picture * g->tasks * 2 * channels;
    float *factors = g->factors + picture * 2 * channels;
    double total = 0.0, squares = 0.0, n = (double)g->pixels, base = widen(origin[first]);
    for (long c = first; c < first + width; c++) {
        double s = 0.0, q = 0.0, shift = widen(origin[c]) - base;
        for (long task = 0; task < g->tasks; task++) {
            s += sums[task * 2 * channels + c];
            q += sums[task * 2 * channels + channels + c];
        }
        total += s + n * shift;
        squares += q + 2.0 * shift * s + n * shift * shift;
    }
    n *= (double)width;
    double mean = total / n, variance = squares / n - mean * mean;
    double factor = 1.0 / sqrt((variance < 0.0 ? 0.0 : variance) + g->rows.eps);
    for (long c = first; c < first + width; c++) {
        double scaled = factor * (g->rows.weight ? widen(g->rows.weight[c]) : 1.0);
        factors[c] = (float)scaled;
        factors[channels + c] =
            (float)((g->rows.bias ? widen(g->rows.bias[c]) : 0.0) - (mean + base) * scaled);
    }
}

static void join_task(void *context, long task, int worker) {
    (void)worker;
    const struct group_norm *g = context;
    join(g, task / g->groups, task % g->groups);
}

INLINE void apply(const struct group_norm *g, long task, int kind) {
    long channels = g->rows.channels, picture = task / g->tasks;
    long first = task % g->tasks * g->rows.rows_each;
    long end = smaller(first + g->rows.rows_each, g->pixels);
    const float *factors = g->factors + picture * 2 * channels;
    for (long row = picture * g->pixels + first; row < picture * g->pixels + end; row++)
        for (long c = 0; c < channels; c += 16) {
            __mmask16 mask = lanes_from(c, channels);
            __m512 x = load_row(g->rows.from + row * channels + c, mask);
            x = _mm512_fmadd_ps(x, _mm512_maskz_loadu_ps(mask, factors + c),
                                _mm512_maskz_loadu_ps(mask, factors + channels + c));
            store_row(g->rows.to + row * channels + c, activation(x, kind), mask);
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
    size_t bytes = (size_t)(sums + factors) * sizeof(float);
    g.sums = take_scratch(bytes);
    if (!g.sums) return -1;
    g.factors = g.sums + sums;
    run_tasks(threads, g.batch * g.tasks, add_up_task, &g);
    run_tasks(threads, g.batch * g.groups, join_task, &g);
    run_tasks(threads, g.batch * g.tasks, apply_task, &g);
    return_scratch(g.sums, bytes);
    return 0;
}

#endif
