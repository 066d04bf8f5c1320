/* Rows times a panel of columns: the one loop in which nearly all the time is spent.
 *
 * A panel is up to 64 columns of the right-hand matrix, stored so that the loop reads it from
 * front to back: word k of column 0, word k of column 1, ... then word k + 1. Six rows times four
 * vectors of sixteen columns make 24 sums in registers, enough to hide the latency of two units;
 * four vectors of the panel and one word of a row take five more of the 32 registers. A panel is
 * read again for every six rows, from the second-level cache at a third of what that can deliver,
 * so sums over any length need no splitting. Included once per type of element.
 */
#ifndef SFUMATO_GEMM_H
#define SFUMATO_GEMM_H

#include <string.h>

enum { PANEL = 64, TILE_ROWS = 6 };

/* Columns of panel `index` in memory: a multiple of 16. */
static inline int panel_width(long columns, long index) {
    return (int)round_up(smaller(columns - index * PANEL, PANEL), 16);
}

static inline long panel_count(long columns) { return (columns + PANEL - 1) / PANEL; }

TARGET static inline __attribute__((always_inline)) void
tile(const int rows, const int vectors, const element *a, long stride, const element *b, long words,
     int add, float *sums) {
    __m512 s[TILE_ROWS][4];
    __mmask16 held = add ? 0xffff : 0;
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++)
            s[i][j] = _mm512_maskz_load_ps(held, sums + i * PANEL + 16 * j);
    const element *upper = a + 3 * stride; /* keeps addresses to base + {0, 1, 2} * stride */
    for (long k = 0; k < words; k++) {
        __m512i columns[4];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++)
            columns[j] = _mm512_load_si512(b + 16 * PER_WORD * j);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            const element *row = i < 3 ? a + i * stride : upper + (i - 3) * stride;
            int32_t word;
            memcpy(&word, row + PER_WORD * k, sizeof word);
            __m512i spread = _mm512_set1_epi32(word);
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) s[i][j] = dot(s[i][j], spread, columns[j]);
        }
        b += 16 * PER_WORD * vectors;
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) _mm512_store_ps(sums + i * PANEL + 16 * j, s[i][j]);
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
TILES_OF_WIDTH(1)
TILES_OF_WIDTH(2)
TILES_OF_WIDTH(3)
TILES_OF_WIDTH(4)

/* sums[row][column] = the product of `rows` rows, `stride` elements apart, with one panel of
 * `width` columns; or += with `add`. Rows of `sums` are PANEL apart. */
static void multiply_add(const element *a, long stride, long rows, const element *b, long words,
                         int width, int add, float *sums) {
    if (width == 64) tiles_4(a, stride, rows, b, words, add, sums);
    if (width == 48) tiles_3(a, stride, rows, b, words, add, sums);
    if (width == 32) tiles_2(a, stride, rows, b, words, add, sums);
    if (width == 16) tiles_1(a, stride, rows, b, words, add, sums);
}

static inline void multiply(const element *a, long stride, long rows, const element *b, long words,
                            int width, float *sums) {
    multiply_add(a, stride, rows, b, words, width, 0, sums);
}

/* Lanes of vector `index` that hold columns. */
static inline __mmask16 lanes(long columns, long index) {
    long left = columns - 16 * index;
    return left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
}

#endif
