/* Linear layers, and convolutions written as one matrix product.
 *
 * A task has up to TASK_ROWS rows, so that weights which no cache holds are read from memory once
 * per so many, and some panels. Of a panel, up to PART words at a time go through all these rows,
 * since more would not stay in the second-level cache; sums of six rows are finished at once after
 * the last part, so that outputs are written while the next ones are computed. Rows that are not
 * what is multiplied are gathered first: (tap, channel) for each output pixel of a convolution, zeros
 * beyond the border; and rows of another type are widened.
 *
 * Weights may have been packed before, or are in the call: each panel's part when its turn comes, if
 * all rows are one task, else all beforehand.
 */
#ifndef SFUMATO_DENSE_H
#define SFUMATO_DENSE_H

#include "gemm.h"
#include "pack.h"
#include "scratch.h"

/* MOST_ROWS: rows that are one task for the sake of weights that are packed in it. */
enum { TASK_ROWS = 3 * PANEL, MOST_ROWS = 1024, PART = 2048 };

/* A product of rows with weights. With `image.taps` at 0 the rows lie in memory. */
struct dense {
    const stored *rows_from;
    stored *to;
    const struct weights *weights; /* in memory; and */
    const element *packed;         /* all panels, or NULL */
    const stored *bias;
    long rows, length, columns;
    long words, part;                       /* of a panel, and of what is multiplied at a time */
    long task_rows, row_tasks, panel_tasks; /* how the work is cut */
    struct {
        long taps, kernel_width, height, width, channels, out_height, out_width, stride, pad_y,
            pad_x;
    } image;
    element *gathered; /* rows of each worker's task, or all if they are one */
    element *panel;    /* part x PANEL for each worker, if they are packed there */
    float *sums;       /* task_rows rows for each worker */
};

/* out = sums + bias, in the type that memory has. */
INLINE void finish_rows(const float *sums, long rows, long columns, const stored *bias, stored *to,
                        long stride) {
    for (long r = 0; r < rows; r++, sums += PANEL, to += stride)
        for (long j = 0; j < columns; j += LANES) {
            some lanes = first_lanes(columns - j);
            vector value = v_load(sums + j);
            if (bias) value = v_add(value, load_row(bias + j, lanes));
            store_row(to + j, value, lanes);
        }
}

/* The pixels under the kernel for output pixels `first` to `first + rows - 1`. */
TARGET static void gather(const struct dense *d, long first, long rows, element *to, long stride) {
    long channels = d->image.channels;
    for (long r = 0; r < rows; r++, to += stride) {
        long pixel = first + r, x = pixel % d->image.out_width;
        long y = pixel / d->image.out_width % d->image.out_height;
        const stored *picture = d->rows_from + pixel / (d->image.out_width * d->image.out_height) *
                                                   d->image.height * d->image.width * channels;
        for (long tap = 0; tap < d->image.taps; tap++) {
            long in_y = y * d->image.stride - d->image.pad_y + tap / d->image.kernel_width;
            long in_x = x * d->image.stride - d->image.pad_x + tap % d->image.kernel_width;
            int inside = in_y >= 0 && in_y < d->image.height && in_x >= 0 && in_x < d->image.width;
            if (inside)
                copy_row(picture + (in_y * d->image.width + in_x) * channels, to + tap * channels,
                         channels);
            else
                memset(to + tap * channels, 0, (size_t)channels * sizeof *to);
        }
        for (long k = d->image.taps * channels; k < stride; k++) to[k] = 0;
    }
}

/* Whether rows are gathered, rather than multiplied where they lie. */
static int gathers(const struct dense *d) {
    return d->image.taps || d->length % PER_WORD || sizeof(stored) != sizeof(element);
}

TARGET static void gather_rows(const struct dense *d, long first, long rows, element *to) {
    const stored *from = d->rows_from + first * d->length;
    long stride = d->words * PER_WORD;
    if (d->image.taps)
        gather(d, first, rows, to, stride);
    else if (stride == d->length)
        copy_row(from, to, rows * d->length);
    else
        for (long r = 0; r < rows; r++, from += d->length, to += stride) {
            copy_row(from, to, d->length);
            memset(to + d->length, 0, (size_t)(stride - d->length) * sizeof *to);
        }
}

static void gather_task(void *context, long task, int worker) {
    (void)worker;
    const struct dense *d = context;
    long first = task * TASK_ROWS;
    gather_rows(d, first, smaller(TASK_ROWS, d->rows - first),
                d->gathered + first * d->words * PER_WORD);
}

/* The rows of a task, `words` apart. */
static const element *rows_of(const struct dense *d, long first, long rows, int worker) {
    const void *in_place = d->rows_from + first * d->length;
    if (!gathers(d)) return in_place;
    if (d->row_tasks == 1) return d->gathered;
    element *to = d->gathered + worker * d->task_rows * d->words * PER_WORD;
    gather_rows(d, first, rows, to);
    return to;
}

/* One panel: `a` are rows from number `first` on. */
TARGET static void multiply_panel(const struct dense *d, long index, const element *a,
                                  long first, long rows, int worker) {
    long column = index * PANEL, columns = smaller(PANEL, d->columns - column);
    int width = panel_width(d->columns, index);
    float *sums = d->sums + worker * d->task_rows * PANEL;
    element *made = d->panel + worker * d->part * PER_WORD * PANEL;
    long start = 0, stride = d->words * PER_WORD;
    do {
        long words = smaller(d->part, d->words - start);
        const element *panel = made;
        if (d->packed)
            panel = d->packed + (column * d->words + start * width) * PER_WORD;
        else
            pack_panel(d->weights, index, start * PER_WORD, words * PER_WORD, made);
        for (long r = 0; r < rows; r += TILE_ROWS) {
            long count = smaller(TILE_ROWS, rows - r);
            multiply_add(a + r * stride + start * PER_WORD, stride, count, panel, words, width,
                         start > 0, sums + r * PANEL);
            if (start + words == d->words)
                finish_rows(sums + r * PANEL, count, columns, d->bias ? d->bias + column : NULL,
                            d->to + (first + r) * d->columns + column, d->columns);
        }
    } while ((start += d->part) < d->words);
}

