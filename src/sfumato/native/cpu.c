/* What this processor can do. */
#include "cpu.h"

#if SFUMATO_X86
#include <cpuid.h>

/* Whether float16 is converted; not every compiler's builtin knows that name. */
static int has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}
#endif

int processor_features(void) {
#if SFUMATO_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return HAS_AVX2;
    return HAS_AVX2 + HAS_AVX512 + (__builtin_cpu_supports("avx512bf16") ? HAS_BF16 : 0) +
           (__builtin_cpu_supports("avx512vnni") ? HAS_VNNI : 0);
#else
    return 0;
#endif
}
