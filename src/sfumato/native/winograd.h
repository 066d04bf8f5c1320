/* 3x3 convolution with stride 1 and padding 1 by Winograd's method, over channels-last maps.
 *
 * The map is cut into tiles of (size - 2) x (size - 2) outputs. Each tile's size x size inputs are
 * transformed (in float32), so that the convolution becomes size * size products of matrices,
 * (tiles, channels) x (channels, out channels), one for each place in the tile; a second transform
 * turns the sums into outputs. With size 4 that is 2.25 times fewer multiplications than the
 * direct way, with size 6 four times.
 *
 * A task is a group of tiles and a range of panels of 64 output channels. Its transformed inputs
 * stay in the second-level cache (or, with very many channels, stream from the third) while one
 * panel after the other goes through all products and the output transform; the sums of one panel
 * never leave the cache. Weights stream by once per group.
 *
 * Weights may have been transformed before, or are in the call. Then a small map is one group, for
 * which panels are made when their turn comes, some channels at a time, so that only that part
 * exists and lies in a cache; for more groups all panels are made first.
 */
#ifndef SFUMATO_WINOGRAD_H
#define SFUMATO_WINOGRAD_H

#include "gemm.h"
#include "scratch.h"
#include "threads.h"
#include "winograd_steps.h"
#include "winograd_weights.h"

/* Tiles in the largest group. */
enum { MOST_TILES = 192 };

struct winograd {
    const stored *from;
    stored *to;
    const element *packed;                 /* all panels; or NULL, */
    const struct winograd_weights *weights; /* from which they are made */
    const stored *bias;
    long batch, height, width, channels, columns;
    int size;
    long down, across, tiles; /* tiles in a column, in a row, in the batch */
    long length;              /* channels, filled up to whole blocks of 32 */
    long group, panel_tasks;  /* how the work is cut */
    element *inputs;          /* size * size x group x length for each worker */
    float *sums;              /* size * size x group x PANEL for each worker */
    long part;                /* channels of a panel that are made at a time */
    element *panel;           /* size * size x part x PANEL for each worker, if made here */
    long *held;               /* 1 + the group whose inputs each worker has transformed */
    const stored *zeros;      /* what lies beyond the border */
};

struct place { long picture, y, x; };

static inline struct place place_of(const struct winograd *w, long tile) {
    struct place p = {tile / (w->down * w->across), 0, 0};
    p.y = tile / w->across % w->down * (w->size - 2);
    p.x = tile % w->across * (w->size - 2);
    return p;
}

/* Transform the inputs of one tile; `to` for the first product, the next ones `gap` further. */
INLINE void transform_inputs(const int size, const struct winograd *w, long tile, element *to,
                             long gap) {
    struct place p = place_of(w, tile);
    const stored *pixel[MOST_SIZE * MOST_SIZE];
    for (int i = 0; i < size * size; i++) {
        long y = p.y + i / size - 1, x = p.x + i % size - 1;
        int inside = y >= 0 && y < w->height && x >= 0 && x < w->width;
        pixel[i] = inside ? w->from + ((p.picture * w->height + y) * w->width + x) * w->channels
                          : w->zeros;
    }
    for (long c = 0; c < w->length; c += 2 * LANES) {
        vector first[MOST_SIZE * MOST_SIZE], second[MOST_SIZE * MOST_SIZE];
        vector u[MOST_SIZE * MOST_SIZE], v[MOST_SIZE * MOST_SIZE];
#pragma GCC unroll 36
        for (int i = 0; i < size * size; i++)
            load_block(pixel[i] + c, w->channels - c, &first[i], &second[i]);
        input_square(size, first, u);
        input_square(size, second, v);
#pragma GCC unroll 36
        for (int i = 0; i < size * size; i++) store_block(to + i * gap + c, u[i], v[i]);
    }
}

/* Turn the sums of one tile and panel into outputs. */
INLINE void transform_sums(const int size, const struct winograd *w, long tile, long column,
                           const float *sums, long gap) {
    const int outputs = size - 2;
    struct place p = place_of(w, tile);
    long columns = smaller(PANEL, w->columns - column);
    long rows = smaller(outputs, w->height - p.y), across = smaller(outputs, w->width - p.x);
    stored *to = w->to + ((p.picture * w->height + p.y) * w->width + p.x) * w->columns + column;
    for (long j = 0; j < columns; j += LANES) {
        some lanes = first_lanes(columns - j);
        vector in[MOST_SIZE * MOST_SIZE], out[MOST_SIZE * MOST_SIZE];
        vector bias = w->bias ? load_row(w->bias + column + j, lanes) : v_zero();
#pragma GCC unroll 36
        for (int i = 0; i < size * size; i++) in[i] = v_load(sums + i * gap + j);
        output_square(size, in, out);
#pragma GCC unroll 4
        for (int y = 0; y < outputs; y++)
#pragma GCC unroll 4
            for (int x = 0; x < outputs; x++)
                if (y < rows && x < across)
                    store_row(to + (y * w->width + x) * w->columns + j,
                              v_add(out[y * outputs + x], bias), lanes);
    }
}

/* All products of `count` tiles with one panel, of which `w->part` channels are made at a time. */
static void multiply_places(const struct winograd *w, long index, long count,
                            const element *inputs, float *sums, int worker) {
    int products = w->size * w->size, width = panel_width(w->columns, index);
    element *made = w->panel + worker * products * w->part * PANEL;
    for (long first = 0; first < w->length; first += w->part) {
        long channels = smaller(w->part, w->length - first);
        const element *panel = made;
        if (w->packed)
            panel = w->packed + index * products * w->length * PANEL;
        else
            transform_panel(w->weights, index, first, channels, made);
        for (int i = 0; i < products; i++)
            multiply_add(inputs + i * w->group * w->length + first, w->length, count,
                         panel + i * width * channels, channels / PER_WORD, width, first > 0,
                         sums + i * w->group * PANEL);
    }
}

