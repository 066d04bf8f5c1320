/* Vectors of AVX-512: all that the kernels do with registers, in words of their own.
 *
 * `TARGET` is the attribute with the instruction set, which may be larger than AVX-512. The same
 * names stand for other vectors in other headers of this kind.
 */
#ifndef SFUMATO_VECTOR_H
#define SFUMATO_VECTOR_H

#include "cpu.h"

#define INLINE TARGET static inline __attribute__((always_inline))

/* Numbers in a vector; and vectors of columns for which a tile of six rows has sums. */
#define LANES 16
#define VECTORS 4
/* Words that a loop over products takes at a time, and how far ahead it asks for them, if at all. */
enum { AT_A_TIME = 1, AHEAD = 4 };

typedef __m512 vector;   /* of float32 */
typedef __m512i bits;    /* words of four bytes, which hold one number or several */
typedef __mmask16 mask;  /* lanes for which something holds */
typedef __mmask16 some;  /* the first few lanes */

enum { ALL = 0xffff };

INLINE some first_lanes(long count) {
    return count >= LANES ? ALL : count <= 0 ? 0 : (some)((1u << count) - 1);
}

INLINE vector v_zero(void) { return _mm512_setzero_ps(); }
INLINE vector v_all(float x) { return _mm512_set1_ps(x); }
INLINE vector v_add(vector a, vector b) { return _mm512_add_ps(a, b); }
INLINE vector v_sub(vector a, vector b) { return _mm512_sub_ps(a, b); }
INLINE vector v_mul(vector a, vector b) { return _mm512_mul_ps(a, b); }
INLINE vector v_div(vector a, vector b) { return _mm512_div_ps(a, b); }
INLINE vector v_abs(vector x) { return _mm512_abs_ps(x); }
INLINE float v_sum(vector x) { return _mm512_reduce_add_ps(x); }
/* a b + c, c - a b, a b - c */
INLINE vector v_mul_add(vector a, vector b, vector c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vector v_mul_from(vector a, vector b, vector c) { return _mm512_fnmadd_ps(a, b, c); }
INLINE vector v_mul_sub(vector a, vector b, vector c) { return _mm512_fmsub_ps(a, b, c); }
/* Of NaN and a number: b. */
INLINE vector v_min(vector a, vector b) { return _mm512_min_ps(a, b); }
INLINE vector v_max(vector a, vector b) { return _mm512_max_ps(a, b); }

/* To whole numbers; and x, about 1, times 2 to the power of whole numbers of any size. */
INLINE vector v_round(vector x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE vector v_shift(vector x, vector whole) { return _mm512_scalef_ps(x, whole); }

/* 1 / x, off by less than a factor of 1 + 2^-14; for x from 2^-126 to 2^126. */
INLINE vector v_rough_inverse(vector x) { return _mm512_rcp14_ps(x); }

/* From and to multiples of 64 bytes. */
INLINE vector v_load(const float *x) { return _mm512_load_ps(x); }
INLINE void v_store(float *x, vector v) { _mm512_store_ps(x, v); }

/* Lanes beyond `lanes` become zero, and are neither read nor written. Whole vectors go without a
 * mask: some processors take many times as long for a masked store. */
INLINE vector v_load_some(const float *x, some lanes) { return _mm512_maskz_loadu_ps(lanes, x); }
INLINE void v_store_some(float *x, vector v, some lanes) {
    if (lanes == ALL)
        _mm512_storeu_ps(x, v);
    else
        _mm512_mask_storeu_ps(x, lanes, v);
}
INLINE vector v_keep(vector x, some lanes) { return _mm512_maskz_mov_ps(lanes, x); }

/* Where not a < b (so with NaN too), a > b, a != b (with NaN too). */
INLINE mask v_not_less(vector a, vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
INLINE mask v_greater(vector a, vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
INLINE mask v_differ(vector a, vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
INLINE mask m_none(void) { return 0; }
INLINE mask m_or(mask a, mask b) { return (mask)(a | b); }
INLINE mask m_without(mask a, mask b) { return (mask)(a & ~b); }
INLINE int m_any(mask m) { return m != 0; }
INLINE vector v_choose(mask m, vector where, vector elsewhere) {
    return _mm512_mask_mov_ps(elsewhere, m, where);
}
INLINE vector v_where(mask m, vector x) { return _mm512_maskz_mov_ps(m, x); }

INLINE bits b_zero(void) { return _mm512_setzero_si512(); }
INLINE bits b_all(int32_t x) { return _mm512_set1_epi32(x); }
INLINE bits b_load(const void *x) { return _mm512_load_si512(x); }
INLINE void b_store(void *x, bits w) { _mm512_store_si512(x, w); }
INLINE void b_store_some(void *x, bits w, some lanes) { _mm512_mask_storeu_epi32(x, lanes, w); }
INLINE bits as_bits(vector v) { return _mm512_castps_si512(v); }
INLINE vector as_vector(bits w) { return _mm512_castsi512_ps(w); }

/* Swap rows and columns of LANES vectors: rounds of shuffles of words, of pairs, and twice of
 * quarters. */
INLINE void transpose(bits r[LANES]) {
    bits s[LANES];
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
        r[i] = _mm512_shuffle_i32x4(s[i], s[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(s[i], s[i + 8], 0xdd);
    }
}

/* Numbers in bfloat16: the upper halves of float32's. */
typedef __m256i halves;

INLINE vector v_widen(halves h) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
INLINE halves h_load_some(const uint16_t *x, some lanes) {
    return _mm256_maskz_loadu_epi16(lanes, x);
}
INLINE void h_store_some(uint16_t *x, halves h, some lanes) {
    if (lanes == ALL)
        _mm256_storeu_si256((__m256i *)x, h);
    else
        _mm256_mask_storeu_epi16(x, lanes, h);
}
/* Rounded to nearest, ties to even. */
INLINE halves v_narrow(vector x) {
#ifdef SFUMATO_ROUNDS
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    bits exact = as_bits(x), odd = _mm512_and_si512(_mm512_srli_epi32(exact, 16), b_all(1));
    bits rounded = _mm512_add_epi32(exact, _mm512_add_epi32(odd, b_all(0x7fff)));
    mask none = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, none, b_all(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
}

/* Numbers from bytes with a sign. */
INLINE vector v_from_bytes(const void *x) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x)));
}
/* A number in float16. */
INLINE float from_float16(uint16_t x) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x))); }

#endif
