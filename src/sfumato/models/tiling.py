"""A network run over overlapping tiles of a large map, and the tiles blended into one.

The arithmetic is diffusers' (``tiled_decode``): tiles start every ``stride`` pixels, each is
blended linearly into its upper and left neighbours, and cropped to ``limit``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def blend(a: Tensor, b: Tensor, extent: int, dim: int) -> Tensor:
    """``b`` with its first ``extent`` rows (or columns) faded in from the last ones of ``a``."""
    extent = min(a.shape[dim], b.shape[dim], extent)
    if extent == 0:
        return b
    ramp = torch.arange(extent, dtype=torch.float64, device="cpu") / extent
    shape = [1] * b.ndim
    shape[dim] = extent
    fade_out = (1 - ramp).to(b.device, torch.float32).view(shape)
    fade_in = ramp.to(b.device, torch.float32).view(shape)
    old = a.narrow(dim, a.shape[dim] - extent, extent)
    new = b.narrow(dim, 0, extent)
    rest = b.narrow(dim, extent, b.shape[dim] - extent)
    return torch.cat([(old * fade_out + new * fade_in).to(b.dtype), rest], dim=dim)


def run_tiled(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    tile: int,
    stride: int,
    extent: int,
    limit: int,
) -> Tensor:
    """Apply ``network`` tile by tile.

    Args:
        network: maps ``(N, C, h, w)`` to another map, at another scale perhaps.
        x: ``(N, C, H, W)``.
        tile, stride: size and distance of the tiles, in pixels of ``x``.
        extent, limit: overlap that is blended and size that is kept, in pixels of the output.
    """
    rows: list[list[Tensor]] = []
    for top in range(0, x.shape[2], stride):
        lefts = range(0, x.shape[3], stride)
        rows.append([network(x[:, :, top : top + tile, j : j + tile]) for j in lefts])
    for i, row in enumerate(rows):
        for j in range(len(row)):
            if i > 0:
                row[j] = blend(rows[i - 1][j], row[j], extent, dim=2)
            if j > 0:
                row[j] = blend(row[j - 1], row[j], extent, dim=3)
    kept = [torch.cat([t[:, :, :limit, :limit] for t in row], dim=3) for row in rows]
    return torch.cat(kept, dim=2)
