/* Transforming the weights of a 3x3 convolution into panels for winograd.h.
 *
 * A vector of output channels at a time: 32 input channels are turned in the first-level cache, so
 * that a tap of one of them is such a vector. These are transformed in float32, rounded if products
 * are of another type, and stored where these will read them.
 */
#ifndef SFUMATO_WINOGRAD_WEIGHTS_H
#define SFUMATO_WINOGRAD_WEIGHTS_H

#include "gemm.h"
#include "threads.h"
#include "winograd_steps.h"

struct winograd_weights {
    const stored *start;
    element *packed;
    long columns, channels, length;
    const long *strides; /* out channels, channels, rows, columns */
    int size;
};

enum { BLOCK_CHANNELS = 32, BLOCK_NUMBERS = 9 * BLOCK_CHANNELS };

/* The weights of 32 channels for a vector of columns, turned so that a word has all columns side by side.
 * Channels follow each other with their nine taps, or (`by_tap`) the other way about. */
struct turned {
    element rows[LANES][BLOCK_NUMBERS] __attribute__((aligned(64)));
    element words[BLOCK_NUMBERS / PER_WORD][LANES * PER_WORD] __attribute__((aligned(64)));
    int by_tap;
};

TARGET static void turn_block(const struct winograd_weights *w, long column, long columns,
                              long channel, struct turned *block) {
    long channels = smaller(BLOCK_CHANNELS, w->channels - channel);
    block->by_tap = w->strides[1] == 1;
    if (columns < LANES || channels < BLOCK_CHANNELS) memset(block->rows, 0, sizeof block->rows);
    for (long n = 0; n < columns; n++) {
        const stored *from = w->start + (column + n) * w->strides[0] + channel * w->strides[1];
        element *row = block->rows[n];
        int dense = w->strides[1] == 9 && w->strides[2] == 3 && w->strides[3] == 1;
        if (dense) copy_row(from, row, channels * 9);
        for (int t = 0; t < 9 && !dense; t++) {
            const stored *tap = from + t / 3 * w->strides[2] + t % 3 * w->strides[3];
            if (block->by_tap)
                copy_row(tap, row + t * BLOCK_CHANNELS, channels);
            else
                for (long c = 0; c < channels; c++)
                    row[c * 9 + t] = to_element(tap[c * w->strides[1]]);
        }
    }
    for (int i = 0; i < BLOCK_NUMBERS / PER_WORD; i += LANES) {
        bits r[LANES];
#pragma GCC unroll 16
        for (int n = 0; n < LANES; n++) r[n] = b_load(block->rows[n] + i * PER_WORD);
        transpose(r);
#pragma GCC unroll 16
        for (int n = 0; n < LANES; n++) b_store(block->words[i + n], r[n]);
    }
}

INLINE void transform_weights(const int size, const struct winograd_weights *w, long panel,
                              long group, long first, long channels, element *to) {
    const int products = size * size;
    long column = panel * PANEL + LANES * group;
    long count = larger(0, smaller(LANES, w->columns - column));
    long width = panel_width(w->columns, panel);
    to += LANES * group * PER_WORD;
    struct turned block;
    for (long word = 0; word < channels / PER_WORD; word++) {
        long within = word * PER_WORD % BLOCK_CHANNELS;
        if (within == 0) turn_block(w, column, count, first + word * PER_WORD, &block);
        vector u[PER_WORD][MOST_SIZE * MOST_SIZE];
#pragma GCC unroll 2
        for (int i = 0; i < PER_WORD; i++) {
            long channel = channel_at(within + i);
            vector g[9];
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
            vector both[2] = {u[0][i], u[PER_WORD - 1][i]};
            store_words(row, both);
        }
    }
}

/* So many channels, whole blocks, of one panel, as all the products read it one after the other. */
TARGET static void transform_panel(const struct winograd_weights *w, long panel, long first,
                                   long channels, element *to) {
    for (long group = 0; LANES * group < panel_width(w->columns, panel); group++) {
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

static int pack_winograd(const void *start, void *packed, long columns, long channels,
                         const long *strides, int size, int threads) {
    struct winograd_weights w = {start, packed, columns, channels, round_up(channels, 32), strides,
                                 size};
    run_tasks(threads, panel_count(columns), winograd_weights_task, &w);
    return 0;
}

#endif