INLINE void winograd_group(const int size, const struct winograd *w, long task, int worker) {
    const int products = size * size;
    long panels = panel_count(w->columns), part = task % w->panel_tasks;
    long index = task / w->panel_tasks, first = index * w->group;
    long count = smaller(w->group, w->tiles - first);
    long gap = w->group * w->length;
    element *inputs = w->inputs + worker * products * gap;
    float *sums = w->sums + worker * products * w->group * PANEL;
    for (long t = 0; t < count && w->held[worker] != index + 1; t++)
        transform_inputs(size, w, first + t, inputs + t * w->length, gap);
    w->held[worker] = index + 1;
    for (long p = panels * part / w->panel_tasks; p < panels * (part + 1) / w->panel_tasks; p++) {
        multiply_places(w, p, count, inputs, sums, worker);
        for (long t = 0; t < count; t++)
            transform_sums(size, w, first + t, p * PANEL, sums + t * PANEL, w->group * PANEL);
    }
}

TARGET static void winograd_task_4(void *context, long task, int worker) {
    winograd_group(4, context, task, worker);
}

TARGET static void winograd_task_6(void *context, long task, int worker) {
    winograd_group(6, context, task, worker);
}

/* Tiles per group: the transformed inputs take about half a megabyte, but a group has at least
 * 48 tiles (more would be better for the weights' sake) and at most what there is. */
static long group_size(const struct winograd *w) {
    long all = round_up(w->tiles, TILE_ROWS);
    if (w->weights && w->tiles <= MOST_TILES) return all;
    long bytes = w->size * w->size * w->length * (long)sizeof(element);
    long group = larger(48, (512L << 10) / bytes / 12 * 12);
    return smaller(smaller(group, MOST_TILES), all);
}

/* Channels of a panel to make at a time: those that take some 600 KiB, of which most is still in the
 * second-level cache when it is multiplied, while sums are not taken up again too often. */
static long part_size(const struct winograd *w) {
    long bytes = w->size * w->size * PANEL * (long)sizeof(element);
    return smaller((600L << 10) / bytes / 32 * 32, w->length);
}

/* Cut the work, take memory, do it. Returns 0, or -1 when there is no memory. */
static int run_winograd(struct winograd *w, const long *sizes, int threads) {
    long outputs = w->size - 2, products = w->size * w->size;
    w->down = (w->height + outputs - 1) / outputs;
    w->across = (w->width + outputs - 1) / outputs;
    w->tiles = w->batch * w->down * w->across;
    w->length = round_up(w->channels, 32);
    w->group = sizes[6] ? sizes[6] : group_size(w);
    long groups = (w->tiles + w->group - 1) / w->group, panels = panel_count(w->columns);
    w->panel_tasks = threads == 1 ? 1 : smaller(panels, (3L * threads + groups - 1) / groups);
    size_t inputs = (size_t)(threads * products * w->group * w->length) * sizeof(element);
    size_t sums = (size_t)(threads * products * w->group * PANEL) * sizeof(float);
    size_t all_panels = (size_t)(products * w->length * round_up(w->columns, 16)) * sizeof(element);
    w->part = w->weights && groups == 1 ? part_size(w) : w->length;
    size_t parts = (size_t)(threads * products * w->part * PANEL) * sizeof(element);
    size_t made = !w->weights ? 0 : groups == 1 ? parts : all_panels;
    size_t held = (size_t)threads * sizeof(long), zeros = (size_t)w->length * sizeof(stored);
    size_t bytes = inputs + sums + made + held + zeros + 5 * 64;
    char *scratch = take_scratch(bytes), *free = scratch;
    if (!scratch) return -1;
    w->inputs = take_piece(&free, inputs);
    w->sums = take_piece(&free, sums);
    w->panel = take_piece(&free, made);
    w->held = memset(take_piece(&free, held), 0, held);
    w->zeros = memset(take_piece(&free, zeros), 0, zeros);
    if (w->weights && groups > 1) {
        struct winograd_weights all = *w->weights;
        w->packed = all.packed = w->panel;
        run_tasks(threads, panels, winograd_weights_task, &all);
    }
    run_tasks(threads, groups * w->panel_tasks, w->size == 4 ? winograd_task_4 : winograd_task_6, w);
    return_scratch(scratch);
    return 0;
}

static struct winograd winograd_of(const void *from, void *to, const void *bias,
                                   const long *sizes) {
    struct winograd w = {.from = from, .to = to, .bias = bias,
                         .batch = sizes[0], .height = sizes[1], .width = sizes[2],
                         .channels = sizes[3], .columns = sizes[4], .size = (int)sizes[5]};
    return w;
}

static int winograd(const void *from, void *to, const void *packed, const void *bias,
                    const long *sizes, int threads) {
    struct winograd w = winograd_of(from, to, bias, sizes);
    w.packed = packed;
    return run_winograd(&w, sizes, threads);
}

static int winograd_once(const void *from, void *to, const void *weights, const void *bias,
                         const long *sizes, const long *strides, int threads) {
    struct winograd_weights raw = {weights, NULL, sizes[4], sizes[3], round_up(sizes[3], 32),
                                   strides, (int)sizes[5]};
    struct winograd w = winograd_of(from, to, bias, sizes);
    w.weights = &raw;
    return run_winograd(&w, sizes, threads);
}

#endif
