/* Products of float32; numbers that lie in memory in another type are widened on the way. */
#ifndef SFUMATO_ELEMENT_H
#define SFUMATO_ELEMENT_H

#include <string.h>

typedef float element;
/* Elements in a word of four bytes, the unit in which sums of products advance. */
enum { PER_WORD = 1 };

INLINE vector dot(vector s, bits a, bits b) {
    return v_mul_add(as_vector(a), as_vector(b), s);
}

static inline element to_element(stored x) { return widen(x); }

/* Neighbouring numbers, as they are multiplied. */
INLINE void copy_row(const stored *from, element *to, long count) {
    if (sizeof(stored) == sizeof(element)) {
        memcpy(to, from, (size_t)count * sizeof *to);
        return;
    }
    for (long i = 0; i < count; i += LANES) {
        some lanes = first_lanes(count - i);
        v_store_some(to + i, load_row(from + i, lanes), lanes);
    }
}

/* Words of up to LANES * PER_WORD numbers; zeros follow after `count`. */
INLINE bits take_words(const stored *x, long count) {
    return as_bits(load_row(x, first_lanes(count)));
}

/* Words of up to PER_WORD rows, of which `rows` are there, and up to LANES channels. */
INLINE bits join_rows(const stored *x, long stride, long rows, long channels) {
    (void)stride;
    return rows <= 0 ? b_zero() : take_words(x, channels);
}

/* Up to 2 * LANES channels as two vectors. */
INLINE void load_block(const stored *x, long count, vector *first, vector *second) {
    *first = load_row(x, first_lanes(count));
    *second = load_row(x + LANES, first_lanes(count - LANES));
}

/* The channel that `store_block` puts at some place. */
static inline long channel_at(long place) { return place; }

INLINE void store_block(element *x, vector first, vector second) {
    v_store(x, first);
    v_store(x + LANES, second);
}

/* A word for each column of a vector, from one vector of columns for each place in the word. */
INLINE void store_words(element *x, const vector *numbers) { v_store(x, numbers[0]); }

/* The number at some place of each word. */
INLINE vector one_of_word(const element *x, int place) {
    (void)place;
    return v_load(x);
}

/* Words of PER_WORD neighbouring numbers of each lane; and the sums of these, as rounded. */
INLINE bits to_words(vector first, vector second) {
    (void)second;
    return as_bits(first);
}
INLINE vector add_words(vector sum, bits w) { return v_add(sum, as_vector(w)); }

#endif
