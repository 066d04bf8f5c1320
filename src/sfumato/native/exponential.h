/* Powers of two and what is made of them, a vector at a time.
 *
 * Polynomials have the least relative error that their degree allows. Where results are rounded to
 * bfloat16, with an error of 2e-3, shorter ones do.
 */
#ifndef SFUMATO_EXPONENTIAL_H
#define SFUMATO_EXPONENTIAL_H

/* terms[0] x^n + terms[1] x^(n-1) + ... + terms[n]; `count` is n + 1. */
INLINE vector polynomial(vector x, const float *terms, int count) {
    vector sum = v_all(terms[0]);
#pragma GCC unroll 8
    for (int i = 1; i < count; i++)
        sum = v_mul_add(sum, x, v_all(terms[i]));
    return sum;
}

/* 2 to the power of x, off by a factor of 1 + 3e-6 in bfloat16, else 1 + 1e-7. NaN for infinite x. */
INLINE vector power_of_two(vector x) {
    static const float brief[] = {0.00957010221f, 0.0559178591f, 0.240247443f, 0.693121791f,
                                  0.999999285f};
    static const float full[] = {0.000153458124f, 0.00133999309f, 0.00961848907f, 0.0555032864f,
                                 0.240226462f,    0.693147182f,   1.0f};
    vector whole = v_round(x);
    vector rest = v_sub(x, whole);
    vector part = COARSE ? polynomial(rest, brief, 5) : polynomial(rest, full, 7);
    return v_shift(part, whole);
}

/* 1 / x, for x from 2^-126 to 2^126. */
INLINE vector reciprocal(vector x) {
    vector r = v_rough_inverse(x);
    if (COARSE) return r;
    return v_mul(r, v_mul_from(x, r, v_all(2.0f)));
}

#define LOG2E 1.44269504f

/* x / (1 + e^(-slope x)): SiLU for a slope of 1. */
INLINE vector swish(vector x, float slope) {
    /* Bounds, since infinity would lead to NaN; NaN in x comes back with the product. */
    vector power = v_mul(x, v_all(-slope * LOG2E));
    power = v_max(v_min(power, v_all(125.0f)), v_all(-125.0f));
    vector below = v_add(power_of_two(power), v_all(1.0f));
    return v_mul(x, reciprocal(below));
}

/* x times the normal distribution's share below x: GELU, with the error function.
 *
 * The share beyond |x| is e^(-x^2 / 2) times a polynomial of 1 / (1 + s |x|), fitted for |x| up to
 * 13, with a relative error of 2e-5 in bfloat16 and 5e-8 in float32.
 */
INLINE vector gelu(vector x) {
    static const float brief[] = {0.275547475f,  -0.174524531f, 0.240019023f,
                                  0.0536804348f, 0.105717398f,  -0.000430267595f};
    static const float full[] = {-0.0790326372f, 0.293727636f,  -0.283818901f,
                                 0.306871593f,   -0.0360447094f, 0.120543599f,
                                 0.0854521468f,  0.0923304036f,  -2.91557735e-05f};
    const float slope = (COARSE ? 0.35f : 0.325f) * 0.707106781f;
    const vector one = v_all(1.0f);
    vector size = v_min(v_abs(x), v_all(1e3f));
    vector t = reciprocal(v_mul_add(size, v_all(slope), one));
    vector power = v_mul(size, v_mul(size, v_all(-0.5f * LOG2E)));
    vector beyond = COARSE ? polynomial(t, brief, 6) : polynomial(t, full, 9);
    beyond = v_mul(beyond, power_of_two(power));
    return v_mul(x, v_choose(v_greater(x, v_zero()), v_sub(one, beyond), beyond));
}

#endif
