/* Which kernels compute: those for the most that this processor can do, or for less if asked.
 *
 * For ctypes every kernel is a function of its own for each type, `sfumato_NAME_float32` and
 * `sfumato_NAME_bfloat16`; they are what kernels.h says, and are called only where there are
 * kernels for the type.
 */
#include <stdatomic.h>

#include "cpu.h"
#include "kernels.h"

enum { UNKNOWN = -1 };
static atomic_int allowed = UNKNOWN;

/* The instruction sets in use, as a sum of the bits in cpu.h. */
SFUMATO_EXPORT int sfumato_features(void) {
    int features = atomic_load(&allowed);
    if (features == UNKNOWN) {
        features = processor_features();
        atomic_store(&allowed, features);
    }
    return features;
}

/* Use only those of the processor's instruction sets that are in this sum. */
SFUMATO_EXPORT void sfumato_use(int features) {
    atomic_store(&allowed, features & processor_features());
}

const struct kernels *sfumato_kernels(int bfloat16) {
#if SFUMATO_X86
    int features = sfumato_features();
    if (bfloat16 && features & HAS_BF16) return &bfloat16_avx512_bf16;
    if (features & HAS_AVX512) return bfloat16 ? &bfloat16_avx512 : &float32_avx512;
    if (features & HAS_AVX2) return bfloat16 ? &bfloat16_avx2 : &float32_avx2;
#endif
    (void)bfloat16;
    return NULL;
}

/* Bytes of a number in packed weights; 0 if there are no kernels. */
SFUMATO_EXPORT int sfumato_packed_bytes(int bfloat16) {
    const struct kernels *kernels = sfumato_kernels(bfloat16);
    return kernels ? (int)kernels->packed_bytes : 0;
}

/* See `ceiling` in kernels.h; 0 if there are no kernels. */
SFUMATO_EXPORT long sfumato_ceiling(int bfloat16, long rounds) {
    const struct kernels *kernels = sfumato_kernels(bfloat16);
    return kernels ? kernels->ceiling(rounds) : 0;
}

#define OF_TYPE(type, bfloat16, name, parameters, arguments)          \
    SFUMATO_EXPORT int sfumato_##name##_##type parameters;            \
    SFUMATO_EXPORT int sfumato_##name##_##type parameters {           \
        return sfumato_kernels(bfloat16)->name arguments;             \
    }
#define BOTH_TYPES(name, parameters, arguments)       \
    OF_TYPE(float32, 0, name, parameters, arguments)  \
    OF_TYPE(bfloat16, 1, name, parameters, arguments)

BOTH_TYPES(pack,
           (const void *weights, void *packed, long columns, long channels, long height, long width,
            const long *strides, int threads),
           (weights, packed, columns, channels, height, width, strides, threads))
BOTH_TYPES(pack_winograd,
           (const void *weights, void *packed, long columns, long channels, const long *strides,
            int size, int threads),
           (weights, packed, columns, channels, strides, size, threads))
BOTH_TYPES(linear,
           (const void *from, void *to, const void *packed, const void *bias, long rows, long length,
            long columns, int threads),
           (from, to, packed, bias, rows, length, columns, threads))
BOTH_TYPES(linear_once,
           (const void *from, void *to, const void *weights, const void *bias, long rows,
            long length, long columns, const long *strides, int threads),
           (from, to, weights, bias, rows, length, columns, strides, threads))
BOTH_TYPES(convolve,
           (const void *from, void *to, const void *packed, const void *bias, const long *sizes,
            int threads),
           (from, to, packed, bias, sizes, threads))
BOTH_TYPES(convolve_once,
           (const void *from, void *to, const void *weights, const void *bias, const long *sizes,
            const long *strides, int threads),
           (from, to, weights, bias, sizes, strides, threads))
BOTH_TYPES(winograd,
           (const void *from, void *to, const void *packed, const void *bias, const long *sizes,
            int threads),
           (from, to, packed, bias, sizes, threads))
BOTH_TYPES(winograd_once,
           (const void *from, void *to, const void *weights, const void *bias, const long *sizes,
            const long *strides, int threads),
           (from, to, weights, bias, sizes, strides, threads))
BOTH_TYPES(attention,
           (const void *q, const void *k, const void *v, void *out, const void *bias, int bias_kind,
            int causal, float scale, const long *sizes, int threads),
           (q, k, v, out, bias, bias_kind, causal, scale, sizes, threads))
BOTH_TYPES(group_norm,
           (const void *from, void *to, const void *weight, const void *bias, const long *sizes,
            float eps, int kind, int threads),
           (from, to, weight, bias, sizes, eps, kind, threads))
BOTH_TYPES(group_moments,
           (const void *from, double *moments, const long *sizes, int threads),
           (from, moments, sizes, threads))
BOTH_TYPES(scale,
           (const void *from, void *to, float *factors, const long *sizes, int kind, int threads),
           (from, to, factors, sizes, kind, threads))
BOTH_TYPES(layer_norm,
           (const void *from, void *to, const void *weight, const void *bias, long rows,
            long channels, float eps, int threads),
           (from, to, weight, bias, rows, channels, eps, threads))
BOTH_TYPES(geglu, (const void *from, void *to, long rows, long channels, int threads),
           (from, to, rows, channels, threads))
BOTH_TYPES(activate, (const void *from, void *to, long count, int kind, int threads),
           (from, to, count, kind, threads))
BOTH_TYPES(expand_blocks, (const void *from, void *to, int kind, long blocks, int threads),
           (from, to, kind, blocks, threads))
