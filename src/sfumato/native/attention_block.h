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

#define BIAS(part, r, c) v_load((part)->bias_tile + (r) * QUERIES + LANES * (c))

/* Add to the sums: up to TILE rows of the left operand, `stride` words apart, times all of the
 * right one. */
INLINE void multiply_words(int rows, int columns, long words, const uint32_t *left, long stride,
                     const uint32_t *right, vector sums[TILE][COLUMNS]) {
#pragma GCC unroll AT_A_TIME
    for (long word = 0; word < words; word++) {
        bits b[COLUMNS];
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) b[c] = b_load(right + word * QUERIES + LANES * c);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            bits a = b_all((int32_t)left[r * stride + word]);
#pragma GCC unroll 4
            for (int c = 0; c < columns; c++) sums[r][c] = dot(sums[r][c], a, b[c]);
        }
    }
}

INLINE void score(int columns, const struct part *part, const uint32_t *keys,
                  vector scores[TILE][COLUMNS]) {
#pragma GCC unroll 6
    for (int r = 0; r < TILE; r++)
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) scores[r][c] = v_zero();
    multiply_words(TILE, columns, part->words, keys, part->words, part->queries, scores);
}

/* Raise the maxima to those of the scores, and scale down what was summed up before.
 *
 * Queries with a score that is NaN or infinite are lost: their result is NaN, as in torch.
 */
INLINE void raise_maximum(int columns, struct part *part, int valid,
                          vector scores[TILE][COLUMNS]) {
    const vector factor = v_all(part->factor);
#pragma GCC unroll 4
    for (int c = 0; c < columns; c++) {
        vector before = v_load(part->maximum + LANES * c), maximum = before;
        mask lost = part->lost[c];
#pragma GCC unroll 6
        for (int r = 0; r < TILE; r++) {
            if (r >= valid) break;
            vector x = v_mul(scores[r][c], factor);
            if (part->bias) x = v_mul_add(scores[r][c], factor, BIAS(part, r, c));
            lost = m_or(lost, v_not_less(x, v_all(INFINITY)));
            maximum = v_max(x, maximum);
        }
        maximum = v_choose(lost, v_zero(), maximum);
        part->lost[c] = lost;
        v_store(part->maximum + LANES * c, maximum);
        vector x = v_sub(before, maximum);
        if (part->bias) x = v_mul(x, v_all(LOG2E));
        x = power_of_two(v_max(x, v_all(-1e4f)));
        x = v_choose(lost, v_all(NAN), x);
        float *total = part->total + LANES * c;
        v_store(total, v_mul(v_load(total), x));
        for (long i = 0; i < part->channels; i++) {
            float *out = part->out + i * QUERIES + LANES * c;
            v_store(out, v_mul(v_load(out), x));
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
                 vector scores[TILE][COLUMNS], uint32_t *weights) {
    const vector log2e = v_all(LOG2E), factor = v_all(part->factor);
    vector sums[COLUMNS];
    mask large = m_none();
#pragma GCC unroll 4
    for (int c = 0; c < columns; c++) {
        vector maximum = v_load(part->maximum + LANES * c);
        sums[c] = v_zero();
#pragma GCC unroll 6
        for (int r = 0; r < TILE; r++) {
            vector x;
            if (guarded && part->bias) {
                x = v_mul_add(scores[r][c], factor, BIAS(part, r, c));
                x = v_mul(v_sub(x, maximum), log2e);
            } else {
                x = v_mul_sub(scores[r][c], factor, maximum);
            }
            scores[r][c] = power_of_two(x);
            if (guarded) {
                mask seen = v_not_less(x, v_all(-200.0f));
                scores[r][c] = r < valid ? v_where(seen, scores[r][c]) : v_zero();
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < TILE; r += PER_WORD) {
            bits words = to_words(scores[r][c], scores[r + PER_WORD - 1][c]);
            sums[c] = add_words(sums[c], words); /* as rounded, so that these errors cancel */
            b_store(weights + r / PER_WORD * QUERIES + LANES * c, words);
        }
        large = m_or(large, m_without(v_not_less(sums[c], v_all(ROOM)), part->lost[c]));
    }
    if (m_any(large)) return 0;
#pragma GCC unroll 4
    for (int c = 0; c < columns; c++) {
        float *total = part->total + LANES * c;
        v_store(total, v_add(v_load(total), sums[c]));
    }
    return 1;
}

/* Add values times weights to the output: `rows` channels. */
INLINE void add_products(int rows, int columns, long words, const uint32_t *values,
                     const uint32_t *weights, float *out) {
    vector sums[TILE][COLUMNS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) sums[r][c] = v_load(out + r * QUERIES + LANES * c);
    multiply_words(rows, columns, words, values, BLOCK_WORDS, weights, sums);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) v_store(out + r * QUERIES + LANES * c, sums[r][c]);
}

/* The same for all channels; `first` and `words` say which weights of the block. */
INLINE void add_values(int columns, struct part *part, const uint32_t *values, long first,
                       long words) {
    const uint32_t *weights = part->weights + first * QUERIES;
    float *out = part->out;
    long left = part->channels;
    values += first;
    for (; left >= TILE; left -= TILE, values += TILE * BLOCK_WORDS, out += TILE * QUERIES)
        add_products(TILE, columns, words, values, weights, out);
    switch (left) {
    case 1: add_products(1, columns, words, values, weights, out); break;
    case 2: add_products(2, columns, words, values, weights, out); break;
    case 3: add_products(3, columns, words, values, weights, out); break;
    case 4: add_products(4, columns, words, values, weights, out); break;
    case 5: add_products(5, columns, words, values, weights, out); break;
    }
}

/* One block of keys, the first of which is number `first`.
 *
 * Weights are taken relative to a maximum per query, that of the first keys. Later scores may be
 * larger: floating point loses nothing by large weights, so the maximum is raised only when they
 * leave the range in which sums are safe, which hardly ever happens.
 */
INLINE void attend(int columns, struct part *part, long first, const uint32_t *keys,
                   const uint32_t *values) {
    const long in_block = smaller(part->keys - first, BLOCK_KEYS), tile_words = TILE / PER_WORD;
    long done = 0, word = 0; /* of the block: words of weights that are in `out`, and in all */
    for (long key = 0; key < in_block; key += TILE, word += tile_words) {
        const uint32_t *tile_keys = keys + key * part->words;
        uint32_t *weights = part->weights + word * QUERIES;
        int valid = (int)smaller(in_block - key, TILE), plain = valid == TILE && !part->bias;
        vector scores[TILE][COLUMNS];
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

#endif
