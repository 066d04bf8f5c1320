/* Powers of two and what is made of them, 16 numbers at a time.
 *
 * Polynomials have the least relative error that their degree allows. Where results are rounded to
 * bfloat16, with an error of 2e-3, shorter ones do.
 */
#ifndef SFUMATO_EXPONENTIAL_H
#define SFUMATO_EXPONENTIAL_H

#include "cpu.h"

#define INLINE TARGET static inline __attribute__((always_inline))

/* terms[0] x^n + terms[1] x^(n-1) + ... + terms[n]; `count` is n + 1. */
INLINE __m512 polynomial(__m512 x, const float *terms, int count) {
    __m512 sum = _mm512_set1_ps(terms[0]);
#pragma GCC unroll 8
    for (int i = 1; i < count; i++)
        sum = _mm512_fmadd_ps(sum, x, _mm512_set1_ps(terms[i]));
    return sum;
}

/* 2 to the power of x, off by a factor of 1 + 3e-6 in bfloat16, else 1 + 1e-7. NaN for infinite x. */
INLINE __m512 power_of_two(__m512 x) {
    static const float brief[] = {0.00957010221f, 0.0559178591f, 0.240247443f, 0.693121791f,
                                  0.999999285f};
    static const float full[] = {0.000153458124f, 0.00133999309f, 0.00961848907f, 0.0555032864f,
                                 0.240226462f,    0.693147182f,   1.0f};
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 rest = _mm512_sub_ps(x, whole);
    __m512 part = PER_WORD == 2 ? polynomial(rest, brief, 5) : polynomial(rest, full, 7);
    return _mm512_scalef_ps(part, whole);
}

/* 1 / x, for x from 2^-126 to 2^126. */
INLINE __m512 reciprocal(__m512 x) {
    __m512 r = _mm512_rcp14_ps(x);
    if (PER_WORD == 2) return r;
    return _mm512_mul_ps(r, _mm512_fnmadd_ps(x, r, _mm512_set1_ps(2.0f)));
}

#define LOG2E 1.44269504f

/* x / (1 + e^(-slope x)): SiLU for a slope of 1. */
INLINE __m512 swish(__m512 x, float slope) {
    /* Bounds, since infinity would lead to NaN; NaN in x comes back with the product. */
    __m512 power = _mm512_mul_ps(x, _mm512_set1_ps(-slope * LOG2E));
    power = _mm512_max_ps(_mm512_min_ps(power, _mm512_set1_ps(125.0f)), _mm512_set1_ps(-125.0f));
    __m512 below = _mm512_add_ps(power_of_two(power), _mm512_set1_ps(1.0f));
    return _mm512_mul_ps(x, reciprocal(below));
}

/* x times the normal distribution's share below x: GELU, with the error function.
 *
 * The share beyond |x| is e^(-x^2 / 2) times a polynomial of 1 / (1 + s |x|), fitted for |x| up to
 * 13, with a relative error of 2e-5 in bfloat16 and 5e-8 in float32.
 */
INLINE __m512 gelu(__m512 x) {
    static const float brief[] = {0.275547475f,  -0.174524531f, 0.240019023f,
                                  0.0536804348f, 0.105717398f,  -0.000430267595f};
    static const float full[] = {-0.0790326372f, 0.293727636f,  -0.283818901f,
                                 0.306871593f,   -0.0360447094f, 0.120543599f,
                                 0.0854521468f,  0.0923304036f,  -2.91557735e-05f};
    const float slope = (PER_WORD == 2 ? 0.35f : 0.325f) * 0.707106781f;
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 size = _mm512_min_ps(_mm512_abs_ps(x), _mm512_set1_ps(1e3f));
    __m512 t = reciprocal(_mm512_fmadd_ps(size, _mm512_set1_ps(slope), one));
    __m512 power = _mm512_mul_ps(size, _mm512_mul_ps(size, _mm512_set1_ps(-0.5f * LOG2E)));
    __m512 beyond = PER_WORD == 2 ? polynomial(t, brief, 6) : polynomial(t, full, 9);
    beyond = _mm512_mul_ps(beyond, power_of_two(power));
    __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mul_ps(x, _mm512_mask_sub_ps(beyond, positive, one, beyond));
}

#endif
