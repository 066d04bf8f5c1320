/* The layouts that attention_block.h reads, and the way back.
 *
 * A "word" of queries and keys is PER_WORD neighbouring channels, a word of values and weights is
 * PER_WORD neighbouring keys.
 */
#ifndef SFUMATO_ATTENTION_PACK_H
#define SFUMATO_ATTENTION_PACK_H

#include "attention.h"

/* Swap rows and columns of 16 x 16 words. */
INLINE void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int half = 0; half < 16; half += 8)
        for (int i = half; i < half + 4; i++) {
            t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
            t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

/* The first `count` of 16 or 32 lanes. */
static inline __mmask16 first_of_16(long count) {
    return (__mmask16)(count >= 16 ? 0xffff : (1u << count) - 1);
}
static inline __mmask32 first_of_32(long count) {
    return count >= 32 ? 0xffffffffu : (1u << count) - 1;
}

/* Up to 16 words from `row`, zeros after `count` elements. */
INLINE __m512i load_words(const element *row, long count) {
    return PER_WORD == 2 ? _mm512_maskz_loadu_epi16(first_of_32(count), row)
                         : _mm512_maskz_loadu_epi32(first_of_16(count), row);
}

/* Up to LANES rows of tokens, `stride` elements apart, to words with the tokens in the lanes. */
INLINE void pack_queries(const element *rows, long stride, long tokens, long size,
                         uint32_t *packed) {
    const long words = (size + PER_WORD - 1) / PER_WORD;
    for (long word = 0; word < words; word += 16)
        for (long token = 0; token < LANES; token += 16) {
            __m512i r[16];
            for (int i = 0; i < 16; i++) {
                const element *row = rows + (token + i) * stride + word * PER_WORD;
                r[i] = token + i < tokens ? load_words(row, size - word * PER_WORD)
                                          : _mm512_setzero_si512();
            }
            transpose(r);
            for (int i = 0; i < 16 && word + i < words; i++)
                _mm512_store_si512(packed + (word + i) * LANES + token, r[i]);
        }
}

/* A block of keys in rows without gaps; zeros follow the last up to a whole tile. */
INLINE void pack_keys(const element *rows, long stride, long keys, long size, uint32_t *packed) {
    const long words = (size + PER_WORD - 1) / PER_WORD;
    for (long key = 0; key < keys; key++, packed += words)
        for (long word = 0; word < words; word += 16)
            _mm512_mask_storeu_epi32(
                packed + word, first_of_16(words - word),
                load_words(rows + key * stride + word * PER_WORD, size - word * PER_WORD));
    memset(packed, 0, (size_t)((round_up(keys, TILE) - keys) * words) * sizeof *packed);
}

/* Sixteen words of up to PER_WORD rows, of which `rows` are there, and up to 16 channels. */
INLINE __m512i load_together(const element *row, long stride, long rows, long channels) {
    const __mmask16 mask = first_of_16(channels);
    if (rows <= 0) return _mm512_setzero_si512();
    if (PER_WORD == 1) return _mm512_maskz_loadu_epi32(mask, row);
    __m512i first = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row));
    if (rows == 1) return first;
    __m512i second = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row + stride));
    return _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
}

/* A block of values: per channel a row of BLOCK_WORDS words along the keys, zeros after the last
 * key up to a whole tile. */
INLINE void pack_values(const element *rows, long stride, long keys, long channels,
                        uint32_t *packed) {
    for (long word = 0; word * PER_WORD < round_up(keys, TILE); word += 16)
        for (long channel = 0; channel < channels; channel += 16) {
            __m512i r[16];
            for (int i = 0; i < 16; i++) {
                long key = (word + i) * PER_WORD;
                r[i] = load_together(rows + key * stride + channel, stride, keys - key,
                                     channels - channel);
            }
            transpose(r);
            for (int i = 0; i < 16 && channel + i < channels; i++)
                _mm512_store_si512(packed + (channel + i) * BLOCK_WORDS + word, r[i]);
        }
}

/* Divide the output by the sums of the weights and write it as rows of channels. */
INLINE void write_out(const struct part *part, element *rows, long stride, long tokens) {
    for (long token = 0; token < tokens; token += 16) {
        __m512 total = _mm512_load_ps(part->total + token);
        /* The result is 0 where all keys are masked, as in torch. */
        __mmask16 some = _mm512_cmp_ps_mask(total, _mm512_setzero_ps(), _CMP_NEQ_UQ);
        __m512 inverse = _mm512_maskz_div_ps(some, _mm512_set1_ps(1.0f), total);
        for (long channel = 0; channel < part->channels; channel += 16) {
            long width = smaller(part->channels - channel, 16);
            __m512i r[16];
            for (int i = 0; i < 16; i++) {
                const float *out = part->out + (channel + i) * LANES + token;
                __m512 x = i < width ? _mm512_load_ps(out) : _mm512_setzero_ps();
                r[i] = _mm512_castps_si512(_mm512_mul_ps(x, inverse));
            }
            transpose(r);
            for (int i = 0; i < 16 && token + i < tokens; i++)
                store_row(rows + (token + i) * stride + channel, _mm512_castsi512_ps(r[i]),
                          first_of_16(width));
        }
    }
}

#endif
