/* Laying weights out as panels: see gemm.h for the layout. */
#ifndef SFUMATO_PACK_H
#define SFUMATO_PACK_H

#include "gemm.h"
#include "threads.h"

/* A matrix of weights as it lies in memory: row k is tap k / inner and channel k % inner. */
struct weights {
    const stored *start;
    long columns, taps, inner;
    long column_stride, channel_stride, tap_row_stride, tap_stride, taps_per_row;
};

/* Weights (columns, channels, kernel height, kernel width) with any strides. */
static struct weights weights_of(const stored *start, long columns, long channels, long height,
                                 long width, const long *strides) {
    struct weights w = {start, columns, height * width, channels, strides[0], strides[1],
                        strides[2], strides[3], width};
    return w;
}

static inline long words_of(long elements) { return (elements + PER_WORD - 1) / PER_WORD; }

static inline long packed_elements(const struct weights *w) {
    return words_of(w->taps * w->inner) * PER_WORD * round_up(w->columns, 16);
}

static inline const stored *tap_start(const struct weights *w, long column, long tap) {
    return w->start + column * w->column_stride + tap / w->taps_per_row * w->tap_row_stride +
           tap % w->taps_per_row * w->tap_stride;
}

/* One number after the other, for any sizes. `to` holds zeros. */
static void pack_slowly(const struct weights *w, long first, int filled, int width, element *to) {
    for (int n = 0; n < filled; n++)
        for (long tap = 0, k = 0; tap < w->taps; tap++) {
            const stored *from = tap_start(w, first + n, tap);
            for (long c = 0; c < w->inner; c++, k++)
                to[(k / PER_WORD * width + n) * PER_WORD + k % PER_WORD] =
                    to_element(from[c * w->channel_stride]);
        }
}

enum { BLOCK = LANES * PER_WORD }; /* channels that make a vector of words */

/* So many words of up to LANES columns, turned over: to[word][column]. */
INLINE void pack_block(const struct weights *w, long column, long count, long tap, long c,
                       long words, element *to, int width) {
    bits r[LANES];
    if (w->channel_stride == 1 && words == LANES && count == LANES) {
        const stored *from = tap_start(w, column, tap) + c;
#pragma GCC unroll 16
        for (int n = 0; n < LANES; n++) r[n] = take_words(from + n * w->column_stride, BLOCK);
    } else {
        element rows[LANES][BLOCK] __attribute__((aligned(64))) = {{0}};
        for (long n = 0; n < count; n++) {
            const stored *from = tap_start(w, column + n, tap) + c * w->channel_stride;
            for (long i = 0; i < words * PER_WORD; i++)
                rows[n][i] = to_element(from[i * w->channel_stride]);
        }
#pragma GCC unroll 16
        for (int n = 0; n < LANES; n++) r[n] = b_load(rows[n]);
    }
    transpose(r);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (i < words) b_store(to + (long)i * width * PER_WORD, r[i]);
}

/* `channels` channels of all taps of one panel, from channel `first` on. Blocks small enough for
 * the first-level cache, all taps of some channels after each other. */
TARGET static void pack_panel(const struct weights *w, long index, long first, long channels,
                              element *to) {
    long column = index * PANEL;
    int width = panel_width(w->columns, index), filled = (int)smaller(width, w->columns - column);
    if (channels % PER_WORD) {
        memset(to, 0, (size_t)(words_of(w->taps * channels) * PER_WORD * width) * sizeof *to);
        pack_slowly(w, column, filled, width, to);
        return;
    }
    for (int n = 0; n < width; n += LANES)
        for (long c = 0; c < channels; c += BLOCK)
            for (long tap = 0; tap < w->taps; tap++)
                pack_block(w, column + n, smaller(LANES, filled - n), tap, first + c,
                           smaller(LANES, (channels - c) / PER_WORD),
                           to + ((tap * channels + c) / PER_WORD * width + n) * PER_WORD, width);
}

struct packing {
    struct weights weights;
    element *packed;
};

static void pack_task(void *context, long index, int worker) {
    (void)worker;
    const struct packing *p = context;
    const struct weights *w = &p->weights;
    pack_panel(w, index, 0, w->inner,
               p->packed + index * PANEL * words_of(w->taps * w->inner) * PER_WORD);
}

/* All panels, over rows in the order (tap, channel). */
static void pack_all(const struct weights *w, element *packed, int threads) {
    struct packing p = {*w, packed};
    run_tasks(threads, panel_count(w->columns), pack_task, &p);
}

static int pack(const void *start, void *packed, long columns, long channels, long height,
                long width, const long *strides, int threads) {
    struct weights w = weights_of(start, columns, channels, height, width, strides);
    pack_all(&w, packed, threads);
    return 0;
}

#endif
