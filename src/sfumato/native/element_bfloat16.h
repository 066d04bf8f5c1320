/* The bfloat16 side of the kernels: products of pairs, added up in float32. */
#ifndef SFUMATO_ELEMENT_H
#define SFUMATO_ELEMENT_H

#include "cpu.h"

typedef uint16_t element;
#define TARGET SFUMATO_BF16
#define EXPORTED(name) name##_bfloat16
/* Elements in a word of four bytes, the unit in which sums of products advance. */
enum { PER_WORD = 2 };

/* s + a[0] * b[0] + a[1] * b[1] in each of 16 lanes. */
TARGET static inline __attribute__((always_inline)) __m512 dot(__m512 s, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(s, (__m512bh)a, (__m512bh)b);
}

static inline float widen(element x) {
    union { uint32_t bits; float value; } u = {.bits = (uint32_t)x << 16};
    return u.value;
}

/* Thirty-two channels as two vectors: the even ones and the odd ones, one instruction each. */
TARGET static inline __attribute__((always_inline)) void
load_block(const element *x, int count, __m512 *first, __m512 *second) {
    __m512i raw = count >= 32 ? _mm512_loadu_si512(x)
                              : _mm512_maskz_loadu_epi16((__mmask32)((1u << count) - 1), x);
    *first = _mm512_castsi512_ps(_mm512_slli_epi32(raw, 16));
    *second = _mm512_castsi512_ps(_mm512_and_si512(raw, _mm512_set1_epi32((int)0xffff0000)));
}

/* The channel that `store_block` puts at some place. */
static inline long channel_at(long place) {
    return place / 32 * 32 + place % 16 * 2 + place % 32 / 16;
}

TARGET static inline __attribute__((always_inline)) void
store_block(element *x, __m512 first, __m512 second) {
    _mm512_store_si512(x, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

/* Up to sixteen numbers in their natural order. */
TARGET static inline __attribute__((always_inline)) __m512
load_row(const element *x, __mmask16 mask) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

TARGET static inline __attribute__((always_inline)) void
store_row(element *x, __m512 values, __mmask16 mask) {
    _mm256_mask_storeu_epi16(x, mask, (__m256i)_mm512_cvtneps_pbh(values));
}

/* A word for each of 16 columns, from one vector of columns for each place in the word. */
TARGET static inline __attribute__((always_inline)) void
store_words(element *x, const __m512 *numbers) {
    __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(numbers[0]));
    __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(numbers[1]));
    _mm512_store_si512(x, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

/* The number at some place of 16 words. */
TARGET static inline __attribute__((always_inline)) __m512
one_of_word(const element *words, int place) {
    __m512i raw = _mm512_sll_epi32(_mm512_load_si512(words), _mm_cvtsi32_si128(place ? 0 : 16));
    return _mm512_castsi512_ps(_mm512_and_si512(raw, _mm512_set1_epi32((int)0xffff0000)));
}

#endif
