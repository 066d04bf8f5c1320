/* Transforming the weights of a 3x3 convolution into panels for winograd.h.
 *
 * Sixteen output channels at a time: 32 input channels are turned in the first-level cache, so that
 * a tap of one of them is a vector of the sixteen. These are transformed in float32, rounded, and
 * stored where the products will read them.
 */
#ifndef SFUMATO_WINOGRAD_WEIGHTS_H
#define SFUMATO_WINOGRAD_WEIGHTS_H

#include "gemm.h"
#include "threads.h"
#include "transpose.h"
#include "winograd_steps.h"

struct winograd_weights {
    const element *start;
    element *packed;
    long columns, channels, length;
    const long *strides; /* out channels, channels, rows, columns */
    int size;
};

enum { BLOCK_CHANNELS = 32, BLOCK_NUMBERS = 9 * BLOCK_CHANNELS };

/* The weights of 32 channels for 16 columns, turned so that a word has all columns side by side.
 * Channels follow each other with their nine taps, or (`by_tap`) the other way about. */
struct turned {
    element rows[16][BLOCK_NUMBERS] __attribute__((aligned(64)));
    element words[BLOCK_NUMBERS / PER_WORD][16 * PER_WORD] __attribute__((aligned(64)));
    int by_tap;
};

TARGET static void turn_block(const struct winograd_weights *w, long column, long columns,
                              long channel, struct turned *block) {
    long channels = smaller(BLOCK_CHANNELS, w->channels - channel);
    block->by_tap = w->strides[1] == 1;
    if (columns < 16 || channels < BLOCK_CHANNELS) memset(block->rows, 0, sizeof block->rows);
    for (long n = 0; n < columns; n++) {
        const element *from = w->start + (column + n) * w->strides[0] + channel * w->strides[1];
        element *row = block->rows[n];
        int dense = w->strides[1] == 9 && w->strides[2] == 3 && w->strides[3] == 1;
        if (dense) memcpy(row, from, (size_t)channels * 9 * sizeof *row);
        for (int t = 0; t < 9 && !dense; t++) {
            const element *tap = from + t / 3 * w->strides[2] + t % 3 * w->strides[3];
            if (block->by_tap)
                memcpy(row + t * BLOCK_CHANNELS, tap, (size_t)channels * sizeof *row);
            else
                for (long c = 0; c < channels; c++) row[c * 9 + t] = tap[c * w->strides[1]];
        }
    }
    for (int i = 0; i < BLOCK_NUMBERS / PER_WORD; i += 16)
        transpose_words(block->rows[0] + i * PER_WORD, sizeof block->rows[0], block->words[i],
                        sizeof block->words[0]);
}

TARGET static inline __attribute__((always_inline)) void
transform_weights(const int size, const struct winograd_weights *w, long panel, long group,
                  long first, long channels, element *to) {
    const int products = size * size;
    long column = panel * PANEL + 16 * group, count = smaller(16, w->columns - column);
    long width = panel_width(w->columns, panel);
    to += 16 * group * PER_WORD;
    struct turned block;
    for (long word = 0; word < channels / PER_WORD; word++) {
        long within = word * PER_WORD % BLOCK_CHANNELS;
        if (within == 0) turn_block(w, column, count, first + word * PER_WORD, &block);
        __m512 u[PER_WORD][MOST_SIZE * MOST_SIZE];
#pragma GCC unroll 2
        for (int i = 0; i < PER_WORD; i++) {
            long channel = channel_at(within + i);
            __m512 g[9];
#pragma GCC unroll 9
            for (int t = 0; t < 9; t++) {
                long number = block.by_tap ? t * BLOCK_CHANNELS + channel : channel * 9 + t;
                g[t] = one_of_word(block.words[number / PER_WORD], (int)(number % PER_WORD));
            }
            weight_square(size, g, u[i]);
        }
        element *row = to + word * width * PER_WORD;
#pragma GCC unroll 36
        for (int i = 0; i < products; i++, row += width * channels) {
            __m512 both[2] = {u[0][i], u[PER_WORD - 1][i]};
            store_words(row, both);
        }
    }
}

/* So many channels, whole blocks, of one panel, as all the products read it one after the other. */
TARGET static void transform_panel(const struct winograd_weights *w, long panel, long first,
                                   long channels, element *to) {
    for (long group = 0; 16 * group < panel_width(w->columns, panel); group++) {
        if (w->size == 4)
            transform_weights(4, w, panel, group, first, channels, to);
        else
            transform_weights(6, w, panel, group, first, channels, to);
    }
}

static void winograd_weights_task(void *context, long index, int worker) {
    (void)worker;
    const struct winograd_weights *w = context;
    transform_panel(w, index, 0, w->length,
                    w->packed + index * PANEL * w->length * w->size * w->size);
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
