/* Linear layers, and convolutions written as one matrix product.
 *
 * Rows are taken 48 at a time for each panel: with them stay the panel and the sums in the second
 * cache. A task has up to 192 rows, so that weights which no cache holds are read from memory
 * once per 192 rows. Rows of a convolution with a kernel of more than one pixel are gathered first:
 * (tap, channel) for each output pixel, 48 of them, zeros beyond the border.
 */
#ifndef SFUMATO_DENSE_H
#define SFUMATO_DENSE_H

#include "gemm.h"
#include "pack.h"
#include "scratch.h"

enum { SOME_ROWS = 48, TASK_ROWS = 192 };

/* A product of rows with packed weights. With `image.taps` at 0 the rows lie in memory. */
struct dense {
    const element *rows_from;
    element *to;
    const element *packed;
    const element *bias;
    long rows, length, columns;
    long row_tasks, panel_tasks; /* how the work is cut */
    struct {
        long taps, kernel_width, height, width, channels, out_height, out_width, stride, pad_y,
            pad_x;
    } image;
    element *gathered; /* TASK_ROWS rows for each worker */
    float *sums;       /* SOME_ROWS rows for each worker */
};

/* out = sums + bias, in the type of the elements. */
TARGET static void finish_rows(const float *sums, long rows, long columns, const element *bias,
                               element *to, long stride) {
    for (long r = 0; r < rows; r++, sums += PANEL, to += stride)
        for (long j = 0; 16 * j < columns; j++) {
            __mmask16 mask = lanes(columns, j);
            __m512 value = _mm512_load_ps(sums + 16 * j);
            if (bias) value = _mm512_add_ps(value, load_row(bias + 16 * j, mask));
            store_row(to + 16 * j, value, mask);
        }
}

/* The pixels under the kernel for output pixels `first` to `first + rows - 1`. */
static void gather(const struct dense *d, long first, long rows, element *to, long stride) {
    long channels = d->image.channels;
    for (long r = 0; r < rows; r++, to += stride) {
        long pixel = first + r, x = pixel % d->image.out_width;
        long y = pixel / d->image.out_width % d->image.out_height;
        const element *picture = d->rows_from + pixel / (d->image.out_width * d->image.out_height) *
                                                    d->image.height * d->image.width * channels;
        for (long tap = 0; tap < d->image.taps; tap++) {
            long in_y = y * d->image.stride - d->image.pad_y + tap / d->image.kernel_width;
            long in_x = x * d->image.stride - d->image.pad_x + tap % d->image.kernel_width;
            int inside = in_y >= 0 && in_y < d->image.height && in_x >= 0 && in_x < d->image.width;
            size_t bytes = (size_t)channels * sizeof *to;
            if (inside)
                memcpy(to + tap * channels, picture + (in_y * d->image.width + in_x) * channels,
                       bytes);
            else
                memset(to + tap * channels, 0, bytes);
        }
        for (long k = d->image.taps * channels; k < stride; k++) to[k] = 0;
    }
}

static void dense_task(void *context, long task, int worker) {
    const struct dense *d = context;
    long words = words_of(d->length), stride = d->image.taps ? words * PER_WORD : d->length;
    long first = task / d->panel_tasks * TASK_ROWS, rows = smaller(TASK_ROWS, d->rows - first);
    long panels = panel_count(d->columns), part = task % d->panel_tasks;
    float *sums = d->sums + (long)worker * SOME_ROWS * PANEL;
    const element *a = d->rows_from + first * stride;
    if (d->image.taps) {
        element *gathered = d->gathered + worker * TASK_ROWS * stride;
        gather(d, first, rows, gathered, stride);
        a = gathered;
    }
    for (long p = panels * part / d->panel_tasks; p < panels * (part + 1) / d->panel_tasks; p++)
        for (long r = 0; r < rows; r += SOME_ROWS) {
            long count = smaller(SOME_ROWS, rows - r), column = p * PANEL;
            multiply(a + r * stride, stride, count, d->packed + column * words * PER_WORD, words,
                     panel_width(d->columns, p), sums);
            finish_rows(sums, count, smaller(PANEL, d->columns - column),
                        d->bias ? d->bias + column : NULL,
                        d->to + (first + r) * d->columns + column, d->columns);
        }
}

/* Cut the work, take memory, do it. Returns 0, or -1 when there is no memory. */
static int run_dense(struct dense *d, int threads) {
    long panels = panel_count(d->columns), wanted = 4L * threads;
    d->row_tasks = (d->rows + TASK_ROWS - 1) / TASK_ROWS;
    d->panel_tasks = threads == 1 ? 1 : smaller(panels, (wanted + d->row_tasks - 1) / d->row_tasks);
    long row_bytes = d->image.taps ? words_of(d->length) * PER_WORD * (long)sizeof(element) : 0;
    size_t sums = (size_t)threads * SOME_ROWS * PANEL * sizeof(float);
    size_t bytes = sums + (size_t)(threads * TASK_ROWS * row_bytes);
    char *scratch = take_scratch(bytes);
    if (!scratch) return -1;
    d->sums = (float *)scratch;
    d->gathered = (element *)(scratch + sums);
    run_tasks(threads, d->row_tasks * d->panel_tasks, dense_task, d);
    return_scratch(scratch);
    return 0;
}

/* to (rows, columns) = from (rows, length) times packed weights, plus bias (or NULL).
 * `length` has to be even for bfloat16. */
SFUMATO_EXPORT int EXPORTED(sfumato_linear)(const element *from, element *to, const element *packed,
                                            const element *bias, long rows, long length,
                                            long columns, int threads) {
    struct dense d = {.rows_from = from, .to = to, .packed = packed, .bias = bias, .rows = rows,
                      .length = length, .columns = columns};
    return run_dense(&d, threads);
}

/* A convolution of channels-last pictures. `sizes`: batch, height, width, channels, out_height,
 * out_width, out_channels, kernel height, kernel width, stride, padding above, padding left. */
SFUMATO_EXPORT int EXPORTED(sfumato_convolve)(const element *from, element *to,
                                              const element *packed, const element *bias,
                                              const long *sizes, int threads) {
    long taps = sizes[7] * sizes[8];
    int plain = taps == 1 && sizes[9] == 1 && !sizes[10] && !sizes[11] && sizes[3] % PER_WORD == 0;
    struct dense d = {.rows_from = from, .to = to, .packed = packed, .bias = bias,
                      .rows = sizes[0] * sizes[4] * sizes[5], .length = taps * sizes[3],
                      .columns = sizes[6],
                      .image = {plain ? 0 : taps, sizes[8], sizes[1], sizes[2], sizes[3], sizes[4],
                                sizes[5], sizes[9], sizes[10], sizes[11]}};
    return run_dense(&d, threads);
}

#endif
