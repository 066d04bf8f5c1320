/* Turning sixteen rows of sixteen words into columns. */
#ifndef SFUMATO_TRANSPOSE_H
#define SFUMATO_TRANSPOSE_H

#include "cpu.h"

/* to[j * step][i] = from[i * gap][j], words of four bytes; `gap` and `step` in bytes. `to` starts
 * at a multiple of 64. Four rounds of shuffles: of words, of pairs, and twice of quarters. */
SFUMATO_AVX512 static inline __attribute__((always_inline)) void
transpose_words(const void *from, size_t gap, void *to, size_t step) {
    __m512i r[16], s[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512((const char *)from + gap * i);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(s[i], s[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(s[i], s[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(s[i + 1], s[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(s[i + 1], s[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        s[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        s[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        s[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        s[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        __m512i low = _mm512_shuffle_i32x4(s[i], s[i + 8], 0x88);
        __m512i high = _mm512_shuffle_i32x4(s[i], s[i + 8], 0xdd);
        _mm512_store_si512((char *)to + step * i, low);
        _mm512_store_si512((char *)to + step * (i + 8), high);
    }
}

#endif
