/* 3x3 convolutions with stride 1 in 8 bits by Winograd's method with tiles of 2 x 2 outputs: see
 * winograd.h for the method. Each row of the products' left sides, all channels of one tile at one
 * of sixteen places, becomes 8-bit integers with a scale and a low of its own; weights have a scale
 * for each place and output. So a product knows finer ranges than a direct convolution's whole
 * picture, and the result is no less exact. Weights were transformed before, or (`direct`) each
 * panel is when its turn comes.
 */
#include "cpu.h"

#if SFUMATO_X86
#include "element_int8.h"

#include "gemm.h"
#include "scratch.h"
#include "steps_int8.h"
#include "threads.h"
#include "winograd_steps.h"
#include "winograd_weights_int8.h"

enum { SIZE = 4, OUTPUTS = 2, PLACES = 16, GROUP_BYTES = 512 << 10, LEAST_GROUP = 48,
       MOST_GROUP = 192,
       SOME_TILES = 36 }; /* of which sums are held at a time, in the second cache */

struct convolution {
    const void *from;
    void *to;
    int bfloat16;
    const element *packed;
    const float *scales, *offsets; /* of each output, at each place: PLACES x columns */
    const float *bias;
    int direct; /* weights and scales are as layers_int8.c has them */
    long height, width, channels, out_height, out_width, columns, pad_y, pad_x;
    long down, across, tiles, length, group, panel_tasks;
    const void *zeros; /* what lies beyond the border */
    float *numbers;    /* PLACES x length for each worker */
    element *inputs;   /* PLACES x group x length for each worker */
    struct range *ranges; /* group x PLACES for each worker */
    float *sums;   /* PLACES x SOME_TILES x PANEL for each worker */
    element *made; /* a panel for each worker, if `direct`, with its scales and offsets */
    float *made_scales;
};

/* Some columns' integers, scales and offsets; those of the next place are `step` further. */
struct panel {
    const element *numbers;
    const float *scales, *offsets;
    long column, step;
    int width;
};

struct corner { long picture, y, x; };

static inline struct corner corner_of(const struct convolution *c, long tile) {
    struct corner at = {tile / (c->down * c->across), tile / c->across % c->down * OUTPUTS,
                        tile % c->across * OUTPUTS};
    return at;
}

/* The transformed inputs of one tile as numbers. */
NUMBERS void transform(const struct convolution *c, long tile, int bfloat16, float *numbers) {
    struct corner at = corner_of(c, tile);
    const char *pixels[PLACES];
    for (int i = 0; i < PLACES; i++) {
        long y = at.y + i / SIZE - c->pad_y, x = at.x + i % SIZE - c->pad_x;
        int inside = y >= 0 && y < c->height && x >= 0 && x < c->width;
        long pixel = ((at.picture * c->height + y) * c->width + x) * c->channels;
        pixels[i] = inside ? (const char *)c->from + pixel * (bfloat16 ? 2 : 4) : c->zeros;
    }
    for (long k = 0; k < c->channels; k += 16) {
        __mmask16 mask = first_lanes(c->channels - k);
        __m512 in[PLACES], out[PLACES];
#pragma GCC unroll 16
        for (int i = 0; i < PLACES; i++) in[i] = load_some(pixels[i], k, mask, bfloat16);
        input_square(SIZE, in, out);
#pragma GCC unroll 16
        for (int i = 0; i < PLACES; i++) _mm512_store_ps(numbers + i * c->length + k, out[i]);
    }
}

TARGET static void prepare(const struct convolution *c, long tile, float *numbers, element *to,
                           struct range *ranges) {
    if (c->bfloat16)
        transform(c, tile, 1, numbers);
    else
        transform(c, tile, 0, numbers);
    for (int i = 0; i < PLACES; i++) {
        float least, most;
        extremes_of(numbers + i * c->length, 0, c->channels, 0, &least, &most);
        float scale = (most - least) / 255, inverse = inverse_of(scale);
        quantise(numbers + i * c->length, 0, c->length, 0, inverse, -least * inverse,
                 to + i * c->group * c->length);
        ranges[i] = (struct range){scale, least};
    }
}

