/* Activations and normalisations of rows of channels: what stands between the matrix products.
 *
 * All compute in float32 and round once. Included once per type in memory.
 */
#ifndef SFUMATO_POINTWISE_H
#define SFUMATO_POINTWISE_H

#include <math.h>

#include "exponential.h"
#include "scratch.h"
#include "threads.h"

enum { SILU = 1, GELU = 2, QUICK_GELU = 3 };
/* Elements to a task: enough to be worth handing out. */
enum { TASK_ELEMENTS = 1 << 16 };

INLINE vector activation(vector x, int kind) {
    switch (kind) {
    case SILU: return swish(x, 1.0f);
    case GELU: return gelu(x);
    case QUICK_GELU: return swish(x, 1.702f);
    default: return x;
    }
}

/* Rows of `channels` elements, cut into tasks of `rows_each`. */
struct rows {
    const stored *from, *weight, *bias;
    stored *to;
    long rows, channels, rows_each;
    float eps;
    int kind;
};

static long cut_rows(struct rows *r) {
    r->rows_each = larger(1, TASK_ELEMENTS / r->channels);
    return (r->rows + r->rows_each - 1) / r->rows_each;
}

INLINE void activate_vector(const struct rows *r, long at, some lanes, int kind) {
    store_row(r->to + at, activation(load_row(r->from + at, lanes), kind), lanes);
}

INLINE void activate_some(const struct rows *r, long start, long end, int kind) {
    for (; start + LANES <= end; start += LANES) activate_vector(r, start, ALL, kind);
    if (start < end) activate_vector(r, start, first_lanes(end - start), kind);
}

TARGET static void activate_task(void *context, long task, int worker) {
    (void)worker;
    const struct rows *r = context;
    long start = task * TASK_ELEMENTS, end = smaller(start + TASK_ELEMENTS, r->rows);
    switch (r->kind) {
    case SILU: activate_some(r, start, end, SILU); break;
    case GELU: activate_some(r, start, end, GELU); break;
    case QUICK_GELU: activate_some(r, start, end, QUICK_GELU); break;
    }
}

static int activate(const void *from, void *to, long count, int kind, int threads) {
    struct rows r = {.from = from, .to = to, .rows = count, .kind = kind};
    run_tasks(threads, (count + TASK_ELEMENTS - 1) / TASK_ELEMENTS, activate_task, &r);
    return 0;
}

INLINE void gate_vector(const stored *from, const stored *gate, stored *to, some lanes) {
    store_row(to, v_mul(load_row(from, lanes), gelu(load_row(gate, lanes))), lanes);
}

TARGET static void gate_task(void *context, long task, int worker) {
    (void)worker;
    const struct rows *r = context;
    const long channels = r->channels, end = smaller((task + 1) * r->rows_each, r->rows);
    for (long row = task * r->rows_each; row < end; row++) {
        const stored *from = r->from + 2 * row * channels, *gate = from + channels;
        stored *to = r->to + row * channels;
        long c = 0;
        for (; c + LANES <= channels; c += LANES) gate_vector(from + c, gate + c, to + c, ALL);
        if (c < channels) gate_vector(from + c, gate + c, to + c, first_lanes(channels - c));
    }
}

static int geglu(const void *from, void *to, long rows, long channels, int threads) {
    struct rows r = {.from = from, .to = to, .rows = rows, .channels = channels};
    run_tasks(threads, cut_rows(&r), gate_task, &r);
    return 0;
}

INLINE vector load_or(const stored *from, long at, some lanes, float otherwise) {
    return from ? load_row(from + at, lanes) : v_all(otherwise);
}

TARGET static void layer_norm_task(void *context, long task, int worker) {
    (void)worker;
    const struct rows *r = context;
    const long channels = r->channels, end = smaller((task + 1) * r->rows_each, r->rows);
    for (long row = task * r->rows_each; row < end; row++) {
        const stored *from = r->from + row * channels;
        stored *to = r->to + row * channels;
        vector sum = v_zero(), squares = sum;
        for (long c = 0; c < channels; c += LANES)
            sum = v_add(sum, load_row(from + c, first_lanes(channels - c)));
        vector mean = v_all(v_sum(sum) / (float)channels);
        for (long c = 0; c < channels; c += LANES) {
            some lanes = first_lanes(channels - c);
            vector x = v_keep(v_sub(load_row(from + c, lanes), mean), lanes);
            squares = v_mul_add(x, x, squares);
        }
        float variance = v_sum(squares) / (float)channels;
        vector factor = v_all(1.0f / sqrtf(variance + r->eps));
        for (long c = 0; c < channels; c += LANES) {
            some lanes = first_lanes(channels - c);
            vector x = v_mul(v_sub(load_row(from + c, lanes), mean), factor);
            x = v_mul_add(x, load_or(r->weight, c, lanes, 1.0f), load_or(r->bias, c, lanes, 0.0f));
            store_row(to + c, x, lanes);
        }
    }
}

static int layer_norm(const void *from, void *to, const void *weight, const void *bias, long rows,
                      long channels, float eps, int threads) {
    struct rows r = {from, weight, bias, to, rows, channels, 0, eps, 0};
    run_tasks(threads, cut_rows(&r), layer_norm_task, &r);
    return 0;
}

#endif
