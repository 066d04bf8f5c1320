/* The kernels as functions that XLA's programs for processors call: see `sfumato.jax.kernels`.
 *
 * Each takes arrays of one type, float32 or bfloat16, dense and in the order of their axes, with
 * channels last. Sizes are those of the arrays; the rest comes as two attributes, an array of
 * integers ("numbers", whose last is the number of threads) and a float ("real").
 */
#include "cpu.h"

#if SFUMATO_X86
#include "kernels.h"
#include "xla_abi.h"

/* One call, unwrapped. */
struct call {
    const struct kernels *kernels; /* for the type of its arrays */
    const struct xla_frame *frame;
    struct xla_buffer **in;
    struct xla_buffer *out;
    const int64_t *numbers;
    float real;
    int threads;
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
        .kernels = sfumato_kernels(frame->arguments.buffers[0]->dtype == XLA_BFLOAT16),
        .frame = frame,
        .in = frame->arguments.buffers,
        .out = frame->results.buffers[0],
        .numbers = numbers->data,
        .real = *real->value,
        .threads = (int)numbers->data[numbers->size - 1],
    };
    struct xla_error_create error = {sizeof error, NULL, "There is no memory for a kernel.",
                                     XLA_RESOURCE_EXHAUSTED};
    if (!call.kernels) {
        error.message = "The kernels that this was compiled with have been switched off since.";
        error.code = XLA_FAILED_PRECONDITION;
    } else if (compute(&call) == 0) {
        return NULL;
    }
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

/* x (N, H, W, C), weight (O, C, k, k), perhaps a bias; numbers: tile size or 0, stride, padding. */
static int convolve(const struct call *call) {
    const struct xla_buffer *x = call->in[0], *weight = call->in[1], *y = call->out;
    const void *bias = optional(call, 2);
    const int64_t *in = x->dims, *out = y->dims, *w = weight->dims;
    long taps = w[2] * w[3], strides[] = {w[1] * taps, taps, w[3], 1};
    if (call->numbers[0]) {
        long sizes[] = {in[0], in[1], in[2], in[3], w[0], call->numbers[0], 0};
        return call->kernels->winograd_once(x->data, y->data, weight->data, bias, sizes, strides,
                                            call->threads);
    }
    long sizes[] = {in[0], in[1], in[2], in[3], out[1], out[2], w[0], w[2], w[3],
                    call->numbers[1], call->numbers[2], call->numbers[2]};
    return call->kernels->convolve_once(x->data, y->data, weight->data, bias, sizes, strides,
                                        call->threads);
}

/* x (..., length), weight (columns, length) or with two more axes of 1, perhaps a bias. */
static int linear(const struct call *call) {
    const struct xla_buffer *x = call->in[0], *weight = call->in[1];
    long length = weight->dims[1], rows = count(x, 0, x->rank - 1), strides[] = {length, 1};
    return call->kernels->linear_once(x->data, call->out->data, weight->data, optional(call, 2),
                                      rows, length, weight->dims[0], strides, call->threads);
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
    return call->kernels->attention(arrays[0]->data, arrays[1]->data, arrays[2]->data,
                                    call->out->data, bias, bias ? 1 : 0, (int)call->numbers[1],
                                    call->real, sizes, call->threads);
}

/* x (N, ..., C), weight and bias (C); numbers: groups, whether SiLU follows; real: epsilon. */
static int normalise(const struct call *call) {
    const struct xla_buffer *x = call->in[0];
    long channels = x->dims[x->rank - 1];
    long sizes[] = {x->dims[0], count(x, 1, x->rank - 1), channels, call->numbers[0]};
    return call->kernels->group_norm(x->data, call->out->data, call->in[1]->data,
                                     call->in[2]->data, sizes, call->real, (int)call->numbers[1],
                                     call->threads);
}

/* x (..., 2 C). */
static int gate(const struct call *call) {
    const struct xla_buffer *x = call->in[0];
    long rows = count(x, 0, x->rank - 1), channels = x->dims[x->rank - 1] / 2;
    return call->kernels->geglu(x->data, call->out->data, rows, channels, call->threads);
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
