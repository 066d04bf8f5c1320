/* Attention of one block of queries to all keys of its head.
 *
 * Queries lie side by side in the lanes of registers, so that maxima and sums of the softmax need
 * no work across lanes. Both products are the same loop: a word of the left operand, repeated in
 * all lanes, times a row of words of the right one.
 *
 *   scores[key][query] = sum over words of keys[key][word] * queries[word][query]
 *   out[channel][query] += sum over words of values[channel][word] * weights[word][query]
 */
#ifndef SFUMATO_ATTENTION_BLOCK_H
#define SFUMATO_ATTENTION_BLOCK_H

#include "attention.h"

#define BIAS(part, r, c) _mm512_load_ps((part)->bias_tile + (r) * LANES + 16 * (c))

/* Add to the sums: up to TILE rows of the left operand, `stride` words apart, times all of the
 * right one. */
INLINE void multiply(int rows, int columns, long words, const uint32_t *left, long stride,
                     const uint32_t *right, __m512 sums[TILE][COLUMNS]) {
    for (long word = 0; word < words; word++) {
        __m512i b[COLUMNS];
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) b[c] = _mm512_load_si512(right + word * LANES + 16 * c);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            __m512i a = _mm512_set1_epi32((int)left[r * stride + word]);
#pragma GCC unroll 4
            for (int c = 0; c < columns; c++) sums[r][c] = dot(sums[r][c], a, b[c]);
        }
    }
}

INLINE void score(int columns, const struct part *part, const uint32_t *keys,
                  __m512 scores[TILE][COLUMNS]) {
#pragma GCC unroll 6
    for (int r = 0; r < TILE; r++)
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) scores[r][c] = _mm512_setzero_ps();
    multiply(TILE, columns, part->words, keys, part->words, part->queries, scores);
}

/* Raise the maxima to those of the scores, and scale down what was summed up before.
 *
 * Queries with a score that is NaN or infinite are lost: their result is NaN, as in torch.
 */
INLINE void raise_maximum(int columns, struct part *part, int valid,
                          __m512 scores[TILE][COLUMNS]) {
    const __m512 factor = _mm512_set1_ps(part->factor);
#pragma GCC unroll 4
    for (int c = 0; c < columns; c++) {
        __m512 before = _mm512_load_ps(part->maximum + 16 * c), maximum = before;
        __mmask16 lost = part->lost[c];
#pragma GCC unroll 6
        for (int r = 0; r < TILE; r++) {
            if (r >= valid) break;
            __m512 x = _mm512_mul_ps(scores[r][c], factor);
            if (part->bias) x = _mm512_fmadd_ps(scores[r][c], factor, BIAS(part, r, c));
            lost |= _mm512_cmp_ps_mask(x, _mm512_set1_ps(INFINITY), _CMP_NLT_UQ);
            maximum = _mm512_max_ps(x, maximum);
        }
        maximum = _mm512_mask_mov_ps(maximum, lost, _mm512_setzero_ps());
        part->lost[c] = lost;
        _mm512_store_ps(part->maximum + 16 * c, maximum);
        __m512 x = _mm512_sub_ps(before, maximum);
        if (part->bias) x = _mm512_mul_ps(x, _mm512_set1_ps(LOG2E));
        x = power_of_two(_mm512_max_ps(x, _mm512_set1_ps(-1e4f)));
        x = _mm512_mask_mov_ps(x, lost, _mm512_set1_ps(NAN));
        float *total = part->total + 16 * c;
        _mm512_store_ps(total, _mm512_mul_ps(_mm512_load_ps(total), x));
        for (long i = 0; i < part->channels; i++) {
            float *out = part->out + i * LANES + 16 * c;
            _mm512_store_ps(out, _mm512_mul_ps(_mm512_load_ps(out), x));
        }
    }
}

/* From scores to unnormalised weights 2^(score - maximum).
 *
 * Returns whether all are of a size that leaves room for sums; only then are they added to the
 * total. `guarded` also takes care of a bias, of fewer than TILE keys, and of scores of minus
 * infinity; without it those become NaN, which is no such size.
 */