/* Outputs of one tile in a vector of columns, from column `n` on. */
NUMBERS void finish_columns(const struct convolution *c, const struct panel *panel,
                            const struct range *ranges, const float *sums, long n, __mmask16 mask,
                            __m512 *out) {
    const float *scales = panel->scales + n - panel->column;
    const float *offsets = panel->offsets + n - panel->column;
    __m512 half[OUTPUTS * SIZE];
#pragma GCC unroll 1 /* else there are more numbers at hand than registers */
    for (int x = 0; x < SIZE; x++) {
        __m512 in[SIZE];
#pragma GCC unroll 4
        for (int y = 0; y < SIZE; y++) {
            int i = y * SIZE + x;
            in[y] = restored(sums + i * SOME_TILES * PANEL, ranges[i],
                             _mm512_maskz_loadu_ps(mask, scales + i * panel->step),
                             _mm512_maskz_loadu_ps(mask, offsets + i * panel->step),
                             _mm512_setzero_ps());
        }
        output_step(SIZE, in, 1, half + x, SIZE);
    }
#pragma GCC unroll 2
    for (int y = 0; y < OUTPUTS; y++)
        output_step(SIZE, half + y * SIZE, 1, out + y * OUTPUTS, 1);
    __m512 bias = c->bias ? _mm512_maskz_loadu_ps(mask, c->bias + n) : _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int i = 0; i < OUTPUTS * OUTPUTS; i++) out[i] = _mm512_add_ps(out[i], bias);
}

/* Turn the sums of one tile and panel into outputs. */
NUMBERS void finish_as(const struct convolution *c, const struct panel *panel, long tile,
                       const float *sums, const struct range *ranges, int bfloat16) {
    struct corner at = corner_of(c, tile);
    long rows = smaller(OUTPUTS, c->out_height - at.y), across = smaller(OUTPUTS, c->out_width - at.x);
    long to = ((at.picture * c->out_height + at.y) * c->out_width + at.x) * c->columns;
    long n = panel->column, stop = smaller(n + PANEL, c->columns);
    __m512 first[OUTPUTS * OUTPUTS], second[OUTPUTS * OUTPUTS];
    for (; n + 32 <= stop; n += 32, sums += 32) {
        finish_columns(c, panel, ranges, sums, n, 0xffff, first);
        finish_columns(c, panel, ranges, sums + 16, n + 16, 0xffff, second);
        for (long y = 0; y < rows; y++)
            for (long x = 0; x < across; x++)
                store_two(c->to, to + (y * c->out_width + x) * c->columns + n, bfloat16,
                          first[y * OUTPUTS + x], second[y * OUTPUTS + x]);
    }
    for (; n < stop; n += 16, sums += 16) {
        __mmask16 mask = first_lanes(c->columns - n);
        finish_columns(c, panel, ranges, sums, n, mask, first);
        for (long y = 0; y < rows; y++)
            for (long x = 0; x < across; x++)
                store_some(c->to, to + (y * c->out_width + x) * c->columns + n, mask, bfloat16,
                           first[y * OUTPUTS + x]);
    }
}

TARGET static void finish(const struct convolution *c, const struct panel *panel, long tile,
                          const float *sums, const struct range *ranges) {
    if (c->bfloat16)
        finish_as(c, panel, tile, sums, ranges, 1);
    else
        finish_as(c, panel, tile, sums, ranges, 0);
}

/* A panel as it is, or made of the direct weights. */
static struct panel panel_of(const struct convolution *c, long index, int worker) {
    struct panel panel = {.column = index * PANEL, .width = panel_width(c->columns, index)};
    if (!c->direct) {
        panel.numbers = c->packed + panel.column * c->length * PLACES;
        panel.scales = c->scales + panel.column;
        panel.offsets = c->offsets + panel.column;
        panel.step = c->columns;
        return panel;
    }
    struct integers weights = {c->packed, c->scales, c->columns, c->channels};
    element *made = c->made + worker * PLACES * c->length * PANEL;
    float *scales = c->made_scales + worker * 2 * PLACES * PANEL, *offsets = scales + PLACES * PANEL;
    transform_integers(&weights, panel.column, panel.width, made, scales, offsets);
    panel.numbers = made;
    panel.scales = scales;
    panel.offsets = offsets;
    panel.step = PANEL;
    return panel;
}

