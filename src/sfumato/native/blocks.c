/* Plain numbers from blocks of 32 with a scale, as GGUF files have them. */
#include "cpu.h"

#if SFUMATO_X86
#include <string.h>

#include "threads.h"

#define TARGET_EXPAND __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")))

enum { COUNT = 32, SOME_BLOCKS = 1024 };
/* Q8_0: scale, 32 signed bytes. Q4_0: scale, 32 nibbles from -8 on. Q4_1: scale, smallest number,
 * 32 nibbles. Scales are float16; of nibbles, first the lower ones of all bytes. */
enum kind { Q8_0, Q4_0, Q4_1 };
static const int block_bytes[] = {34, 18, 20};

struct expansion {
    const uint8_t *from;
    char *to;
    int bfloat16;
    enum kind kind;
    long blocks;
};

TARGET_EXPAND static inline float half(const uint8_t *at) {
    uint16_t bits;
    memcpy(&bits, at, sizeof bits);
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
}

TARGET_EXPAND static inline void store(char *to, int bfloat16, int part, __m512 value) {
    if (!bfloat16) {
        _mm512_storeu_ps((float *)to + 16 * part, value);
        return;
    }
    __m512i bits = _mm512_castps_si512(value); /* to nearest, ties to even */
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    _mm256_storeu_si256((__m256i *)((uint16_t *)to + 16 * part),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}

TARGET_EXPAND static void expand(const uint8_t *from, enum kind kind, char *to, int bfloat16) {
    __m512 scale = _mm512_set1_ps(half(from));
    __m512i first, second;
    __m512 low = _mm512_setzero_ps();
    if (kind == Q8_0) {
        first = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(from + 2)));
        second = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(from + 18)));
    } else {
        const uint8_t *nibbles = from + (kind == Q4_1 ? 4 : 2);
        __m512i raw = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)nibbles));
        first = _mm512_and_si512(raw, _mm512_set1_epi32(15));
        second = _mm512_srli_epi32(raw, 4);
        if (kind == Q4_1)
            low = _mm512_set1_ps(half(from + 2));
        else {
            first = _mm512_sub_epi32(first, _mm512_set1_epi32(8));
            second = _mm512_sub_epi32(second, _mm512_set1_epi32(8));
        }
    }
    store(to, bfloat16, 0, _mm512_fmadd_ps(_mm512_cvtepi32_ps(first), scale, low));
    store(to, bfloat16, 1, _mm512_fmadd_ps(_mm512_cvtepi32_ps(second), scale, low));
}

TARGET_EXPAND static void expand_some(void *context, long task, int worker) {
    const struct expansion *e = context;
    long stop = smaller((task + 1) * SOME_BLOCKS, e->blocks);
    (void)worker;
    for (long b = task * SOME_BLOCKS; b < stop; b++)
        expand(e->from + b * block_bytes[e->kind], e->kind,
               e->to + b * COUNT * (e->bfloat16 ? 2 : 4), e->bfloat16);
}

/* All numbers of `blocks` blocks, in their order. */
SFUMATO_EXPORT void sfumato_expand_blocks(const uint8_t *from, char *to, int bfloat16, int kind,
                                          long blocks, int threads) {
    struct expansion e = {from, to, bfloat16, (enum kind)kind, blocks};
    run_tasks(threads, (blocks + SOME_BLOCKS - 1) / SOME_BLOCKS, expand_some, &e);
}
#endif
