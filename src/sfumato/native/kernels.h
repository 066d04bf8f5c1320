/* What there is to be computed in float32 and bfloat16: a table of functions for each variant, that
 * is a type of numbers in memory and the instructions that compute with them.
 *
 * Arrays are dense unless there are strides, maps channels-last (batch, height, width, channels),
 * and all of one type but where it says float or double. A bias may be NULL, and so may the weights
 * of norms. Strides and sizes count numbers, not bytes. All return 0, or -1 when there is no memory.
 */
#ifndef SFUMATO_KERNELS_H
#define SFUMATO_KERNELS_H

#include <stddef.h>

struct kernels {
    /* Of numbers in packed weights, which `pack` and `pack_winograd` make for `linear`, `convolve`
     * and `winograd` of the same variant, from a multiple of 64 bytes on. */
    size_t packed_bytes;

    /* Weights (columns, channels, kernel height, kernel width) with these strides. `packed` has
     * room for height * width * channels, filled up to an even number, times round_up(columns, 16). */
    int (*pack)(const void *weights, void *packed, long columns, long channels, long height,
                long width, const long *strides, int threads);
    /* Weights (columns, channels, 3, 3). `packed` has room for size * size * round_up(channels, 32) *
     * round_up(columns, 16). */
    int (*pack_winograd)(const void *weights, void *packed, long columns, long channels,
                         const long *strides, int size, int threads);

    /* to (rows, columns) = from (rows, length) times weights, plus the bias; the second one takes
     * weights (columns, length) with two strides as they are. */
    int (*linear)(const void *from, void *to, const void *packed, const void *bias, long rows,
                  long length, long columns, int threads);
    int (*linear_once)(const void *from, void *to, const void *weights, const void *bias, long rows,
                       long length, long columns, const long *strides, int threads);

    /* A convolution. `sizes`: batch, height, width, channels, out height, out width, out channels,
     * kernel height, kernel width, stride, padding above, padding left. */
    int (*convolve)(const void *from, void *to, const void *packed, const void *bias,
                    const long *sizes, int threads);
    int (*convolve_once)(const void *from, void *to, const void *weights, const void *bias,
                         const long *sizes, const long *strides, int threads);

    /* A 3x3 convolution with stride 1 and padding 1. `sizes`: batch, height, width, channels, out
     * channels, tile size (4 or 6), and tiles per group or 0. */
    int (*winograd)(const void *from, void *to, const void *packed, const void *bias,
                    const long *sizes, int threads);
    int (*winograd_once)(const void *from, void *to, const void *weights, const void *bias,
                         const long *sizes, const long *strides, int threads);

    /* Attention; at least one of everything. `sizes`: batch, heads, queries, keys, size of a query,
     * channels of a value; then the strides of q, k, v, out (3 each, of batch, head and token) and
     * bias (4, to broadcast to batch, heads, queries and keys). The bias is float32, bfloat16 or
     * bool, if `bias_kind` is 1, 2 or 3. `causal` hides from each query the keys with a higher
     * number. */
    int (*attention)(const void *q, const void *k, const void *v, void *out, const void *bias,
                     int bias_kind, int causal, float scale, const long *sizes, int threads);

    /* Each group of channels of each picture to mean 0 and variance 1, times `weight`, plus `bias`,
     * then SiLU if `kind` is 1. `sizes`: batch, pixels, channels, groups. */
    int (*group_norm)(const void *from, void *to, const void *weight, const void *bias,
                      const long *sizes, float eps, int kind, int threads);
    /* The moments of each group of channels of each picture: pairs of the mean and of the sum of
     * squares around it. For maps of which only a part is in memory at a time; sizes as above. */
    int (*group_moments)(const void *from, double *moments, const long *sizes, int threads);
    /* Each channel of each picture times a factor plus a summand (`factors`: for each picture those
     * of all channels, then these), then SiLU if `kind` is 1. `sizes`: batch, pixels, channels. */
    int (*scale)(const void *from, void *to, float *factors, const long *sizes, int kind,
                 int threads);
    /* Each row to mean 0 and variance 1, times `weight`, plus `bias`. */
    int (*layer_norm)(const void *from, void *to, const void *weight, const void *bias, long rows,
                      long channels, float eps, int threads);

    /* (rows, 2 channels) to (rows, channels): the first half times the GELU of the second. */
    int (*geglu)(const void *from, void *to, long rows, long channels, int threads);
    /* Of each number: 1 SiLU, 2 GELU with the error function, 3 x sigmoid(1.702 x). */
    int (*activate)(const void *from, void *to, long count, int kind, int threads);

    /* All numbers of blocks of 32 as GGUF files have them, in their order. `kind`: 0 Q8_0, 1 Q4_0,
     * 2 Q4_1. */
    int (*expand_blocks)(const void *from, void *to, int kind, long blocks, int threads);

    /* Do nothing but multiply and add; returns how many operations these were. Time it for the rate
     * that no kernel can exceed. */
    long (*ceiling)(long rounds);
};

/* The type in memory; the instructions. Products are of float32, but of bfloat16 in the last. */
extern const struct kernels float32_avx2, bfloat16_avx2, float32_avx512, bfloat16_avx512,
    bfloat16_avx512_bf16;

/* The kernels to use on this processor; NULL if there are none. */
const struct kernels *sfumato_kernels(int bfloat16);

#endif
