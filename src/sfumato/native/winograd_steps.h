/* One-dimensional steps of Winograd's convolution with three taps, on vectors of numbers.
 *
 * `size` is 4 (two outputs, points 0, 1, -1 and infinity) or 6 (four outputs, points 0, NEAR,
 * -NEAR, FAR, -FAR and infinity); it is a constant wherever these are called. Two dimensions are
 * one step along each. Method: A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural
 * Networks (2015). NEAR and FAR round to half the error of the usual 1 and 2 (measured against
 * float64 among some ten pairs) and are exact in binary, as are their squares and products.
 */
#ifndef SFUMATO_WINOGRAD_STEPS_H
#define SFUMATO_WINOGRAD_STEPS_H

#define STEP INLINE void

enum { MOST_SIZE = 6 };
#define NEAR 0.625f
#define FAR 1.375f

INLINE vector times(float factor, vector x) { return v_mul(v_all(factor), x); }
INLINE vector plus(vector s, float factor, vector x) { return v_mul_add(v_all(factor), x, s); }
INLINE vector minus(vector s, float factor, vector x) { return v_mul_from(v_all(factor), x, s); }

/* Inputs at x[0], x[gap], ... to products' left sides at y[0], y[step], ... */
STEP input_step(const int size, const vector *x, const int gap, vector *y, const int step) {
    vector x0 = x[0], x1 = x[gap], x2 = x[2 * gap], x3 = x[3 * gap];
    if (size == 4) {
        y[0] = v_sub(x0, x2);
        y[step] = v_add(x1, x2);
        y[2 * step] = v_sub(x2, x1);
        y[3 * step] = v_sub(x1, x3);
        return;
    }
    vector x4 = x[4 * gap], x5 = x[5 * gap];
    vector even_near = minus(x4, FAR * FAR, x2), odd_near = minus(x3, FAR * FAR, x1);
    vector even_far = minus(x4, NEAR * NEAR, x2), odd_far = minus(x3, NEAR * NEAR, x1);
    y[0] = plus(minus(x4, NEAR * NEAR + FAR * FAR, x2), NEAR * NEAR * FAR * FAR, x0);
    y[step] = plus(even_near, NEAR, odd_near);
    y[2 * step] = minus(even_near, NEAR, odd_near);
    y[3 * step] = plus(even_far, FAR, odd_far);
    y[4 * step] = minus(even_far, FAR, odd_far);
    y[5 * step] = plus(minus(x5, NEAR * NEAR + FAR * FAR, x3), NEAR * NEAR * FAR * FAR, x1);
}

/* Sums of products to outputs: two of four, or four of six. */
STEP output_step(const int size, const vector *x, const int gap, vector *y, const int step) {
    vector sum = v_add(x[gap], x[2 * gap]), difference = v_sub(x[gap], x[2 * gap]);
    if (size == 4) {
        y[0] = v_add(x[0], sum);
        y[step] = v_sub(difference, x[3 * gap]);
        return;
    }
    vector far_sum = v_add(x[3 * gap], x[4 * gap]);
    vector far_difference = v_sub(x[3 * gap], x[4 * gap]);
    y[0] = v_add(x[0], v_add(sum, far_sum));
    y[step] = plus(times(NEAR, difference), FAR, far_difference);
    y[2 * step] = plus(times(NEAR * NEAR, sum), FAR * FAR, far_sum);
    y[3 * step] = plus(plus(x[5 * gap], NEAR * NEAR * NEAR, difference), FAR * FAR * FAR,
                       far_difference);
}

/* Three taps to products' right sides. */
STEP weight_step(const int size, const vector *g, const int gap, vector *u, const int step) {
    vector g0 = g[0], g1 = g[gap], g2 = g[2 * gap];
    if (size == 4) {
        vector outer = v_add(g0, g2);
        u[0] = g0;
        u[step] = times(0.5f, v_add(outer, g1));
        u[2 * step] = times(0.5f, v_sub(outer, g1));
        u[3 * step] = g2;
        return;
    }
    const float near_factor = 1 / (2 * NEAR * NEAR * (NEAR * NEAR - FAR * FAR));
    const float far_factor = 1 / (2 * FAR * FAR * (FAR * FAR - NEAR * NEAR));
    vector near_outer = plus(g0, NEAR * NEAR, g2), far_outer = plus(g0, FAR * FAR, g2);
    u[0] = times(1 / (NEAR * NEAR * FAR * FAR), g0);
    u[step] = times(near_factor, plus(near_outer, NEAR, g1));
    u[2 * step] = times(near_factor, minus(near_outer, NEAR, g1));
    u[3 * step] = times(far_factor, plus(far_outer, FAR, g1));
    u[4 * step] = times(far_factor, minus(far_outer, FAR, g1));
    u[5 * step] = g2;
}

/* Both dimensions: rows of `in` are `gap` apart; the result is packed, row after row. */
STEP input_square(const int size, const vector *x, vector *y) {
    vector half[MOST_SIZE * MOST_SIZE];
#pragma GCC unroll 6
    for (int i = 0; i < size; i++) input_step(size, x + i, size, half + i, size);
#pragma GCC unroll 6
    for (int i = 0; i < size; i++) input_step(size, half + i * size, 1, y + i * size, 1);
}

STEP output_square(const int size, const vector *x, vector *y) {
    vector half[MOST_SIZE * MOST_SIZE];
#pragma GCC unroll 6
    for (int i = 0; i < size; i++) output_step(size, x + i, size, half + i, size);
#pragma GCC unroll 4
    for (int i = 0; i < size - 2; i++)
        output_step(size, half + i * size, 1, y + i * (size - 2), 1);
}

STEP weight_square(const int size, const vector *g, vector *u) {
    vector half[MOST_SIZE * 3];
#pragma GCC unroll 3
    for (int i = 0; i < 3; i++) weight_step(size, g + i, 3, half + i, 3);
#pragma GCC unroll 6
    for (int i = 0; i < size; i++) weight_step(size, half + i * 3, 1, u + i * size, 1);
}

#endif
