/* What the compiler and the processor offer.
 *
 * Every kernel carries its instruction set as an attribute of its own, so one build runs on any
 * x86-64; which kernels the processor runs is chosen in dispatch.c. On other processors, or with a
 * compiler that lacks the attributes, the kernels are left out and `sfumato_features` is 0.
 */
#ifndef SFUMATO_CPU_H
#define SFUMATO_CPU_H

#include <stddef.h>
#include <stdint.h>

#define SFUMATO_EXPORT __attribute__((visibility("default")))

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__APPLE__)
#define SFUMATO_X86 1
#include <immintrin.h>
#define AVX2_SET "avx2,fma,f16c"
#define AVX512_SET AVX2_SET ",avx512f,avx512bw,avx512dq,avx512vl"
#define SFUMATO_AVX2 __attribute__((target(AVX2_SET)))
#define SFUMATO_AVX512 __attribute__((target(AVX512_SET)))
#define SFUMATO_BF16 __attribute__((target(AVX512_SET ",avx512bf16")))
#define SFUMATO_VNNI __attribute__((target(AVX512_SET ",avx512vnni")))
#else
#define SFUMATO_X86 0
#endif

/* Bits of `sfumato_features`. */
enum { HAS_AVX512 = 1, HAS_BF16 = 2, HAS_VNNI = 4, HAS_AVX2 = 8 };

/* What this processor has; and what of it the kernels use: see dispatch.c. */
int processor_features(void);
int sfumato_features(void);

static inline long smaller(long a, long b) { return a < b ? a : b; }
static inline long larger(long a, long b) { return a > b ? a : b; }
static inline long round_up(long n, long unit) { return (n + unit - 1) / unit * unit; }

#endif