static void group_task(void *context, long task, int worker) {
    const struct convolution *c = context;
    long panels = panel_count(c->columns), part = task % c->panel_tasks;
    long first = task / c->panel_tasks * c->group, count = smaller(c->group, c->tiles - first);
    long gap = c->group * c->length;
    float *numbers = c->numbers + worker * PLACES * c->length;
    element *inputs = c->inputs + worker * PLACES * gap;
    struct range *ranges = c->ranges + worker * PLACES * c->group;
    float *sums = c->sums + worker * PLACES * SOME_TILES * PANEL;
    for (long t = 0; t < count; t++)
        prepare(c, first + t, numbers, inputs + t * c->length, ranges + t * PLACES);
    for (long p = panels * part / c->panel_tasks; p < panels * (part + 1) / c->panel_tasks; p++) {
        struct panel panel = panel_of(c, p, worker);
        for (long start = 0; start < count; start += SOME_TILES) {
            long stop = smaller(start + SOME_TILES, count);
            for (int i = 0; i < PLACES; i++)
                multiply(inputs + i * gap + start * c->length, c->length, stop - start,
                         panel.numbers + i * panel.width * c->length, c->length / PER_WORD,
                         panel.width, sums + i * SOME_TILES * PANEL);
            for (long t = start; t < stop; t++)
                finish(c, &panel, first + t, sums + (t - start) * PANEL, ranges + t * PLACES);
        }
    }
}

/* Cut the work, take memory, do it. Returns 0, or -1 when there is no memory. */
static int run(struct convolution *c, int threads) {
    long fitting = GROUP_BYTES / (PLACES * c->length) / TILE_ROWS * TILE_ROWS;
    c->group = smaller(larger(fitting, c->direct ? MOST_GROUP : LEAST_GROUP), MOST_GROUP);
    c->group = smaller(c->group, round_up(c->tiles, TILE_ROWS));
    long groups = (c->tiles + c->group - 1) / c->group, panels = panel_count(c->columns);
    c->panel_tasks = threads == 1 ? 1 : smaller(panels, (3L * threads + groups - 1) / groups);
    long number = (long)sizeof(float), rows = threads * PLACES * c->group;
    long parts[] = {c->length * number, threads * PLACES * c->length * number, rows * c->length,
                    rows * (long)sizeof(struct range),
                    threads * PLACES * SOME_TILES * PANEL * number,
                    c->direct ? threads * PLACES * c->length * PANEL : 0,
                    c->direct ? threads * 2 * PLACES * PANEL * number : 0};
    long bytes = 0, starts[7];
    for (int i = 0; i < 7; i++) starts[i] = bytes, bytes += round_up(parts[i], 64);
    char *scratch = take_scratch((size_t)bytes);
    if (!scratch) return -1;
    c->zeros = memset(scratch, 0, (size_t)(starts[2])); /* and the numbers beyond the channels */
    c->numbers = (float *)(scratch + starts[1]);
    c->inputs = (element *)(scratch + starts[2]);
    c->ranges = (struct range *)(scratch + starts[3]);
    c->sums = (float *)(scratch + starts[4]);
    c->made = (element *)(scratch + starts[5]);
    c->made_scales = (float *)(scratch + starts[6]);
    run_tasks(threads, groups * c->panel_tasks, group_task, c);
    return_scratch(scratch);
    return 0;
}

/* A 3x3 convolution of channels-last pictures, float32 or bfloat16. `sizes`: batch, height, width,
 * channels, out_channels, padding above and below, padding left and right, and whether weights are
 * those of `sfumato_convolve_int8`, for a multiple of 16 channels; `offsets` are not read then. */
SFUMATO_EXPORT int sfumato_winograd_int8(const void *from, void *to, int bfloat16,
                                         const element *packed, const float *scales,
                                         const float *offsets, const float *bias,
                                         const long *sizes, int threads) {
    struct convolution c = {.from = from, .to = to, .bfloat16 = bfloat16, .packed = packed,
                            .scales = scales, .offsets = offsets, .bias = bias,
                            .height = sizes[1], .width = sizes[2], .channels = sizes[3],
                            .columns = sizes[4], .pad_y = sizes[5], .pad_x = sizes[6],
                            .direct = sizes[7] != 0};
    c.out_height = c.height + 2 * c.pad_y - 2;
    c.out_width = c.width + 2 * c.pad_x - 2;
    c.down = (c.out_height + OUTPUTS - 1) / OUTPUTS;
    c.across = (c.out_width + OUTPUTS - 1) / OUTPUTS;
    c.tiles = sizes[0] * c.down * c.across;
    c.length = round_up(c.channels, 16);
    return run(&c, threads);
}
#endif
