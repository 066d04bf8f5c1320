/* Products of pairs of bfloat16, added up in float32: an instruction of some processors. */
#ifndef SFUMATO_ELEMENT_H
#define SFUMATO_ELEMENT_H

#include <string.h>

typedef uint16_t element;
/* Elements in a word of four bytes, the unit in which sums of products advance. */
enum { PER_WORD = 2 };

/* s + a[0] * b[0] + a[1] * b[1] in each lane. */
INLINE vector dot(vector s, bits a, bits b) {
    return _mm512_dpbf16_ps(s, (__m512bh)a, (__m512bh)b);
}

static inline element to_element(stored x) { return x; }

/* Neighbouring numbers, as they are multiplied. */
INLINE void copy_row(const stored *from, element *to, long count) {
    memcpy(to, from, (size_t)count * sizeof *to);
}

/* Words of up to LANES * PER_WORD numbers; zeros follow after `count`. */
INLINE bits take_words(const stored *x, long count) {
    if (count >= 32) return _mm512_loadu_si512(x);
    return _mm512_maskz_loadu_epi16(count <= 0 ? 0 : (1u << count) - 1, x);
}

/* Words of up to PER_WORD rows, of which `rows` are there, and up to LANES channels. */
INLINE bits join_rows(const stored *x, long stride, long rows, long channels) {
    const some lanes = first_lanes(channels);
    if (rows <= 0) return b_zero();
    bits first = _mm512_cvtepu16_epi32(h_load_some(x, lanes));
    if (rows == 1) return first;
    bits second = _mm512_cvtepu16_epi32(h_load_some(x + stride, lanes));
    return _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
}

INLINE vector upper_halves(bits w) {
    return as_vector(_mm512_and_si512(w, b_all((int)0xffff0000)));
}

/* Up to 32 channels as two vectors: the even ones and the odd ones, one instruction each. */
INLINE void load_block(const stored *x, long count, vector *first, vector *second) {
    bits raw = take_words(x, count);
    *first = as_vector(_mm512_slli_epi32(raw, 16));
    *second = upper_halves(raw);
}

/* The channel that `store_block` puts at some place. */
static inline long channel_at(long place) {
    return place / 32 * 32 + place % 16 * 2 + place % 32 / 16;
}

INLINE void store_block(element *x, vector first, vector second) {
    b_store(x, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

/* A word for each column of a vector, from one vector of columns for each place in the word. */
INLINE void store_words(element *x, const vector *numbers) {
    bits low = _mm512_cvtepu16_epi32(v_narrow(numbers[0]));
    bits high = _mm512_cvtepu16_epi32(v_narrow(numbers[1]));
    b_store(x, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

/* The number at some place of each word. */
INLINE vector one_of_word(const element *x, int place) {
    return upper_halves(_mm512_sll_epi32(b_load(x), _mm_cvtsi32_si128(place ? 0 : 16)));
}

/* Words of PER_WORD neighbouring numbers of each lane; and the sums of these, as rounded. */
INLINE bits to_words(vector first, vector second) {
    static const uint16_t interleave[32] __attribute__((aligned(64))) = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31,
    };
    bits both = (__m512i)_mm512_cvtne2ps_pbh(second, first);
    return _mm512_permutexvar_epi16(b_load(interleave), both);
}
INLINE vector add_words(vector sum, bits w) { return dot(sum, w, b_all(0x3f803f80)); /* ones */ }

#endif
