/* The 8-bit side of the kernels: unsigned rows times signed weights, added up in int32. The sums
 * lie in the registers and arrays that other types have floats in, as bits. */
#ifndef SFUMATO_ELEMENT_H
#define SFUMATO_ELEMENT_H

#include "cpu.h"

#define TARGET SFUMATO_VNNI
#include "vector_avx512.h"

typedef uint8_t element;
enum { PER_WORD = 4 };

/* s + a[0] * b[0] + ... + a[3] * b[3] in each lane; a is unsigned, b signed. */
INLINE vector dot(vector s, bits a, bits b) {
    return (__m512)_mm512_dpbusd_epi32((__m512i)s, a, b);
}

#endif
