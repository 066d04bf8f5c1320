/* What this processor can do. */
#include "cpu.h"

int processor_features(void) {
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
