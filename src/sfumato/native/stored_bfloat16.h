/* Bfloat16 in memory. */
#ifndef SFUMATO_STORED_H
#define SFUMATO_STORED_H

#include <string.h>

typedef uint16_t stored;
/* Whether results are rounded so coarsely that short polynomials do. */
enum { COARSE = 1 };

static inline float widen(stored x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The first lanes' numbers in their natural order. */
INLINE vector load_row(const stored *x, some lanes) { return v_widen(h_load_some(x, lanes)); }
INLINE void store_row(stored *x, vector values, some lanes) {
    h_store_some(x, v_narrow(values), lanes);
}

#endif