INLINE int weigh(int columns, int guarded, struct part *part, int valid,
                 __m512 scores[TILE][COLUMNS], uint32_t *weights) {
    const __m512 log2e = _mm512_set1_ps(LOG2E), factor = _mm512_set1_ps(part->factor);
    __m512 sums[COLUMNS];
    unsigned large = 0;
#pragma GCC unroll 4
    for (int c = 0; c < columns; c++) {
        __m512 maximum = _mm512_load_ps(part->maximum + 16 * c);
        sums[c] = _mm512_setzero_ps();
#pragma GCC unroll 6
        for (int r = 0; r < TILE; r++) {
            __m512 x;
            if (guarded && part->bias) {
                x = _mm512_fmadd_ps(scores[r][c], factor, BIAS(part, r, c));
                x = _mm512_mul_ps(_mm512_sub_ps(x, maximum), log2e);
            } else {
                x = _mm512_fmsub_ps(scores[r][c], factor, maximum);
            }
            scores[r][c] = power_of_two(x);
            if (guarded) {
                __mmask16 seen = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-200.0f), _CMP_NLT_UQ);
                scores[r][c] = _mm512_maskz_mov_ps(r < valid ? seen : 0, scores[r][c]);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < TILE; r += PER_WORD) {
            __m512i words = to_words(scores[r][c], scores[r + PER_WORD - 1][c]);
            sums[c] = add_words(sums[c], words); /* as rounded, so that these errors cancel */
            _mm512_store_si512(weights + r / PER_WORD * LANES + 16 * c, words);
        }
        large |= _mm512_cmp_ps_mask(sums[c], _mm512_set1_ps(ROOM), _CMP_NLT_UQ) & ~part->lost[c];
    }
    if (large) return 0;
#pragma GCC unroll 4
    for (int c = 0; c < columns; c++) {
        float *total = part->total + 16 * c;
        _mm512_store_ps(total, _mm512_add_ps(_mm512_load_ps(total), sums[c]));
    }
    return 1;
}

/* Add values times weights to the output: `rows` channels. */
INLINE void add_rows(int rows, int columns, long words, const uint32_t *values,
                     const uint32_t *weights, float *out) {
    __m512 sums[TILE][COLUMNS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) sums[r][c] = _mm512_load_ps(out + r * LANES + 16 * c);
    multiply(rows, columns, words, values, BLOCK_WORDS, weights, sums);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) _mm512_store_ps(out + r * LANES + 16 * c, sums[r][c]);
}

/* The same for all channels; `first` and `words` say which weights of the block. */
INLINE void add_values(int columns, struct part *part, const uint32_t *values, long first,
                       long words) {
    const uint32_t *weights = part->weights + first * LANES;
    float *out = part->out;
    long left = part->channels;
    values += first;
    for (; left >= TILE; left -= TILE, values += TILE * BLOCK_WORDS, out += TILE * LANES)
        add_rows(TILE, columns, words, values, weights, out);
    switch (left) {
    case 1: add_rows(1, columns, words, values, weights, out); break;
    case 2: add_rows(2, columns, words, values, weights, out); break;
    case 3: add_rows(3, columns, words, values, weights, out); break;
    case 4: add_rows(4, columns, words, values, weights, out); break;
    case 5: add_rows(5, columns, words, values, weights, out); break;
    }
}

/* One block of keys, the first of which is number `first`.
 *
 * Weights are taken relative to a maximum per query, that of the first keys. Later scores may be
 * larger: floating point loses nothing by large weights, so the maximum is raised only when they
 * leave the range in which sums are safe, which hardly ever happens.
 */
INLINE void attend_to_block(int columns, struct part *part, long first, const uint32_t *keys,
                            const uint32_t *values) {
    const long in_block = smaller(part->keys - first, BLOCK), tile_words = TILE / PER_WORD;
    long done = 0, word = 0; /* of the block: words of weights that are in `out`, and in all */
    for (long key = 0; key < in_block; key += TILE, word += tile_words) {
        const uint32_t *tile_keys = keys + key * part->words;
        uint32_t *weights = part->weights + word * LANES;
        int valid = (int)smaller(in_block - key, TILE), plain = valid == TILE && !part->bias;
        __m512 scores[TILE][COLUMNS];
        score(columns, part, tile_keys, scores);
        if (part->bias) fill_bias(part, first + key, valid);
        if (first + key > 0) {
            if (plain ? weigh(columns, 0, part, TILE, scores, weights)
                      : weigh(columns, 1, part, valid, scores, weights))
                continue;
            /* The output has to hold all that was weighed so far before it is scaled. */
            add_values(columns, part, values, done, word - done);
            done = word;
            score(columns, part, tile_keys, scores);
        }
        raise_maximum(columns, part, valid, scores);
        weigh(columns, 1, part, valid, scores, weights);
    }
    add_values(columns, part, values, done, word - done);
}

INLINE void attend(int columns, struct part *part, const uint32_t *keys, const uint32_t *values) {
    for (long first = 0; first < part->keys; first += BLOCK) {
        attend_to_block(columns, part, first, keys, values);
        keys += BLOCK * part->words;
        values += part->channels * BLOCK_WORDS;
    }
}

#endif
