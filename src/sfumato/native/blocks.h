/* Plain numbers from blocks of 32 with a scale, as GGUF files have them. */
#ifndef SFUMATO_BLOCKS_H
#define SFUMATO_BLOCKS_H

#include <string.h>

#include "threads.h"

enum { COUNT = 32, SOME_BLOCKS = 1024 };
/* Q8_0: scale, 32 signed bytes. Q4_0: scale, 32 nibbles from -8 on. Q4_1: scale, smallest number,
 * 32 nibbles. Scales are float16; of nibbles, first the lower ones of all bytes. */
enum block_kind { Q8_0, Q4_0, Q4_1 };
static const int block_bytes[] = {34, 18, 20};

struct expansion {
    const uint8_t *from;
    stored *to;
    enum block_kind kind;
    long blocks;
};

INLINE float number_at(const uint8_t *at) {
    uint16_t number;
    memcpy(&number, at, sizeof number);
    return from_float16(number);
}

INLINE void expand(const uint8_t *from, const enum block_kind kind, stored *to) {
    vector scale = v_all(number_at(from)), low = v_zero();
    uint8_t bytes[COUNT];
    from += 2;
    if (kind == Q4_1) {
        low = v_all(number_at(from));
        from += 2;
    }
    if (kind != Q8_0) {
        for (int i = 0; i < COUNT / 2; i++) bytes[i] = (from[i] & 15) - (kind == Q4_0 ? 8 : 0);
        for (int i = 0; i < COUNT / 2; i++)
            bytes[COUNT / 2 + i] = (from[i] >> 4) - (kind == Q4_0 ? 8 : 0);
        from = bytes;
    }
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; i += LANES)
        store_row(to + i, v_mul_add(v_from_bytes(from + i), scale, low), ALL);
}

INLINE void expand_all(const struct expansion *e, long first, long end,
                       const enum block_kind kind) {
    for (long b = first; b < end; b++) expand(e->from + b * block_bytes[kind], kind, e->to + b * COUNT);
}

TARGET static void expand_task(void *context, long task, int worker) {
    (void)worker;
    const struct expansion *e = context;
    long first = task * SOME_BLOCKS, end = smaller(first + SOME_BLOCKS, e->blocks);
    switch (e->kind) {
    case Q8_0: expand_all(e, first, end, Q8_0); break;
    case Q4_0: expand_all(e, first, end, Q4_0); break;
    case Q4_1: expand_all(e, first, end, Q4_1); break;
    }
}

static int expand_blocks(const void *from, void *to, int kind, long blocks, int threads) {
    struct expansion e = {from, to, (enum block_kind)kind, blocks};
    run_tasks(threads, (blocks + SOME_BLOCKS - 1) / SOME_BLOCKS, expand_task, &e);
    return 0;
}

#endif
