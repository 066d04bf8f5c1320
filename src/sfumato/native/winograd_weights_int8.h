/* Transforming a 3x3 convolution's weights that are 8-bit integers, with a scale per output, into a
 * panel for winograd_int8.c: integers again, with a scale per output and place.
 *
 * A layer keeps nine bytes per pair of channels rather than sixteen, and for a tenth of the
 * products' time. The transform is exact in 16-bit integers, four times too large so that no halves
 * occur; sixteen times these, times a factor for each output and place, over 2^15 and rounded, are
 * the new integers.
 */
#ifndef SFUMATO_WINOGRAD_WEIGHTS_INT8_H
#define SFUMATO_WINOGRAD_WEIGHTS_INT8_H

#include "gemm.h"
#include "steps_int8.h"

/* Weights as layers_int8.c reads them: panels over (tap, channel); a multiple of 16 channels. */
struct integers {
    const element *start;
    const float *scales;
    long columns, channels;
};

enum { WIDE = 16, AT_ONCE = 8 }; /* places of a tile; columns in 32 bytes */

NUMBERS void double_step(const __m512i *g, const int gap, __m512i *u, const int step) {
    __m512i outer = _mm512_add_epi16(g[0], g[2 * gap]);
    u[0] = _mm512_add_epi16(g[0], g[0]);
    u[step] = _mm512_add_epi16(outer, g[gap]);
    u[2 * step] = _mm512_sub_epi16(outer, g[gap]);
    u[3 * step] = _mm512_add_epi16(g[2 * gap], g[2 * gap]);
}

/* Four channels of eight columns, whose taps are `step` bytes apart: sixteen places. */
NUMBERS void transform_taps(const element *from, long step, __m512i *u) {
    __m512i g[9], half[12];
#pragma GCC unroll 9
    for (int t = 0; t < 9; t++)
        g[t] = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(from + t * step)));
#pragma GCC unroll 3
    for (int x = 0; x < 3; x++) double_step(g + x, 3, half + x, 3);
#pragma GCC unroll 4
    for (int y = 0; y < 4; y++) double_step(half + 3 * y, 1, u + 4 * y, 1);
}

/* The largest of each column's numbers to the factor that makes 127 of it, in all four lanes of the
 * column; and to the scale of the new integers. */
NUMBERS __m512i factor_of(__m512i most, __m256 old, float *scales) {
    most = _mm512_max_epi16(most, _mm512_ror_epi64(most, 16));
    most = _mm512_max_epi16(most, _mm512_ror_epi64(most, 32));
    __m512i one = _mm512_and_si512(most, _mm512_set1_epi64(0xffff));
    __m256 largest = _mm256_cvtepi32_ps(_mm512_cvtepi64_epi32(one));
    __m256 factor = _mm256_div_ps(_mm256_set1_ps(127 * 2048.0f),
                                  _mm256_max_ps(largest, _mm256_set1_ps(1)));
    factor = _mm256_floor_ps(_mm256_min_ps(factor, _mm256_set1_ps(32767)));
    _mm256_storeu_ps(scales, _mm256_div_ps(_mm256_mul_ps(old, _mm256_set1_ps(512)), factor));
    __m512i whole = _mm512_cvtepi32_epi64(_mm256_cvtps_epi32(factor));
    whole = _mm512_or_si512(whole, _mm512_slli_epi64(whole, 16));
    return _mm512_or_si512(whole, _mm512_slli_epi64(whole, 32));
}

/* Columns `n` to `n + 7` of a panel. */
NUMBERS void transform_columns(const struct integers *w, long column, int n, int width, element *to,
                               float *scales, float *offsets) {
    long words = w->channels / PER_WORD, row = width * PER_WORD, step = words * row;
    const element *from = w->start + column * 9 * w->channels + n * PER_WORD;
    __m512i most[WIDE], factors[WIDE], sums[WIDE], u[WIDE];
    for (int i = 0; i < WIDE; i++) most[i] = sums[i] = _mm512_setzero_si512();
    for (long k = 0; k < words; k++) {
        transform_taps(from + k * row, step, u);
#pragma GCC unroll 16
        for (int i = 0; i < WIDE; i++) most[i] = _mm512_max_epi16(most[i], _mm512_abs_epi16(u[i]));
    }
    __m256 old = _mm256_maskz_loadu_ps((__mmask8)first_lanes(w->columns - column - n),
                                       w->scales + column + n);
    for (int i = 0; i < WIDE; i++) factors[i] = factor_of(most[i], old, scales + i * PANEL + n);
    for (long k = 0; k < words; k++) {
        transform_taps(from + k * row, step, u);
        element *place = to + k * row + n * PER_WORD;
#pragma GCC unroll 16
        for (int i = 0; i < WIDE; i++, place += step) {
            __m512i q = _mm512_mulhrs_epi16(_mm512_slli_epi16(u[i], 4), factors[i]);
            sums[i] = _mm512_dpwssd_epi32(sums[i], q, _mm512_set1_epi16(1));
            _mm256_storeu_si256((__m256i *)place, _mm512_cvtepi16_epi8(q));
        }
    }
    for (int i = 0; i < WIDE; i++) {
        __m512i both = _mm512_add_epi32(sums[i], _mm512_ror_epi64(sums[i], 32));
        __m256 sum = _mm256_cvtepi32_ps(_mm512_cvtepi64_epi32(both));
        float *at = offsets + i * PANEL + n;
        _mm256_storeu_ps(at, _mm256_mul_ps(sum, _mm256_loadu_ps(scales + i * PANEL + n)));
    }
}

/* The panel from `column` on: sixteen matrices, one for each place, and for each place PANEL scales
 * and offsets (the scales times the sums of the integers). */
TARGET static void transform_integers(const struct integers *w, long column, int width, element *to,
                                      float *scales, float *offsets) {
    for (int n = 0; n < width; n += AT_ONCE)
        transform_columns(w, column, n, width, to, scales, offsets);
}

#endif
