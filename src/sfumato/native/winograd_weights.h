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

TARGET static inline __attribute__((always_inline)) void
transform_weights(const int size, const struct winograd_weights *w, long panel, long group) {
    const int products = size * size;
    long column = panel * PANEL + 16 * group, count = smaller(16, w->columns - column);
    long width = panel_width(w->columns, panel);
    element *to = w->packed + panel * PANEL * w->length * products + 16 * group * PER_WORD;
    for (long c = 0; c < w->channels; c++) {
        float taps[9][16] = {{0}};
        const element *from = w->start + column * w->strides[0] + c * w->strides[1];
        for (long n = 0; n < count; n++)
            for (int t = 0; t < 9; t++)
                taps[t][n] = widen(from[n * w->strides[0] + t / 3 * w->strides[2] +
                                        t % 3 * w->strides[3]]);
        __m512 g[9], u[MOST_SIZE * MOST_SIZE];
        for (int t = 0; t < 9; t++) g[t] = _mm512_loadu_ps(taps[t]);
        weight_square(size, g, u);
        long place = place_in_block(c), word = place / PER_WORD, within = place % PER_WORD;
        for (int i = 0; i < products; i++) {
            float numbers[16];
            _mm512_storeu_ps(numbers, u[i]);
            element *row = to + i * width * w->length + word * width * PER_WORD + within;
            for (int n = 0; n < 16; n++) row[n * PER_WORD] = narrow(numbers[n]);
        }
    }
}

TARGET static void winograd_weights_task(void *context, long index, int worker) {
    (void)worker;
    const struct winograd_weights *w = context;
    long width = panel_width(w->columns, index), products = w->size * w->size;
    memset(w->packed + index * PANEL * w->length * products, 0,
           (size_t)(products * width * w->length) * sizeof(element));
    for (long group = 0; 16 * group < width; group++) {
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
