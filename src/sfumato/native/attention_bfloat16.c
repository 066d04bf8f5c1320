/* Attention in bfloat16: the kernels of the headers, for this type. */
#include "cpu.h"

#if SFUMATO_X86
#include "element_bfloat16.h"

/* Words of the weights of two neighbouring keys, side by side for each query. */
TARGET static inline __attribute__((always_inline)) __m512i to_words(__m512 first, __m512 second) {
    static const uint16_t interleave[32] __attribute__((aligned(64))) = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31,
    };
    __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(second, first);
    return _mm512_permutexvar_epi16(_mm512_load_si512(interleave), halves);
}

/* The sum and both weights of each word. */
TARGET static inline __attribute__((always_inline)) __m512 add_words(__m512 sum, __m512i words) {
    return dot(sum, words, _mm512_set1_epi32(0x3f803f80)); /* ones */
}

#include "attention.h"
#endif
