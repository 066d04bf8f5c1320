/* The layouts that attention_block.h reads, and the way back.
 *
 * A "word" of queries and keys is PER_WORD neighbouring channels, a word of values and weights is
 * PER_WORD neighbouring keys.
 */
#ifndef SFUMATO_ATTENTION_PACK_H
#define SFUMATO_ATTENTION_PACK_H

#include "attention.h"

/* Up to QUERIES rows of tokens, `stride` elements apart, to words with the tokens in the lanes. The
 * last token stands for those that are missing. */
INLINE void pack_queries(const stored *rows, long stride, long tokens, long size,
                         uint32_t *packed) {
    const long words = (size + PER_WORD - 1) / PER_WORD;
    for (long word = 0; word < words; word += LANES)
        for (long token = 0; token < QUERIES; token += LANES) {
            bits r[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) {
                const stored *row = rows + smaller(token + i, tokens - 1) * stride;
                r[i] = take_words(row + word * PER_WORD, size - word * PER_WORD);
            }
            transpose(r);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                if (word + i < words) b_store(packed + (word + i) * QUERIES + token, r[i]);
        }
}

/* A block of keys in rows without gaps; zeros follow the last up to a whole tile. */
INLINE void pack_keys(const stored *rows, long stride, long keys, long size, uint32_t *packed) {
    const long words = (size + PER_WORD - 1) / PER_WORD;
    for (long key = 0; key < keys; key++, packed += words)
        for (long word = 0; word < words; word += LANES)
            b_store_some(packed + word,
                         take_words(rows + key * stride + word * PER_WORD, size - word * PER_WORD),
                         first_lanes(words - word));
    memset(packed, 0, (size_t)((round_up(keys, TILE) - keys) * words) * sizeof *packed);
}

/* A block of values: per channel a row of BLOCK_WORDS words along the keys, zeros after the last
 * key up to a whole tile. */
INLINE void pack_values(const stored *rows, long stride, long keys, long channels,
                        uint32_t *packed) {
    for (long word = 0; word * PER_WORD < round_up(keys, TILE); word += LANES)
        for (long channel = 0; channel < channels; channel += LANES) {
            bits r[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) {
                long key = (word + i) * PER_WORD;
                r[i] = join_rows(rows + key * stride + channel, stride, keys - key,
                                 channels - channel);
            }
            transpose(r);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                if (channel + i < channels)
                    b_store(packed + (channel + i) * BLOCK_WORDS + word, r[i]);
        }
}

/* Divide the output by the sums of the weights and write it as rows of channels. */
INLINE void write_out(const struct part *part, stored *rows, long stride, long tokens) {
    for (long token = 0; token < tokens; token += LANES) {
        vector total = v_load(part->total + token);
        /* The result is 0 where all keys are masked, as in torch. */
        mask found = v_differ(total, v_zero());
        vector inverse = v_where(found, v_div(v_all(1.0f), total));
        for (long channel = 0; channel < part->channels; channel += LANES) {
            long width = smaller(part->channels - channel, LANES);
            bits r[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) {
                const float *out = part->out + (channel + smaller(i, width - 1)) * QUERIES;
                r[i] = as_bits(v_mul(v_load(out + token), inverse));
            }
            transpose(r);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                if (token + i < tokens)
                    store_row(rows + (token + i) * stride + channel, as_vector(r[i]),
                              first_lanes(width));
        }
    }
}

#endif
