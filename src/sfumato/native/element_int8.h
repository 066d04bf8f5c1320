/* The 8-bit side of the kernels: unsigned rows times signed weights, added up in int32. The sums
 * lie in the registers and arrays that other types have floats in, as bits. */
#ifndef SFUMATO_ELEMENT_H
#define SFUMATO_ELEMENT_H

#include "cpu.h"

typedef uint8_t element;
#define TARGET SFUMATO_VNNI
#define EXPORTED(name) name##_int8
enum { PER_WORD = 4 };

/* s + a[0] * b[0] + ... + a[3] * b[3] in each of 16 lanes; a is unsigned, b signed. */
TARGET static inline __attribute__((always_inline)) __m512 dot(__m512 s, __m512i a, __m512i b) {
    return (__m512)_mm512_dpbusd_epi32((__m512i)s, a, b);
}

#endif
