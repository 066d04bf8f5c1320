/* Laying weights out as panels: see gemm.h for the layout. */
#ifndef SFUMATO_PACK_H
#define SFUMATO_PACK_H

#include "gemm.h"
#include "threads.h"

/* A matrix of weights as it lies in memory: row k is tap k / inner and channel k % inner. */
struct weights {
    const element *start;
    long columns, taps, inner;
    long column_stride, channel_stride, tap_row_stride, tap_stride, taps_per_row;
    element *packed;
};

static inline long words_of(long elements) { return (elements + PER_WORD - 1) / PER_WORD; }

static void pack_panel(void *context, long index, int worker) {
    (void)worker;
    const struct weights *w = context;
    long rows = w->taps * w->inner, words = words_of(rows), first = index * PANEL;
    int width = panel_width(w->columns, index), filled = (int)smaller(width, w->columns - first);
    element *to = w->packed + first * words * PER_WORD;
    memset(to, 0, (size_t)(words * PER_WORD * width) * sizeof *to);
    for (int n = 0; n < filled; n++)
        for (long tap = 0, k = 0; tap < w->taps; tap++) {
            const element *from = w->start + (first + n) * w->column_stride +
                                  tap / w->taps_per_row * w->tap_row_stride +
                                  tap % w->taps_per_row * w->tap_stride;
            for (long c = 0; c < w->inner; c++, k++)
                to[(k / PER_WORD * width + n) * PER_WORD + k % PER_WORD] =
                    from[c * w->channel_stride];
        }
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
