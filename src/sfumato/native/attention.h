/* Softmax attention without a matrix of scores, exact up to rounding.
 *
 * softmax(scale * q k^T + bias) v for any number of heads and tokens, with scores, weights and sums
 * in float32. Keys are taken in blocks whose weights stay in the first-level cache (the "online
 * softmax" of arXiv:1805.02867, as in arXiv:2205.14135): attention_block.h. Queries, keys and
 * values are laid out for that first: attention_pack.h. Included once per type of element.
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
    const stored *q, *k, *v; /* (batch, heads, queries or keys, size or channels) */
    stored *out;             /* (batch, heads, queries, channels) */
    const void *bias;        /* broadcasts to (batch, heads, queries, keys) */
    int bias_kind, causal;
    float scale;
    long batch, heads, queries, keys, size, channels;
    const long *q_stride, *k_stride, *v_stride, *out_stride; /* of batch, head, token */
    const long *bias_stride;                                 /* of batch, head, query, key */
};

/* Keys whose scores are held in registers at a time, with a vector of queries for each of so many
 * columns; even so that pairs of keys stay together. */
enum { TILE = 6, COLUMNS = VECTORS, QUERIES = COLUMNS * LANES };
/* Such parts of the queries that go through a block of keys and values one after the other. */
enum { PARTS = 64 / QUERIES };
/* Keys in a block, and the words that their weights make for each query: 24 KiB for 64 queries. */
enum { BLOCK_WORDS = 96, BLOCK_KEYS = BLOCK_WORDS * PER_WORD };

/* Weights below this leave room to add up 2^60 of them in float32. */
#define ROOM 0x1p60f

/* One call. Packed keys and values of a head take `keys_step` and `values_step` words. */
struct job {
    struct attention attention;
    long words, blocks, query_tasks, keys_step, values_step, scratch_step;
    uint32_t *keys, *values, *scratch;
};

/* Up to QUERIES queries, and memory of the worker that computes them. */
struct part {
    long words, keys, channels;
    float factor;                 /* on scores: the scale, times log2(e) if there is no bias */
    const struct attention *bias; /* NULL if there is none */
    long head, first, last;       /* the head, the first query, the last of all queries */
    uint32_t *queries, *weights;
    float *out, *bias_tile, *maximum, *total;
    mask lost[COLUMNS];           /* queries whose result is NaN */
};

