/* Which kernels this processor can run, and how fast its arithmetic is at the most. */
#include "cpu.h"

/* The instruction sets that are present, as a sum of the bits in cpu.h. */
SFUMATO_EXPORT int sfumato_features(void) {
#if SFUMATO_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return 0;
    return HAS_AVX512 + (__builtin_cpu_supports("avx512bf16") ? HAS_BF16 : 0) +
           (__builtin_cpu_supports("avx512vnni") ? HAS_VNNI : 0);
#else
    return 0;
#endif
}

#if SFUMATO_X86
/* Sixteen sums in registers: enough to hide the latency of 4-6 cycles on two units. */
#define ON_SIXTEEN(DO) \
    DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) \
    DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15)
#define DECLARE(i) __m512 s##i = _mm512_set1_ps(i); /* alike ones would be merged */
#define ADD_UP(i) total = _mm512_add_ps(total, s##i);

SFUMATO_AVX512 static float float32_loop(long rounds) {
    __m512 a = _mm512_set1_ps(1e-9f), b = a, total = _mm512_setzero_ps();
    ON_SIXTEEN(DECLARE)
#define MULTIPLY(i) s##i = _mm512_fmadd_ps(a, b, s##i);
    for (long r = 0; r < rounds; r++) {
        ON_SIXTEEN(MULTIPLY)
        __asm__ volatile("" : "+v"(a), "+v"(b));
    }
    ON_SIXTEEN(ADD_UP)
    return _mm512_reduce_add_ps(total);
}

SFUMATO_BF16 static float bfloat16_loop(long rounds) {
    __m512 total = _mm512_setzero_ps();
    __m512i a = _mm512_set1_epi16(0x3000), b = a;
    ON_SIXTEEN(DECLARE)
#define DOT(i) s##i = _mm512_dpbf16_ps(s##i, (__m512bh)a, (__m512bh)b);
    for (long r = 0; r < rounds; r++) {
        ON_SIXTEEN(DOT)
        __asm__ volatile("" : "+v"(a), "+v"(b));
    }
    ON_SIXTEEN(ADD_UP)
    return _mm512_reduce_add_ps(total);
}
#endif

/* Multiply and add in registers alone: `rounds` times 16 instructions of 16 (float32) or 32
 * (bfloat16) products. Time it for the rate that no kernel can exceed. */
SFUMATO_EXPORT float sfumato_ceiling(int bfloat16, long rounds) {
#if SFUMATO_X86
    int features = sfumato_features();
    if (bfloat16 && (features & HAS_BF16)) return bfloat16_loop(rounds);
    if (!bfloat16 && (features & HAS_AVX512)) return float32_loop(rounds);
#endif
    (void)bfloat16;
    (void)rounds;
    return -1.0f;
}
