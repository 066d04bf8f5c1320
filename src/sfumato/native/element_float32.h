/* The float32 side of the kernels. */
#ifndef SFUMATO_ELEMENT_H
#define SFUMATO_ELEMENT_H

#include "cpu.h"

typedef float element;
#define TARGET SFUMATO_AVX512
#define EXPORTED(name) name##_float32
/* Elements in a word of four bytes, the unit in which sums of products advance. */
enum { PER_WORD = 1 };

TARGET static inline __attribute__((always_inline)) __m512 dot(__m512 s, __m512i a, __m512i b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), s);
}

static inline float widen(element x) { return x; }

/* Thirty-two channels as two vectors. */
TARGET static inline __attribute__((always_inline)) void
load_block(const element *x, int count, __m512 *first, __m512 *second) {
    uint32_t mask = count >= 32 ? 0xffffffffu : (1u << count) - 1;
    *first = _mm512_maskz_loadu_ps((__mmask16)mask, x);
    *second = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), x + 16);
}

/* The channel that `store_block` puts at some place. */
static inline long channel_at(long place) { return place; }

TARGET static inline __attribute__((always_inline)) void
store_block(element *x, __m512 first, __m512 second) {
    _mm512_store_ps(x, first);
    _mm512_store_ps(x + 16, second);
}

/* Up to sixteen numbers in their natural order. */
TARGET static inline __attribute__((always_inline)) __m512
load_row(const element *x, __mmask16 mask) {
    return _mm512_maskz_loadu_ps(mask, x);
}

TARGET static inline __attribute__((always_inline)) void
store_row(element *x, __m512 values, __mmask16 mask) {
    _mm512_mask_storeu_ps(x, mask, values);
}

/* A word for each of 16 columns, from one vector of columns for each place in the word. */
TARGET static inline __attribute__((always_inline)) void
store_words(element *x, const __m512 *numbers) {
    _mm512_store_ps(x, numbers[0]);
}

/* The number at some place of 16 words. */
TARGET static inline __attribute__((always_inline)) __m512
one_of_word(const element *words, int place) {
    (void)place;
    return _mm512_load_ps(words);
}

#endif