static inline float bias_at(const struct attention *a, long at) {
    switch (a->bias_kind) {
    case BIAS_FLOAT32: return ((const float *)a->bias)[at];
    case BIAS_BOOL: return ((const uint8_t *)a->bias)[at] ? 0.0f : -INFINITY;
    case BIAS_BFLOAT16: {
        uint32_t bits = (uint32_t)((const uint16_t *)a->bias)[at] << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
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
        float *row = part->bias_tile + r * QUERIES, x = 0.0f;
        for (long lane = 0; lane < QUERIES; lane++) {
            if (lane == 0 || different) {
                long query = smaller(part->first + lane, part->last);
                x = bias_at(a, start + query * stride[2] + key * stride[3]);
                if (a->causal && key > query) x = -INFINITY;
            }
            row[lane] = x;
        }
    }
}

/* Words of scratch memory for one part, which `part_of` hands out. */
static long scratch_words(const struct job *job) {
    return (job->words + BLOCK_WORDS + job->attention.channels + TILE + 2) * QUERIES;
}

/* `number` is that of the memory to use. */
TARGET static struct part part_of(const struct job *job, long head, long first, long number) {
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
        .queries = job->scratch + number * job->scratch_step,
    };
    part.weights = part.queries + job->words * QUERIES;
    part.out = (float *)(part.weights + BLOCK_WORDS * QUERIES);
    part.bias_tile = part.out + a->channels * QUERIES;
    part.maximum = part.bias_tile + TILE * QUERIES;
    part.total = part.maximum + QUERIES;
    memset(part.out, 0, (size_t)(a->channels * QUERIES) * sizeof(float));
    for (int lane = 0; lane < QUERIES; lane++) {
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
TARGET static void pack_keys_task(void *context, long task, int worker) {
    (void)worker;
    const struct job *job = context;
    const struct attention *a = &job->attention;
    long head = task / job->blocks, block = task % job->blocks, first = block * BLOCK_KEYS;
    long keys = smaller(a->keys - first, BLOCK_KEYS), k_row = a->k_stride[2], v_row = a->v_stride[2];
    pack_keys(a->k + head_at(a, head, a->k_stride) + first * k_row, k_row, keys, a->size,
              job->keys + head * job->keys_step + first * job->words);
    pack_values(a->v + head_at(a, head, a->v_stride) + first * v_row, v_row, keys, a->channels,
                job->values + head * job->values_step + block * a->channels * BLOCK_WORDS);
}

/* One block of keys for one part. */
TARGET static void attend_some(struct part *part, long first, const uint32_t *keys,
                               const uint32_t *values) {
    switch ((smaller(part->last + 1 - part->first, QUERIES) + LANES - 1) / LANES) {
    case 1: attend(1, part, first, keys, values); break;
#if VECTORS == 4
    case 2: attend(2, part, first, keys, values); break;
    case 3: attend(3, part, first, keys, values); break;
#endif
    default: attend(COLUMNS, part, first, keys, values);
    }
}

/* Some queries of one head. */
TARGET static void attend_task(void *context, long task, int worker) {
    const struct job *job = context;
    const struct attention *a = &job->attention;
    long head = task / job->query_tasks, first = task % job->query_tasks * PARTS * QUERIES;
    long count = smaller((a->queries - first + QUERIES - 1) / QUERIES, PARTS);
    struct part parts[PARTS];
    for (long i = 0; i < count; i++) {
        long query = first + i * QUERIES;
        parts[i] = part_of(job, head, query, (long)worker * PARTS + i);
        pack_queries(a->q + head_at(a, head, a->q_stride) + query * a->q_stride[2], a->q_stride[2],
                     a->queries - query, a->size, parts[i].queries);
    }
    const uint32_t *keys = job->keys + head * job->keys_step;
    const uint32_t *values = job->values + head * job->values_step;
    for (long key = 0; key < a->keys; key += BLOCK_KEYS) {
        for (long i = 0; i < count; i++) attend_some(&parts[i], key, keys, values);
        keys += BLOCK_KEYS * job->words;
        values += a->channels * BLOCK_WORDS;
    }
    for (long i = 0; i < count; i++) {
        long query = first + i * QUERIES;
        write_out(&parts[i],
                  a->out + head_at(a, head, a->out_stride) + query * a->out_stride[2],
                  a->out_stride[2], smaller(a->queries - query, QUERIES));
    }
}

static int attention(const void *q, const void *k, const void *v, void *out, const void *bias,
                     int bias_kind, int causal, float scale, const long *sizes, int threads) {
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
    job.blocks = (a->keys + BLOCK_KEYS - 1) / BLOCK_KEYS;
    job.query_tasks = (a->queries + PARTS * QUERIES - 1) / (PARTS * QUERIES);
    job.keys_step = round_up(round_up(a->keys, TILE) * job.words, 16);
    job.values_step = job.blocks * a->channels * BLOCK_WORDS;
    job.scratch_step = scratch_words(&job);
    long parts = threads * PARTS * job.scratch_step;
    size_t bytes = sizeof(uint32_t) * (size_t)(parts + heads * (job.keys_step + job.values_step));
    job.scratch = take_scratch(bytes);
    if (!job.scratch) return -1;
    job.values = job.scratch + parts;
    job.keys = job.values + heads * job.values_step;
    run_tasks(threads, heads * job.blocks, pack_keys_task, &job);
    run_tasks(threads, heads * job.query_tasks, attend_task, &job);
    return_scratch(job.scratch);
    return 0;
}

#endif
