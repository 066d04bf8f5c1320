/* Rows times a panel of columns: the one loop in which nearly all the time is spent.
 *
 * A panel is up to VECTORS * LANES columns of the right-hand matrix, stored so that the loop reads
 * it from front to back: word k of column 0, word k of column 1, ... then word k + 1. Six rows times
 * so many vectors make 24 sums in registers (of 32) or 12 (of 16), enough to hide the latency of two
 * units; the panel's vectors and one word of a row take what is left. A panel is read again for
 * every six rows, from the second-level cache at a third of what that can deliver, or even from the
 * first. Included once per type of element.
 */
#ifndef SFUMATO_GEMM_H
#define SFUMATO_GEMM_H

#include <string.h>

enum { PANEL = VECTORS * LANES, TILE_ROWS = 6 };

/* Columns of panel `index` in memory: a multiple of 16. */
static inline int panel_width(long columns, long index) {
    return (int)round_up(smaller(columns - index * PANEL, PANEL), 16);
}

static inline long panel_count(long columns) { return (columns + PANEL - 1) / PANEL; }

INLINE void tile(const int rows, const int vectors, const element *a, long stride, const element *b,
                 long words, int add, float *sums) {
    vector s[TILE_ROWS][VECTORS];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++)
            s[i][j] = add ? v_load(sums + i * PANEL + LANES * j) : v_zero();
    const element *upper = a + 3 * stride; /* keeps addresses to base + {0, 1, 2} * stride */
#pragma GCC unroll AT_A_TIME
    for (long k = 0; k < words; k++) {
        bits columns[VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) columns[j] = b_load(b + LANES * PER_WORD * j);
#pragma GCC unroll 4
        for (int j = 0; j < vectors && AHEAD; j++)
            __builtin_prefetch(b + LANES * PER_WORD * (j + AHEAD * vectors));
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            const element *row = i < 3 ? a + i * stride : upper + (i - 3) * stride;
            int32_t word;
            memcpy(&word, row + PER_WORD * k, sizeof word);
            bits spread = b_all(word);
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) s[i][j] = dot(s[i][j], spread, columns[j]);
        }
        b += LANES * PER_WORD * vectors;
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) v_store(sums + i * PANEL + LANES * j, s[i][j]);
}

#define TILES_OF_WIDTH(vectors)                                                              \
    TARGET static void tiles_##vectors(const element *a, long stride, long rows,             \
                                       const element *b, long words, int add, float *sums) { \
        for (; rows >= 6; rows -= 6, a += 6 * stride, sums += 6 * PANEL)                     \
            tile(6, vectors, a, stride, b, words, add, sums);                                \
        if (rows == 5) tile(5, vectors, a, stride, b, words, add, sums);                     \
        if (rows == 4) tile(4, vectors, a, stride, b, words, add, sums);                     \
        if (rows == 3) tile(3, vectors, a, stride, b, words, add, sums);                     \
        if (rows == 2) tile(2, vectors, a, stride, b, words, add, sums);                     \
        if (rows == 1) tile(1, vectors, a, stride, b, words, add, sums);                     \
    }
TILES_OF_WIDTH(2)
#if VECTORS == 4
TILES_OF_WIDTH(1)
TILES_OF_WIDTH(3)
TILES_OF_WIDTH(4)
#endif

/* sums[row][column] = the product of `rows` rows, `stride` elements apart, with one panel of
 * `width` columns; or += with `add`. Rows of `sums` are PANEL apart. */
static void multiply_add(const element *a, long stride, long rows, const element *b, long words,
                         int width, int add, float *sums) {
    if (width == 2 * LANES) tiles_2(a, stride, rows, b, words, add, sums);
#if VECTORS == 4
    if (width == LANES) tiles_1(a, stride, rows, b, words, add, sums);
    if (width == 3 * LANES) tiles_3(a, stride, rows, b, words, add, sums);
    if (width == 4 * LANES) tiles_4(a, stride, rows, b, words, add, sums);
#endif
}

static inline void multiply(const element *a, long stride, long rows, const element *b, long words,
                            int width, float *sums) {
    multiply_add(a, stride, rows, b, words, width, 0, sums);
}

#endif
