/* Steps that 8-bit layers share: numbers to 8 bits and back. */
#ifndef SFUMATO_STEPS_INT8_H
#define SFUMATO_STEPS_INT8_H

#include <math.h>

#include "element_int8.h"

/* Numbers of a row are about scale * q + low. */
struct range { float scale, low; };

#define NUMBERS INLINE

/* Up to sixteen numbers from position `at` on. */
NUMBERS __m512 load_some(const void *x, long at, __mmask16 mask, int bfloat16) {
    if (!bfloat16) return _mm512_maskz_loadu_ps(mask, (const float *)x + at);
    __m256i raw = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)x + at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

/* Bits of which the upper half is the number in bfloat16, rounded to nearest, ties to even. */
NUMBERS __m512i rounded_bits(__m512 value) {
    __m512i bits = _mm512_castps_si512(value);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
}

/* Whole vectors go without a mask: some processors take many times as long for a masked store. */
NUMBERS void store_some(void *to, long at, __mmask16 mask, int bfloat16, __m512 value) {
    if (!bfloat16) {
        if (mask == 0xffff)
            _mm512_storeu_ps((float *)to + at, value);
        else
            _mm512_mask_storeu_ps((float *)to + at, mask, value);
        return;
    }
    __m256i halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded_bits(value), 16));
    if (mask == 0xffff)
        _mm256_storeu_si256((__m256i *)((uint16_t *)to + at), halves);
    else
        _mm256_mask_storeu_epi16((uint16_t *)to + at, mask, halves);
}

/* Where the upper halves of two vectors' words are. */
static const uint16_t UPPER_HALVES[32] __attribute__((aligned(64))) = {
    1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
    33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};

/* Two whole vectors after each other. */
NUMBERS void store_two(void *to, long at, int bfloat16, __m512 first, __m512 second) {
    if (!bfloat16) {
        _mm512_storeu_ps((float *)to + at, first);
        _mm512_storeu_ps((float *)to + at + 16, second);
        return;
    }
    __m512i upper = _mm512_load_si512(UPPER_HALVES);
    _mm512_storeu_si512((uint16_t *)to + at,
                        _mm512_permutex2var_epi16(rounded_bits(first), upper,
                                                  rounded_bits(second)));
}

NUMBERS void extremes_of(const void *x, long start, long count, int bfloat16, float *low,
                         float *high) {
    __m512 least[2], most[2];
    for (int i = 0; i < 2; i++) least[i] = _mm512_set1_ps(INFINITY);
    for (int i = 0; i < 2; i++) most[i] = _mm512_set1_ps(-INFINITY);
    long k = 0;
    for (; k + 32 <= count; k += 32)
        for (int i = 0; i < 2; i++) {
            __m512 v = load_some(x, start + k + 16 * i, 0xffff, bfloat16);
            least[i] = _mm512_min_ps(least[i], v);
            most[i] = _mm512_max_ps(most[i], v);
        }
    for (; k < count; k += 16) {
        __mmask16 mask = first_lanes(count - k);
        __m512 v = load_some(x, start + k, mask, bfloat16);
        least[0] = _mm512_mask_min_ps(least[0], mask, least[0], v);
        most[0] = _mm512_mask_max_ps(most[0], mask, most[0], v);
    }
    *low = _mm512_reduce_min_ps(_mm512_min_ps(least[0], least[1]));
    *high = _mm512_reduce_max_ps(_mm512_max_ps(most[0], most[1]));
}

TARGET static inline void find_extremes(const void *x, long start, long count, int bfloat16, float *low,
                                 float *high) {
    if (bfloat16)
        extremes_of(x, start, count, 1, low, high);
    else
        extremes_of(x, start, count, 0, low, high);
}

/* q = x * inverse + shift, to the nearest, 0 to 255. */
NUMBERS void quantise_of(const void *x, long start, long count, int bfloat16, float inverse,
                         float shift, element *to) {
    __m512 factor = _mm512_set1_ps(inverse), add = _mm512_set1_ps(shift);
    for (long k = 0; k < count; k += 16) {
        __mmask16 mask = first_lanes(count - k);
        __m512 v = load_some(x, start + k, mask, bfloat16);
        __m512i q = _mm512_cvtps_epi32(_mm512_fmadd_ps(v, factor, add));
        __m128i bytes = _mm512_cvtusepi32_epi8(_mm512_max_epi32(q, _mm512_setzero_si512()));
        if (mask == 0xffff)
            _mm_storeu_si128((__m128i *)(to + k), bytes);
        else
            _mm_mask_storeu_epi8(to + k, mask, bytes);
    }
}

TARGET static inline void quantise(const void *x, long start, long count, int bfloat16, float inverse,
                            float shift, element *to) {
    if (bfloat16)
        quantise_of(x, start, count, 1, inverse, shift, to);
    else
        quantise_of(x, start, count, 0, inverse, shift, to);
}

static inline float inverse_of(float scale) { return scale > 0 ? 1 / scale : 0; }

/* What sums of products stand for: the numbers' own sums and weights' scales put back in. */
NUMBERS __m512 restored(const float *sums, struct range range, __m512 scales, __m512 offsets,
                        __m512 add) {
    __m512 y = _mm512_cvtepi32_ps(_mm512_load_si512(sums));
    add = _mm512_fmadd_ps(_mm512_set1_ps(range.low), offsets, add);
    return _mm512_fmadd_ps(y, _mm512_mul_ps(_mm512_set1_ps(range.scale), scales), add);
}

#endif
