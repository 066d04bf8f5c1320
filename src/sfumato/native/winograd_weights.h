/* Transforming the weights of a 3x3 convolution, once, into panels for winograd.h.
 *
 * Sixteen output channels at a time: their taps for one input channel are gathered into vectors,
 * transformed in float32, rounded, and stored where the products will read them.
 */
#ifndef SFUMATO_WINOGRAD_WEIGHTS_H
#define SFUMATO_WINOGRAD_WEIGHTS_H

#include "gemm.h"
#include "threads.h"
#include "winograd_steps.h"

struct winograd_weights {
    const element *start;
    element *packed;
    long columns, channels, length;
    const long *strides; /* out channels, channels, rows, columns */
    int size;
};

/* The taps of one channel for `count` columns, a vector of columns for each tap. */
TARGET static inline __attribute__((always_inline)) void
gather_taps(const struct winograd_weights *w, long column, long count, long channel, __m512 *g) {
    float taps[9][16] __attribute__((aligned(64)));
    const element *from = w->start + column * w->strides[0] + channel * w->strides[1];
    if (count < 16) memset(taps, 0, sizeof taps);
    for (long n = 0; n < count; n++, from += w->strides[0])
        for (int t = 0; t < 9; t++)
            taps[t][n] = widen(from[t / 3 * w->strides[2] + t % 3 * w->strides[3]]);
    for (int t = 0; t < 9; t++) g[t] = _mm512_load_ps(taps[t]);
}

TARGET static inline __attribute__((always_inline)) void
transform_weights(const int size, const struct winograd_weights *w, long panel, long group) {
    const int products = size * size;
    long column = panel * PANEL + 16 * group, count = smaller(16, w->columns - column);
    long width = panel_width(w->columns, panel);
    element *to = w->packed + panel * PANEL * w->length * products + 16 * group * PER_WORD;
    for (long word = 0; word < w->length / PER_WORD; word++) {
        __m512 u[PER_WORD][MOST_SIZE * MOST_SIZE];
#pragma GCC unroll 2
        for (int i = 0; i < PER_WORD; i++) {
            long channel = channel_at(word * PER_WORD + i);
            __m512 g[9];
            gather_taps(w, column, channel < w->channels ? count : 0, channel, g);
            weight_square(size, g, u[i]);
        }
        element *row = to + word * width * PER_WORD;
#pragma GCC unroll 36
        for (int i = 0; i < products; i++, row += width * w->length) {
            __m512 both[2] = {u[0][i], u[PER_WORD - 1][i]};
            store_words(row, both);
        }
    }
}

TARGET static void winograd_weights_task(void *context, long index, int worker) {
    (void)worker;
    const struct winograd_weights *w = context;
    for (long group = 0; 16 * group < panel_width(w->columns, index); group++) {
        if (w->size == 4)
            transform_weights(4, w, index, group);
        else
            transform_weights(6, w, index, group);
    }
}

/* `packed` holds size * size * round_up(channels, 32) * round_up(columns, 16) elements; `strides`
 * are those of weights (columns, channels, 3, 3), in elements. */
SFUMATO_EXPORT void EXPORTED(sfumato_pack_winograd)(const element *start, element *packed,
                                                    long columns, long channels,
                                                    const long *strides, int size, int threads) {
    struct winograd_weights w = {start, packed, columns, channels, round_up(channels, 32), strides,
                                 size};
    run_tasks(threads, panel_count(columns), winograd_weights_task, &w);
}

#endif
