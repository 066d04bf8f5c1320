/* Linear layers and convolutions whose weights are 8-bit integers with a scale per output, and
 * whose input becomes 8-bit integers on the way: x is about scale * q + low, with a scale and low
 * of its own for each row (linear layers) or each picture (convolutions).
 *
 * So sum(x * w) is about weight_scale * (scale * sum(q * w) + low * sum(w)), where sum(w) is known
 * beforehand: `offsets` has weight_scale * sum(w).
 */
#include "cpu.h"

#if SFUMATO_X86
#include "element_int8.h"

#include "gemm.h"
#include "scratch.h"
#include "steps_int8.h"
#include "threads.h"

enum { SOME_ROWS = 48, TASK_ROWS = 192, PIECE = 16384 };

struct layer {
    const void *from;
    void *to;
    int bfloat16; /* of input and output; else float32 */
    const element *packed;
    const float *scales, *offsets, *bias;
    long rows, length, columns, words, row_tasks, panel_tasks;
    long height, width, channels, out_height, out_width, kernel_width, stride, pad_y, pad_x, taps;
    long batch, pieces;
    struct range *ranges; /* of each picture */
    uint8_t *zeros;       /* the integers that stand for zero there */
    float *extremes;      /* smallest and largest number of each piece of each picture */
    element *quantised, *gathered;
    float *sums;
};

/* Rows of a linear layer from their place to 8 bits. */
static void quantise_rows(const struct layer *l, long first, long rows, element *to,
                          struct range *ranges) {
    long stride = l->words * PER_WORD;
    for (long r = 0; r < rows; r++, to += stride) {
        long start = (first + r) * l->length;
        float low, high;
        find_extremes(l->from, start, l->length, l->bfloat16, &low, &high);
        float scale = (high - low) / 255, inverse = inverse_of(scale);
        quantise(l->from, start, l->length, l->bfloat16, inverse, -low * inverse, to);
        for (long k = l->length; k < stride; k++) to[k] = 0;
        ranges[r] = (struct range){scale, low};
    }
}

/* The quantised pixels under the kernel for output pixels `first` to `first + rows - 1`. */
static void gather_rows(const struct layer *l, long first, long rows, element *to,
                        struct range *ranges) {
    size_t channels = (size_t)l->channels;
    long stride = l->words * PER_WORD, area = l->out_height * l->out_width;
    for (long r = 0; r < rows; r++, to += stride) {
        long pixel = first + r, x = pixel % l->out_width * l->stride - l->pad_x;
        long y = pixel / l->out_width % l->out_height * l->stride - l->pad_y;
        const element *picture = l->quantised + pixel / area * l->height * l->width * l->channels;
        ranges[r] = l->ranges[pixel / area];
        element *at = to;
        for (long tap = 0; tap < l->taps; tap++, at += channels) {
            long in_y = y + tap / l->kernel_width, in_x = x + tap % l->kernel_width;
            if (in_y >= 0 && in_y < l->height && in_x >= 0 && in_x < l->width)
                memcpy(at, picture + (in_y * l->width + in_x) * l->channels, channels);
            else
                memset(at, l->zeros[pixel / area], channels);
        }
        memset(at, 0, (size_t)(to + stride - at));
    }
}

/* Outputs of one or two vectors of columns, from column `n` of the matrix on. */
NUMBERS void finish_columns(const struct layer *l, const float *sums, const struct range *ranges,
                            long first, long rows, long n, const int vectors, int bfloat16) {
    __m512 scales[2], offsets[2], bias[2];
    __mmask16 masks[2];
    for (int j = 0; j < vectors; j++) {
        long at = n + 16 * j;
        masks[j] = first_lanes(l->columns - at);
        scales[j] = _mm512_maskz_loadu_ps(masks[j], l->scales + at);
        offsets[j] = _mm512_maskz_loadu_ps(masks[j], l->offsets + at);
        bias[j] = l->bias ? _mm512_maskz_loadu_ps(masks[j], l->bias + at) : _mm512_setzero_ps();
    }
    long to = first * l->columns + n;
    for (long r = 0; r < rows; r++, sums += PANEL, to += l->columns) {
        __m512 y[2];
        for (int j = 0; j < vectors; j++)
            y[j] = restored(sums + 16 * j, ranges[r], scales[j], offsets[j], bias[j]);
        if (vectors == 2)
            store_two(l->to, to, bfloat16, y[0], y[1]);
        else
            store_some(l->to, to, masks[0], bfloat16, y[0]);
    }
}

TARGET static void finish(const struct layer *l, const float *sums, const struct range *ranges,
                          long first, long rows, long column) {
    long stop = smaller(column + PANEL, l->columns), n = column;
    for (; n + 32 <= stop; n += 32, sums += 32)
        if (l->bfloat16)
            finish_columns(l, sums, ranges, first, rows, n, 2, 1);
        else
            finish_columns(l, sums, ranges, first, rows, n, 2, 0);
    for (; n < stop; n += 16, sums += 16)
        finish_columns(l, sums, ranges, first, rows, n, 1, l->bfloat16);
}

static void layer_task(void *context, long task, int worker) {
    const struct layer *l = context;
    long stride = l->words * PER_WORD, first = task / l->panel_tasks * TASK_ROWS;
    long rows = smaller(TASK_ROWS, l->rows - first), panels = panel_count(l->columns);
    long part = task % l->panel_tasks;
    float *sums = l->sums + (long)worker * SOME_ROWS * PANEL;
    element *a = l->gathered + worker * TASK_ROWS * stride;
    struct range ranges[TASK_ROWS];
    if (l->taps)
        gather_rows(l, first, rows, a, ranges);
    else
        quantise_rows(l, first, rows, a, ranges);
    for (long p = panels * part / l->panel_tasks; p < panels * (part + 1) / l->panel_tasks; p++)
        for (long r = 0; r < rows; r += SOME_ROWS) {
            long count = smaller(SOME_ROWS, rows - r);
            multiply(a + r * stride, stride, count, l->packed + p * PANEL * stride, l->words,
                     panel_width(l->columns, p), sums);
            finish(l, sums, ranges + r, first + r, count, p * PANEL);
        }
}

