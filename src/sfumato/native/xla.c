/* The kernels as functions that XLA's programs for processors call: see `sfumato.jax.kernels`.
 *
 * Each takes arrays of one type, float32 or bfloat16, dense and in the order of their axes, with
 * channels last. Sizes are those of the arrays; the rest comes as two attributes, an array of
 * integers ("numbers", whose last is the number of threads) and a float ("real").
 */
#include "cpu.h"

#if SFUMATO_X86
#include "scratch.h"
#include "xla_abi.h"

/* The functions of both types. */
#define DECLARE(name, ...)                                                                         \
    int sfumato_##name##_float32(__VA_ARGS__);                                                     \
    int sfumato_##name##_bfloat16(__VA_ARGS__)
#define DECLARE_VOID(name, ...)                                                                    \
    void sfumato_##name##_float32(__VA_ARGS__);                                                    \
    void sfumato_##name##_bfloat16(__VA_ARGS__)
/* Call the one for the type of `call`. */
#define TYPED(call, name, ...)                                                                     \
    ((call)->bfloat16 ? sfumato_##name##_bfloat16(__VA_ARGS__)                                     \
                      : sfumato_##name##_float32(__VA_ARGS__))

DECLARE_VOID(pack, const void *, void *, long, long, long, long, const long *, int);
DECLARE(linear, const void *, void *, const void *, const void *, long, long, long, int);
DECLARE(convolve, const void *, void *, const void *, const void *, const long *, int);
DECLARE(winograd_once, const void *, void *, const void *, const void *, const long *,
        const long *, int);
DECLARE(attention, const void *, const void *, const void *, void *, const void *, int, int, float,
        const long *, int);
DECLARE(group_norm, const void *, void *, const void *, const void *, const long *, float, int,
        int);
DECLARE_VOID(geglu, const void *, void *, long, long, int);

/* One call, unwrapped. */
struct call {
    const struct xla_frame *frame;
    struct xla_buffer **in;
    struct xla_buffer *out;
    const int64_t *numbers;
    float real;
    int bfloat16, threads;
};

typedef int (*kernel)(const struct call *call);

static void describe(struct xla_metadata *metadata, const struct xla_api *api) {
    int minor = api ? (int)smaller(api->version.minor, XLA_MINOR) : XLA_MINOR;
    metadata->version.major = XLA_MAJOR;
    metadata->version.minor = minor;
    metadata->traits = 0;
    metadata->state_type = 0;
}

/* Answer XLA: who we are, or the result. Returns NULL, or an error. */
static void *answer(struct xla_frame *frame, kernel compute) {
    for (struct xla_extension *e = frame->extensions; e; e = e->next)
        if (e->type == XLA_METADATA) {
            describe(((struct xla_metadata_extension *)e)->metadata, frame->api);
            return NULL;
        }
    if (frame->stage != XLA_EXECUTE) return NULL;
    const struct xla_array *numbers = frame->attributes.values[0];
    const struct xla_scalar *real = frame->attributes.values[1];
    struct call call = {
        .frame = frame,
        .in = frame->arguments.buffers,
        .out = frame->results.buffers[0],
        .numbers = numbers->data,
        .real = *real->value,
        .bfloat16 = frame->arguments.buffers[0]->dtype == XLA_BFLOAT16,
        .threads = (int)numbers->data[numbers->size - 1],
    };
    if (compute(&call) == 0) return NULL;
    struct xla_error_create error = {sizeof error, NULL, "There is no memory for a kernel.",
                                     XLA_RESOURCE_EXHAUSTED};
    return frame->api->create_error(&error);
}

static const void *optional(const struct call *call, int index) {
    return index < call->frame->arguments.size ? call->in[index]->data : NULL;
}

static long count(const struct xla_buffer *buffer, long first, long last) {
    long product = 1;
    for (long i = first; i < last; i++) product *= buffer->dims[i];
    return product;
}

/* Weights (columns, channels, taps_y, taps_x) laid out for the direct kernels; NULL without memory. */
static void *packed(const struct call *call, const struct xla_buffer *weight) {
    long columns = weight->dims[0], channels = weight->dims[1];
    long height = weight->rank == 4 ? weight->dims[2] : 1;
    long width = weight->rank == 4 ? weight->dims[3] : 1;
    long strides[] = {channels * height * width, height * width, width, 1};
    long length = round_up(channels * height * width, 2);
    void *made = take_scratch((size_t)(length * round_up(columns, 16)) * (call->bfloat16 ? 2 : 4));
    if (made)
        TYPED(call, pack, weight->data, made, columns, channels, height, width, strides,
              call->threads);
    return made;
}

/* x (N, H, W, C), weight (O, C, k, k), perhaps a bias; numbers: tile size or 0, stride, padding. */
static int convolve(const struct call *call) {
    const struct xla_buffer *x = call->in[0], *weight = call->in[1], *y = call->out;
    const void *bias = optional(call, 2);
    const int64_t *in = x->dims, *out = y->dims, *w = weight->dims;
    if (call->numbers[0]) {
        long sizes[] = {in[0], in[1], in[2], in[3], w[0], call->numbers[0], 0};
        long strides[] = {w[1] * 9, 9, 3, 1};
        return TYPED(call, winograd_once, x->data, y->data, weight->data, bias, sizes, strides,
                     call->threads);
    }
    long sizes[] = {in[0], in[1], in[2], in[3], out[1], out[2], w[0], w[2], w[3],
                    call->numbers[1], call->numbers[2], call->numbers[2]};
    void *made = packed(call, weight);
    if (!made) return -1;
    int failed = TYPED(call, convolve, x->data, y->data, made, bias, sizes, call->threads);
    return_scratch(made);
    return failed;
}

/* x (..., length), weight (columns, length) or with two more axes of 1, perhaps a bias. */
static int linear(const struct call *call) {
    const struct xla_buffer *x = call->in[0], *weight = call->in[1];
    long length = weight->dims[1], rows = count(x, 0, x->rank - 1);
    void *made = packed(call, weight);
    if (!made) return -1;
    int failed = TYPED(call, linear, x->data, call->out->data, made, optional(call, 2), rows,
                       length, weight->dims[0], call->threads);
    return_scratch(made);
    return failed;
}

/* q, k, v (N, tokens, heads * size), perhaps a bias in float32 (N or 1, heads or 1, queries or 1,
 * keys); numbers: heads, causal; real: the scale. */
static int attend(const struct call *call) {
    long heads = call->numbers[0], sizes[6 + 12 + 4] = {0};
    const struct xla_buffer *arrays[] = {call->in[0], call->in[1], call->in[2], call->out};
    sizes[0] = arrays[0]->dims[0];
    sizes[1] = heads;
    sizes[2] = arrays[0]->dims[1];
    sizes[3] = arrays[1]->dims[1];
    sizes[4] = arrays[0]->dims[2] / heads;
    sizes[5] = arrays[2]->dims[2] / heads;
    for (int i = 0; i < 4; i++) {
        long width = arrays[i]->dims[2], *strides = sizes + 6 + 3 * i;
        strides[0] = arrays[i]->dims[1] * width;
        strides[1] = width / heads;
        strides[2] = width;
    }
    const void *bias = optional(call, 3);
    for (long i = 3, step = 1; bias && i >= 0; step *= call->in[3]->dims[i--])
        sizes[6 + 12 + i] = call->in[3]->dims[i] == 1 ? 0 : step;
    return TYPED(call, attention, arrays[0]->data, arrays[1]->data, arrays[2]->data,
                 call->out->data, bias, bias ? 1 : 0, (int)call->numbers[1], call->real, sizes,
                 call->threads);
}

/* x (N, ..., C), weight and bias (C); numbers: groups, whether SiLU follows; real: epsilon. */
static int normalise(const struct call *call) {
    const struct xla_buffer *x = call->in[0];
    long channels = x->dims[x->rank - 1];
    long sizes[] = {x->dims[0], count(x, 1, x->rank - 1), channels, call->numbers[0]};
    return TYPED(call, group_norm, x->data, call->out->data, call->in[1]->data, call->in[2]->data,
                 sizes, call->real, (int)call->numbers[1], call->threads);
}

/* x (..., 2 C). */
static int gate(const struct call *call) {
    const struct xla_buffer *x = call->in[0];
    long rows = count(x, 0, x->rank - 1), channels = x->dims[x->rank - 1] / 2;
    if (call->bfloat16)
        sfumato_geglu_bfloat16(x->data, call->out->data, rows, channels, call->threads);
    else
        sfumato_geglu_float32(x->data, call->out->data, rows, channels, call->threads);
    return 0;
}

#define HANDLER(name, compute)                                                                     \
    SFUMATO_EXPORT void *sfumato_xla_##name(struct xla_frame *frame);                              \
    SFUMATO_EXPORT void *sfumato_xla_##name(struct xla_frame *frame) {                             \
        return answer(frame, compute);                                                             \
    }
HANDLER(convolve, convolve)
HANDLER(linear, linear)
HANDLER(attention, attend)
HANDLER(group_norm, normalise)
HANDLER(geglu, gate)
#endif
