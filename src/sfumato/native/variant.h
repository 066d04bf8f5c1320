/* All kernels of one variant, and the table of them. Included by its file, after a header for each
 * of its vectors, its type in memory and its type of products; `VARIANT` is the table's name. */
#include "attention.h"
#include "blocks.h"
#include "ceiling.h"
#include "dense.h"
#include "group_norm.h"
#include "kernels.h"
#include "pointwise.h"
#include "winograd.h"

const struct kernels VARIANT = {
    .packed_bytes = sizeof(element),
    .pack = pack,
    .pack_winograd = pack_winograd,
    .linear = linear,
    .linear_once = linear_once,
    .convolve = convolve,
    .convolve_once = convolve_once,
    .winograd = winograd,
    .winograd_once = winograd_once,
    .attention = attention,
    .group_norm = group_norm,
    .group_moments = group_moments,
    .scale = scale,
    .layer_norm = layer_norm,
    .geglu = geglu,
    .activate = activate,
    .expand_blocks = expand_blocks,
    .ceiling = ceiling,
};
