/* Softmax attention without a matrix of scores, exact up to rounding.
 *
 * softmax(scale * q k^T + bias) v for any number of heads and tokens, with scores, weights and sums
 * in float32. Keys are taken in blocks whose weights stay in the first-level cache (the "online
 * softmax" of arXiv:1805.02867, as in arXiv:2205.14135): attention_block.h. Queries, keys and
 * values are laid out for that first: attention_pack.h. Included once per type of element, after
 * `to_words`, which makes words of the weights of neighbouring keys, and `add_words`.
 */
#ifndef SFUMATO_ATTENTION_H
#define SFUMATO_ATTENTION_H

#include <float.h>
#include <math.h>
#include <string.h>

#include "exponential.h"
#include "scratch.h"
#include "threads.h"

enum { BIAS_NONE = 0, BIAS_FLOAT32 = 1, BIAS_BFLOAT16 = 2, BIAS_BOOL = 3 };

/* What to compute. Strides count elements; the channels of a token lie side by side. */
struct attention {
    const element *q, *k, *v; /* (batch, heads, queries or keys, size or channels) */
    element *out;             /* (batch, heads, queries, channels) */
    const void *bias;         /* broadcasts to (batch, heads, queries, keys) */
    int bias_kind, causal;
    float scale;
    long batch, heads, queries, keys, size, channels;
    const long *q_stride, *k_stride, *v_stride, *out_stride; /* of batch, head, token */
    const long *bias_stride;                                 /* of batch, head, query, key */
};

/* Queries in a block, 16 to a register; rows whose sums are held in registers at a time, even so
 * that pairs of keys stay together. */
enum { COLUMNS = 4, LANES = 16 * COLUMNS, TILE = 6 };
/* Keys in a block, and the words that their weights make for each query: 24 KiB for all. */
enum { BLOCK_WORDS = 96, BLOCK = BLOCK_WORDS * PER_WORD };

/* Weights below this leave room to add up 2^60 of them in float32. */
#define ROOM 0x1p60f

/* One call. Packed keys and values of a head take `keys_step` and `values_step` words. */
struct job {
    struct attention attention;
    long words, blocks, query_blocks, keys_step, values_step, scratch_step;
    uint32_t *keys, *values, *scratch;
};

/* One block of queries, and the memory of the worker that computes it. */
struct part {
    long words, keys, channels;
    float factor;                 /* on scores: the scale, times log2(e) if there is no bias */
    const struct attention *bias; /* NULL if there is none */
    long head, first, last;       /* the head, the first query, the last of all queries */
    uint32_t *queries, *weights;
    float *out, *bias_tile, *maximum, *total;
    __mmask16 lost[COLUMNS];      /* queries whose result is NaN */
};

static inline float bias_at(const struct attention *a, long at) {
    switch (a->bias_kind) {
    case BIAS_FLOAT32: return ((const float *)a->bias)[at];
    case BIAS_BOOL: return ((const uint8_t *)a->bias)[at] ? 0.0f : -INFINITY;
    case BIAS_BFLOAT16: {
        union { uint32_t bits; float value; } u;
        u.bits = (uint32_t)((const uint16_t *)a->bias)[at] << 16;
        return u.value;
    }
    default: return 0.0f;
    }
}

/* The bias on a tile of keys, with queries in the lanes. */
static void fill_bias(struct part *part, long key, int valid) {
    const struct attention *a = part->bias;
    const long *stride = a->bias_stride;
    long start = part->head / a->heads * stride[0] + part->head % a->heads * stride[1];
    int different = a->causal || stride[2];
    for (int r = 0; r < valid; r++, key++) {
        float *row = part->bias_tile + r * LANES, x = 0.0f;
        for (long lane = 0; lane < LANES; lane++) {
            if (lane == 0 || different) {
                long query = smaller(part->first + lane, part->last);
                x = bias_at(a, start + query * stride[2] + key * stride[3]);
                if (a->causal && key > query) x = -INFINITY;
            }
            row[lane] = x;
        }
    }
}

/* Words of scratch memory for one worker, which `part_of` hands out. */
static long scratch_words(const struct job *job) {
    return (job->words + BLOCK_WORDS + job->attention.channels + TILE + 2) * LANES;
}