static void extremes_task(void *context, long task, int worker) {
    const struct layer *l = context;
    long numbers = l->height * l->width * l->channels, start = task % l->pieces * PIECE;
    (void)worker;
    find_extremes(l->from, task / l->pieces * numbers + start, smaller(PIECE, numbers - start),
                  l->bfloat16, l->extremes + 2 * task, l->extremes + 2 * task + 1);
}

static void picture_task(void *context, long task, int worker) {
    const struct layer *l = context;
    long numbers = l->height * l->width * l->channels, picture = task / l->pieces;
    long start = task % l->pieces * PIECE, at = picture * numbers + start;
    struct range range = l->ranges[picture];
    (void)worker;
    quantise(l->from, at, smaller(PIECE, numbers - start), l->bfloat16,
             inverse_of(range.scale), l->zeros[picture], l->quantised + at);
}

/* Pictures to 8 bits; zero, which lies beyond their borders, has to be one of the values. */
static void quantise_pictures(struct layer *l, int threads) {
    run_tasks(threads, l->batch * l->pieces, extremes_task, l);
    for (long b = 0; b < l->batch; b++) {
        float low = 0, high = 0;
        for (long i = b * l->pieces; i < (b + 1) * l->pieces; i++) {
            low = fminf(low, l->extremes[2 * i]);
            high = fmaxf(high, l->extremes[2 * i + 1]);
        }
        float scale = (high - low) / 255, zero = scale > 0 ? nearbyintf(-low / scale) : 0;
        l->ranges[b] = (struct range){scale, -zero * scale};
        l->zeros[b] = (uint8_t)zero;
    }
    run_tasks(threads, l->batch * l->pieces, picture_task, l);
}

/* Cut the work, take memory, do it. Returns 0, or -1 when there is no memory. */
static int run_layer(struct layer *l, int threads) {
    long panels = panel_count(l->columns), wanted = 4L * threads;
    l->words = (l->length + PER_WORD - 1) / PER_WORD;
    l->row_tasks = (l->rows + TASK_ROWS - 1) / TASK_ROWS;
    l->panel_tasks = threads == 1 ? 1 : smaller(panels, (wanted + l->row_tasks - 1) / l->row_tasks);
    long numbers = l->batch * l->height * l->width * l->channels;
    l->pieces = l->taps ? (l->height * l->width * l->channels + PIECE - 1) / PIECE : 0;
    long parts[] = {threads * SOME_ROWS * PANEL * (long)sizeof(float),
                    threads * TASK_ROWS * l->words * PER_WORD, l->taps ? numbers : 0,
                    l->batch * l->pieces * 2 * (long)sizeof(float),
                    l->batch * (long)sizeof(struct range), l->batch};
    long bytes = 0, starts[6];
    for (int i = 0; i < 6; i++) starts[i] = bytes, bytes += round_up(parts[i], 64);
    char *scratch = take_scratch((size_t)bytes);
    if (!scratch) return -1;
    l->sums = (float *)(scratch + starts[0]);
    l->gathered = (element *)(scratch + starts[1]);
    l->quantised = (element *)(scratch + starts[2]);
    l->extremes = (float *)(scratch + starts[3]);
    l->ranges = (struct range *)(scratch + starts[4]);
    l->zeros = (uint8_t *)(scratch + starts[5]);
    if (l->taps) quantise_pictures(l, threads);
    run_tasks(threads, l->row_tasks * l->panel_tasks, layer_task, l);
    return_scratch(scratch);
    return 0;
}

/* to (rows, columns) = from (rows, length) times packed weights, plus bias (or NULL). */
SFUMATO_EXPORT int sfumato_linear_int8(const void *from, void *to, int bfloat16,
                                       const element *packed, const float *scales,
                                       const float *offsets, const float *bias, long rows,
                                       long length, long columns, int threads) {
    struct layer l = {.from = from, .to = to, .bfloat16 = bfloat16, .packed = packed,
                      .scales = scales, .offsets = offsets, .bias = bias, .rows = rows,
                      .length = length, .columns = columns};
    return run_layer(&l, threads);
}

/* A convolution of channels-last pictures. `sizes`: batch, height, width, channels, out_height,
 * out_width, out_channels, kernel height, kernel width, stride, padding above, padding left. */
SFUMATO_EXPORT int sfumato_convolve_int8(const void *from, void *to, int bfloat16,
                                         const element *packed, const float *scales,
                                         const float *offsets, const float *bias,
                                         const long *sizes, int threads) {
    struct layer l = {.from = from, .to = to, .bfloat16 = bfloat16, .packed = packed,
                      .scales = scales, .offsets = offsets, .bias = bias, .batch = sizes[0],
                      .height = sizes[1], .width = sizes[2], .channels = sizes[3],
                      .out_height = sizes[4], .out_width = sizes[5], .columns = sizes[6],
                      .taps = sizes[7] * sizes[8], .kernel_width = sizes[8], .stride = sizes[9],
                      .pad_y = sizes[10], .pad_x = sizes[11]};
    l.rows = l.batch * l.out_height * l.out_width;
    l.length = l.taps * l.channels;
    return run_layer(&l, threads);
}
#endif
