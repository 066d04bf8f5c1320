/* Activations and normalisations of rows of channels: what stands between the matrix products.
 *
 * All compute in float32 and round once. Included once per type of element.
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

INLINE __mmask16 lanes_from(long at, long count) {
    return (__mmask16)(count - at >= 16 ? 0xffff : (1u << (count - at)) - 1);
}

INLINE __m512 activation(__m512 x, int kind) {
    switch (kind) {
    case SILU: return swish(x, 1.0f);
    case GELU: return gelu(x);
    case QUICK_GELU: return swish(x, 1.702f);
    default: return x;
    }
}

/* Rows of `channels` elements, cut into tasks of `rows_each`. */
struct rows {
    const element *from, *weight, *bias;
    element *to;
    long rows, channels, rows_each;
    float eps;
    int kind;
};

static long cut_rows(struct rows *r) {
    r->rows_each = larger(1, TASK_ELEMENTS / r->channels);
    return (r->rows + r->rows_each - 1) / r->rows_each;
}

INLINE void activate_16(const struct rows *r, long at, __mmask16 mask, int kind) {
    store_row(r->to + at, activation(load_row(r->from + at, mask), kind), mask);
}

INLINE void activate_some(const struct rows *r, long start, long end, int kind) {
    for (; start + 16 <= end; start += 16) activate_16(r, start, 0xffff, kind);
    if (start < end) activate_16(r, start, lanes_from(start, end), kind);
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

/* An activation of each element: 1 SiLU, 2 GELU with the error function, 3 x sigmoid(1.702 x). */
SFUMATO_EXPORT void EXPORTED(sfumato_activate)(const element *from, element *to, long count,
                                               int kind, int threads) {
    struct rows r = {.from = from, .to = to, .rows = count, .kind = kind};
    run_tasks(threads, (count + TASK_ELEMENTS - 1) / TASK_ELEMENTS, activate_task, &r);
}

INLINE void gate_16(const element *from, const element *gate, element *to, __mmask16 mask) {
    store_row(to, _mm512_mul_ps(load_row(from, mask), gelu(load_row(gate, mask))), mask);
}

TARGET static void gate_task(void *context, long task, int worker) {
    (void)worker;
    const struct rows *r = context;
    const long channels = r->channels, end = smaller((task + 1) * r->rows_each, r->rows);
    for (long row = task * r->rows_each; row < end; row++) {
        const element *from = r->from + 2 * row * channels, *gate = from + channels;
        element *to = r->to + row * channels;
        long c = 0;
        for (; c + 16 <= channels; c += 16) gate_16(from + c, gate + c, to + c, 0xffff);
        if (c < channels) gate_16(from + c, gate + c, to + c, lanes_from(c, channels));
    }
}

/* (rows, 2 channels) to (rows, channels): the first half times the GELU of the second. */
SFUMATO_EXPORT void EXPORTED(sfumato_geglu)(const element *from, element *to, long rows,
                                            long channels, int threads) {
    struct rows r = {.from = from, .to = to, .rows = rows, .channels = channels};
    run_tasks(threads, cut_rows(&r), gate_task, &r);
}

INLINE __m512 load_or(const element *from, long at, __mmask16 mask, float otherwise) {
    return from ? load_row(from + at, mask) : _mm512_set1_ps(otherwise);
}

TARGET static void layer_norm_task(void *context, long task, int worker) {
    (void)worker;
    const struct rows *r = context;
    long end = smaller((task + 1) * r->rows_each, r->rows);
    for (long row = task * r->rows_each; row < end; row++) {
        const element *from = r->from + row * r->channels;
        element *to = r->to + row * r->channels;
        __m512 sum = _mm512_setzero_ps(), squares = sum;
        for (long c = 0; c < r->channels; c += 16)
            sum = _mm512_add_ps(sum, load_row(from + c, lanes_from(c, r->channels)));
        __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)r->channels);
        for (long c = 0; c < r->channels; c += 16) {
            __mmask16 mask = lanes_from(c, r->channels);
            __m512 x = _mm512_maskz_sub_ps(mask, load_row(from + c, mask), mean);
            squares = _mm512_fmadd_ps(x, x, squares);
        }
        float variance = _mm512_reduce_add_ps(squares) / (float)r->channels;
        __m512 factor = _mm512_set1_ps(1.0f / sqrtf(variance + r->eps));
        for (long c = 0; c < r->channels; c += 16) {
            __mmask16 mask = lanes_from(c, r->channels);
            __m512 x = _mm512_mul_ps(_mm512_sub_ps(load_row(from + c, mask), mean), factor);
            x = _mm512_fmadd_ps(x, load_or(r->weight, c, mask, 1.0f),
                                load_or(r->bias, c, mask, 0.0f));
            store_row(to + c, x, mask);
        }
    }
}

/* Each row to mean 0 and variance 1, times `weight`, plus `bias` (each may be NULL). */
SFUMATO_EXPORT void EXPORTED(sfumato_layer_norm)(const element *from, element *to,
                                                 const element *weight, const element *bias,
                                                 long rows, long channels, float eps, int threads) {
    struct rows r = {from, weight, bias, to, rows, channels, 0, eps, 0};
    run_tasks(threads, cut_rows(&r), layer_norm_task, &r);
}

#endif