static struct part part_of(const struct job *job, long head, long first, int worker) {
    const struct attention *a = &job->attention;
    int biased = a->bias_kind != BIAS_NONE || a->causal;
    struct part part = {
        .words = job->words,
        .keys = a->keys,
        .channels = a->channels,
        .factor = biased ? a->scale : a->scale * LOG2E,
        .bias = biased ? a : NULL,
        .head = head,
        .first = first,
        .last = a->queries - 1,
        .queries = job->scratch + worker * job->scratch_step,
    };
    part.weights = part.queries + job->words * LANES;
    part.out = (float *)(part.weights + BLOCK_WORDS * LANES);
    part.bias_tile = part.out + a->channels * LANES;
    part.maximum = part.bias_tile + TILE * LANES;
    part.total = part.maximum + LANES;
    memset(part.out, 0, (size_t)(a->channels * LANES) * sizeof(float));
    for (int lane = 0; lane < LANES; lane++) {
        part.maximum[lane] = -FLT_MAX;
        part.total[lane] = 0.0f;
    }
    return part;
}

/* Where a head starts. */
static inline long head_at(const struct attention *a, long head, const long *stride) {
    return head / a->heads * stride[0] + head % a->heads * stride[1];
}

#include "attention_block.h"
#include "attention_pack.h"

/* One block of keys and values of one head. */
TARGET static void pack_task(void *context, long task, int worker) {
    (void)worker;
    const struct job *job = context;
    const struct attention *a = &job->attention;
    long head = task / job->blocks, block = task % job->blocks, first = block * BLOCK;
    long keys = smaller(a->keys - first, BLOCK), k_row = a->k_stride[2], v_row = a->v_stride[2];
    pack_keys(a->k + head_at(a, head, a->k_stride) + first * k_row, k_row, keys, a->size,
              job->keys + head * job->keys_step + first * job->words);
    pack_values(a->v + head_at(a, head, a->v_stride) + first * v_row, v_row, keys, a->channels,
                job->values + head * job->values_step + block * a->channels * BLOCK_WORDS);
}

/* One block of queries of one head. */
TARGET static void attend_task(void *context, long task, int worker) {
    const struct job *job = context;
    const struct attention *a = &job->attention;
    long head = task / job->query_blocks, first = task % job->query_blocks * LANES;
    long tokens = smaller(a->queries - first, LANES);
    struct part part = part_of(job, head, first, worker);
    pack_queries(a->q + head_at(a, head, a->q_stride) + first * a->q_stride[2], a->q_stride[2],
                 tokens, a->size, part.queries);
    const uint32_t *keys = job->keys + head * job->keys_step;
    const uint32_t *values = job->values + head * job->values_step;
    switch ((tokens + 15) / 16) {
    case 1: attend(1, &part, keys, values); break;
    case 2: attend(2, &part, keys, values); break;
    case 3: attend(3, &part, keys, values); break;
    default: attend(4, &part, keys, values);
    }
    write_out(&part, a->out + head_at(a, head, a->out_stride) + first * a->out_stride[2],
              a->out_stride[2], tokens);
}

/* Attention; at least one of everything. `sizes`: batch, heads, queries, keys, size of a query,
 * channels of a value; then the strides of q, k, v, out (3 each) and bias (4), as in `struct
 * attention`. `causal` hides from each query the keys with a higher number. Returns 0, or -1 when
 * there is no memory. */
SFUMATO_EXPORT int EXPORTED(sfumato_attention)(const element *q, const element *k, const element *v,
                                               element *out, const void *bias, int bias_kind,
                                               int causal, float scale, const long *sizes,
                                               int threads) {
    const long *strides = sizes + 6;
    struct job job = {.attention = {
        .q = q, .k = k, .v = v, .out = out, .bias = bias,
        .bias_kind = bias_kind, .causal = causal, .scale = scale,
        .batch = sizes[0], .heads = sizes[1], .queries = sizes[2], .keys = sizes[3],
        .size = sizes[4], .channels = sizes[5],
        .q_stride = strides, .k_stride = strides + 3, .v_stride = strides + 6,
        .out_stride = strides + 9, .bias_stride = strides + 12,
    }};
    const struct attention *a = &job.attention;
    long heads = a->batch * a->heads;
    job.words = (a->size + PER_WORD - 1) / PER_WORD;
    job.blocks = (a->keys + BLOCK - 1) / BLOCK;
    job.query_blocks = (a->queries + LANES - 1) / LANES;
    job.keys_step = round_up(round_up(a->keys, TILE) * job.words, 16);
    job.values_step = job.blocks * a->channels * BLOCK_WORDS;
    job.scratch_step = scratch_words(&job);
    size_t bytes = sizeof(uint32_t) * (size_t)(threads * job.scratch_step +
                                               heads * (job.keys_step + job.values_step));
    job.scratch = take_scratch(bytes);
    if (!job.scratch) return -1;
    job.values = job.scratch + threads * job.scratch_step;
    job.keys = job.values + heads * job.values_step;
    run_tasks(threads, heads * job.blocks, pack_task, &job);
    run_tasks(threads, heads * job.query_blocks, attend_task, &job);
    return_scratch(job.scratch);
    return 0;
}

#endif
