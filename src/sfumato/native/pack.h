/* Laying weights out as panels: see gemm.h for the layout. */
#ifndef SFUMATO_PACK_H
#define SFUMATO_PACK_H

#include "gemm.h"
#include "threads.h"
#include "transpose.h"

/* A matrix of weights as it lies in memory: row k is tap k / inner and channel k % inner. */
struct weights {
    const element *start;
    long columns, taps, inner;
    long column_stride, channel_stride, tap_row_stride, tap_stride, taps_per_row;
    element *packed;
};

static inline long words_of(long elements) { return (elements + PER_WORD - 1) / PER_WORD; }

static inline const element *tap_start(const struct weights *w, long column, long tap) {
    return w->start + column * w->column_stride + tap / w->taps_per_row * w->tap_row_stride +
           tap % w->taps_per_row * w->tap_stride;
}

/* One number after the other, for any sizes. `to` holds zeros. */
static void pack_slowly(const struct weights *w, long first, int filled, int width, element *to) {
    for (int n = 0; n < filled; n++)
        for (long tap = 0, k = 0; tap < w->taps; tap++) {
            const element *from = tap_start(w, first + n, tap);
            for (long c = 0; c < w->inner; c++, k++)
                to[(k / PER_WORD * width + n) * PER_WORD + k % PER_WORD] =
                    from[c * w->channel_stride];
        }
}

enum { BLOCK = 16 * PER_WORD }; /* channels in 64 bytes */

/* Sixteen words of up to 16 columns, turned over: to[word][column]. */
TARGET static inline void pack_block(const struct weights *w, long column, int count, long tap,
                                     long c, int words, element *to, int width) {
    size_t step = (size_t)width * 4;
    if (w->channel_stride == 1 && words == 16 && count == 16) {
        transpose_words(tap_start(w, column, tap) + c,
                        (size_t)w->column_stride * sizeof(element), to, step);
        return;
    }
    element rows[16][BLOCK] __attribute__((aligned(64))) = {{0}};
    uint32_t turned[16][16] __attribute__((aligned(64)));
    for (int n = 0; n < count; n++) {
        const element *from = tap_start(w, column + n, tap) + c * w->channel_stride;
        for (int i = 0; i < words * PER_WORD; i++) rows[n][i] = from[i * w->channel_stride];
    }
    transpose_words(rows, 64, turned, 64);
    for (int i = 0; i < words; i++) memcpy((char *)to + step * i, turned[i], 64);
}

/* Blocks small enough for the first-level cache, all taps of some channels after each other. */
TARGET static void pack_panel(void *context, long index, int worker) {
    (void)worker;
    const struct weights *w = context;
    long words = words_of(w->taps * w->inner), first = index * PANEL;
    int width = panel_width(w->columns, index), filled = (int)smaller(width, w->columns - first);
    element *to = w->packed + first * words * PER_WORD;
    if (w->inner % PER_WORD) {
        memset(to, 0, (size_t)(words * PER_WORD * width) * sizeof *to);
        pack_slowly(w, first, filled, width, to);
        return;
    }
    for (int n = 0; n < width; n += 16)
        for (long c = 0; c < w->inner; c += BLOCK)
            for (long tap = 0; tap < w->taps; tap++)
                pack_block(w, first + n, (int)smaller(16, filled - n), tap, c,
                           (int)smaller(16, (w->inner - c) / PER_WORD),
                           to + ((tap * w->inner + c) / PER_WORD * width + n) * PER_WORD, width);
}

/* Weights (columns, channels, kernel height, kernel width) with any strides, as panels over
 * rows in the order (tap, channel). */
SFUMATO_EXPORT void EXPORTED(sfumato_pack)(const element *start, element *packed, long columns,
                                           long channels, long height, long width,
                                           const long *strides, int threads) {
    struct weights w = {start, columns, height * width, channels, strides[0], strides[1],
                        strides[2], strides[3], width, packed};
    run_tasks(threads, panel_count(columns), pack_panel, &w);
}

#endif
