/* Float32 in memory. */
#ifndef SFUMATO_STORED_H
#define SFUMATO_STORED_H

#include <string.h>

typedef float stored;
/* Whether results are rounded so coarsely that short polynomials do. */
enum { COARSE = 0 };

static inline float widen(stored x) { return x; }

/* The first lanes' numbers in their natural order. */
INLINE vector load_row(const stored *x, some lanes) { return v_load_some(x, lanes); }
INLINE void store_row(stored *x, vector values, some lanes) { v_store_some(x, values, lanes); }

#endif
