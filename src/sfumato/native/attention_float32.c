/* Attention in float32: the kernels of the headers, for this type. */
#include "cpu.h"

#if SFUMATO_X86
#include "element_float32.h"

TARGET static inline __attribute__((always_inline)) __m512i to_words(__m512 weight, __m512 same) {
    (void)same;
    return _mm512_castps_si512(weight);
}

TARGET static inline __attribute__((always_inline)) __m512 add_words(__m512 sum, __m512i words) {
    return _mm512_add_ps(sum, _mm512_castsi512_ps(words));
}

#include "attention.h"
#endif