static void dense_task(void *context, long task, int worker) {
    const struct dense *d = context;
    long first = task / d->panel_tasks * d->task_rows;
    long rows = smaller(d->task_rows, d->rows - first);
    long panels = panel_count(d->columns), part = task % d->panel_tasks;
    const element *a = rows_of(d, first, rows, worker);
    for (long p = panels * part / d->panel_tasks; p < panels * (part + 1) / d->panel_tasks; p++)
        multiply_panel(d, p, a, first, rows, worker);
}

/* Whether each panel is packed by who multiplies it. */
static int packs_in_tasks(const struct dense *d, int threads) {
    return !d->packed && d->weights->taps == 1 && d->length % PER_WORD == 0 &&
           d->rows <= MOST_ROWS && (threads == 1 || panel_count(d->columns) >= 4L * threads);
}

/* Cut the work; `in_tasks` as `packs_in_tasks` has it. */
static void cut_dense(struct dense *d, int in_tasks, int threads) {
    long panels = panel_count(d->columns), wanted = 4L * threads;
    d->words = words_of(d->length);
    long parts = larger(1, (d->words + PART - 1) / PART);
    d->part = round_up((d->words + parts - 1) / parts, LANES);
    d->task_rows = smaller(d->rows, in_tasks ? MOST_ROWS : TASK_ROWS);
    d->row_tasks = (d->rows + d->task_rows - 1) / d->task_rows;
    d->panel_tasks = threads == 1 ? 1 : smaller(panels, (wanted + d->row_tasks - 1) / d->row_tasks);
}

/* Cut the work, take memory, do it. Returns 0, or -1 when there is no memory. */
static int run_dense(struct dense *d, int threads) {
    if (d->rows <= 0) return 0;
    int in_tasks = packs_in_tasks(d, threads);
    cut_dense(d, in_tasks, threads);
    long rows = threads * d->task_rows, own = d->row_tasks == 1 ? d->rows : rows;
    size_t sums = (size_t)(rows * PANEL) * sizeof(float);
    size_t gathered = gathers(d) ? (size_t)(own * d->words * PER_WORD) * sizeof(element) : 0;
    size_t panel = in_tasks ? (size_t)(threads * d->part * PER_WORD * PANEL) * sizeof(element) : 0;
    size_t all = d->packed || in_tasks ? 0 : (size_t)packed_elements(d->weights) * sizeof(element);
    char *scratch = take_scratch(sums + gathered + panel + all + 4 * 64), *free = scratch;
    if (!scratch) return -1;
    d->sums = take_piece(&free, sums);
    d->gathered = take_piece(&free, gathered);
    d->panel = take_piece(&free, panel);
    element *packed = take_piece(&free, all);
    if (all) {
        pack_all(d->weights, packed, threads);
        d->packed = packed;
    }
    if (gathered && d->row_tasks == 1)
        run_tasks(threads, (d->rows + TASK_ROWS - 1) / TASK_ROWS, gather_task, d);
    run_tasks(threads, d->row_tasks * d->panel_tasks, dense_task, d);
    return_scratch(scratch);
    return 0;
}

static int linear(const void *from, void *to, const void *packed, const void *bias, long rows,
                  long length, long columns, int threads) {
    struct dense d = {.rows_from = from, .to = to, .packed = packed, .bias = bias, .rows = rows,
                      .length = length, .columns = columns};
    return run_dense(&d, threads);
}

static int linear_once(const void *from, void *to, const void *weights, const void *bias, long rows,
                       long length, long columns, const long *strides, int threads) {
    const long all_strides[] = {strides[0], strides[1], 0, 0};
    struct weights w = weights_of(weights, columns, length, 1, 1, all_strides);
    struct dense d = {.rows_from = from, .to = to, .weights = &w, .bias = bias, .rows = rows,
                      .length = length, .columns = columns};
    return run_dense(&d, threads);
}

static struct dense convolution_of(const void *from, void *to, const void *bias,
                                   const long *sizes) {
    long taps = sizes[7] * sizes[8];
    int plain = taps == 1 && sizes[9] == 1 && !sizes[10] && !sizes[11] && sizes[3] % PER_WORD == 0;
    struct dense d = {.rows_from = from, .to = to, .bias = bias,
                      .rows = sizes[0] * sizes[4] * sizes[5], .length = taps * sizes[3],
                      .columns = sizes[6],
                      .image = {plain ? 0 : taps, sizes[8], sizes[1], sizes[2], sizes[3], sizes[4],
                                sizes[5], sizes[9], sizes[10], sizes[11]}};
    return d;
}

static int convolve(const void *from, void *to, const void *packed, const void *bias,
                    const long *sizes, int threads) {
    struct dense d = convolution_of(from, to, bias, sizes);
    d.packed = packed;
    return run_dense(&d, threads);
}

static int convolve_once(const void *from, void *to, const void *weights, const void *bias,
                         const long *sizes, const long *strides, int threads) {
    struct weights w = weights_of(weights, sizes[6], sizes[3], sizes[7], sizes[8], strides);
    struct dense d = convolution_of(from, to, bias, sizes);
    d.weights = &w;
    return run_dense(&d, threads);
}

#endif
