/* Vectors of AVX2, with FMA and F16C: the counterpart of vector_avx512.h. */
#ifndef SFUMATO_VECTOR_H
#define SFUMATO_VECTOR_H

#include "cpu.h"

#define INLINE TARGET static inline __attribute__((always_inline))

/* Numbers in a vector; and vectors of columns for which a tile of six rows has sums. */
#define LANES 8
#define VECTORS 2
/* Words that a loop over products takes at a time, and how far ahead it asks for them, if at all. */
enum { AT_A_TIME = 4, AHEAD = 0 };

typedef __m256 vector; /* of float32 */
typedef __m256i bits;  /* words of four bytes, which hold one number or several */
typedef __m256 mask;   /* lanes for which something holds: all bits of these */
typedef int some;      /* the first few lanes: how many */

enum { ALL = LANES };

INLINE some first_lanes(long count) { return count >= LANES ? ALL : count <= 0 ? 0 : (some)count; }

/* All bits of the first lanes. */
INLINE bits bits_of(some lanes) {
    static const int32_t ones[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i *)(ones + LANES - lanes));
}

INLINE vector v_zero(void) { return _mm256_setzero_ps(); }
INLINE vector v_all(float x) { return _mm256_set1_ps(x); }
INLINE vector v_add(vector a, vector b) { return _mm256_add_ps(a, b); }
INLINE vector v_sub(vector a, vector b) { return _mm256_sub_ps(a, b); }
INLINE vector v_mul(vector a, vector b) { return _mm256_mul_ps(a, b); }
INLINE vector v_div(vector a, vector b) { return _mm256_div_ps(a, b); }
INLINE vector v_abs(vector x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
INLINE float v_sum(vector x) {
    __m128 sums = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    sums = _mm_add_ps(sums, _mm_movehl_ps(sums, sums));
    return _mm_cvtss_f32(_mm_add_ss(sums, _mm_movehdup_ps(sums)));
}
/* a b + c, c - a b, a b - c */
INLINE vector v_mul_add(vector a, vector b, vector c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vector v_mul_from(vector a, vector b, vector c) { return _mm256_fnmadd_ps(a, b, c); }
INLINE vector v_mul_sub(vector a, vector b, vector c) { return _mm256_fmsub_ps(a, b, c); }
/* Of NaN and a number: b. */
INLINE vector v_min(vector a, vector b) { return _mm256_min_ps(a, b); }
INLINE vector v_max(vector a, vector b) { return _mm256_max_ps(a, b); }

/* To whole numbers; and x, about 1, times 2 to the power of whole numbers: infinity from 128 on,
 * zero from -127 down. */
INLINE vector v_round(vector x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE vector v_shift(vector x, vector whole) {
    whole = v_min(v_max(whole, v_all(-127.0f)), v_all(128.0f));
    bits exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    return v_mul(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

/* 1 / x, off by less than a factor of 1 + 2^-14; for x from 2^-126 to 2^126. */
INLINE vector v_rough_inverse(vector x) {
    vector r = _mm256_rcp_ps(x); /* off by 2^-11.4 at the most */
    return v_mul(r, v_mul_from(x, r, v_all(2.0f)));
}

/* From and to multiples of 32 bytes. */
INLINE vector v_load(const float *x) { return _mm256_load_ps(x); }
INLINE void v_store(float *x, vector v) { _mm256_store_ps(x, v); }

/* Lanes beyond `lanes` become zero, and are neither read nor written. Whole vectors go without a
 * mask: some processors take many times as long for a masked store. */
INLINE vector v_load_some(const float *x, some lanes) {
    return lanes == ALL ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, bits_of(lanes));
}
INLINE void v_store_some(float *x, vector v, some lanes) {
    if (lanes == ALL)
        _mm256_storeu_ps(x, v);
    else
        _mm256_maskstore_ps(x, bits_of(lanes), v);
}
INLINE vector v_keep(vector x, some lanes) {
    return lanes == ALL ? x : _mm256_and_ps(x, _mm256_castsi256_ps(bits_of(lanes)));
}

/* Where not a < b (so with NaN too), a > b, a != b (with NaN too). */
INLINE mask v_not_less(vector a, vector b) { return _mm256_cmp_ps(a, b, _CMP_NLT_UQ); }
INLINE mask v_greater(vector a, vector b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
INLINE mask v_differ(vector a, vector b) { return _mm256_cmp_ps(a, b, _CMP_NEQ_UQ); }
INLINE mask m_none(void) { return _mm256_setzero_ps(); }
INLINE mask m_or(mask a, mask b) { return _mm256_or_ps(a, b); }
INLINE mask m_without(mask a, mask b) { return _mm256_andnot_ps(b, a); }
INLINE int m_any(mask m) { return _mm256_movemask_ps(m) != 0; }
INLINE vector v_choose(mask m, vector where, vector elsewhere) {
    return _mm256_blendv_ps(elsewhere, where, m);
}
INLINE vector v_where(mask m, vector x) { return _mm256_and_ps(m, x); }

INLINE bits b_zero(void) { return _mm256_setzero_si256(); }
INLINE bits b_all(int32_t x) { return _mm256_set1_epi32(x); }
INLINE bits b_load(const void *x) { return _mm256_load_si256(x); }
INLINE void b_store(void *x, bits w) { _mm256_store_si256(x, w); }
INLINE void b_store_some(void *x, bits w, some lanes) {
    if (lanes == ALL)
        _mm256_storeu_si256(x, w);
    else
        _mm256_maskstore_epi32(x, bits_of(lanes), w);
}
INLINE bits as_bits(vector v) { return _mm256_castps_si256(v); }
INLINE vector as_vector(bits w) { return _mm256_castsi256_ps(w); }

/* Swap rows and columns of LANES vectors: rounds of shuffles of words, of pairs, and of halves. */
INLINE void transpose(bits r[LANES]) {
    bits s[LANES];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        s[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        s[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_unpacklo_epi64(s[i], s[i + 2]);
        r[i + 1] = _mm256_unpackhi_epi64(s[i], s[i + 2]);
        r[i + 2] = _mm256_unpacklo_epi64(s[i + 1], s[i + 3]);
        r[i + 3] = _mm256_unpackhi_epi64(s[i + 1], s[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        s[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
        s[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) r[i] = s[i];
}

/* Numbers in bfloat16: the upper halves of float32's. */
typedef __m128i halves;

INLINE vector v_widen(halves h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
INLINE halves h_load_some(const uint16_t *x, some lanes) {
    if (lanes == ALL) return _mm_loadu_si128((const __m128i *)x);
    uint16_t piece[LANES] __attribute__((aligned(16))) = {0};
    for (int i = 0; i < lanes; i++) piece[i] = x[i];
    return _mm_load_si128((const __m128i *)piece);
}
INLINE void h_store_some(uint16_t *x, halves h, some lanes) {
    if (lanes == ALL) {
        _mm_storeu_si128((__m128i *)x, h);
        return;
    }
    uint16_t piece[LANES] __attribute__((aligned(16)));
    _mm_store_si128((__m128i *)piece, h);
    for (int i = 0; i < lanes; i++) x[i] = piece[i];
}
/* Rounded to nearest, ties to even. */
INLINE halves v_narrow(vector x) {
    bits exact = as_bits(x), odd = _mm256_and_si256(_mm256_srli_epi32(exact, 16), b_all(1));
    bits rounded = _mm256_add_epi32(exact, _mm256_add_epi32(odd, b_all(0x7fff)));
    bits none = as_bits(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, b_all(0x7fc00000), none), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}

/* Numbers from bytes with a sign. */
INLINE vector v_from_bytes(const void *x) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(x)));
}
/* A number in float16. */
INLINE float from_float16(uint16_t x) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x))); }

#endif
