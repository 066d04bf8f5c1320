"""Feature maps too large to hold whole, as bands of rows, and layers that run band by band.

What comes out is what the layer makes of the whole map, up to rounding: a convolution is shown the
rows on either side of its band, and a group norm is given the statistics of the whole map, for
which it reads the map once more. So there is nothing to blend and there are no seams.

A map is either `Held`, or `Computed` each time that it is read: the second costs time where the
first costs memory.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Bands of a map from top to bottom, each ``(N, C, rows, W)``.
Rows = Iterator[Tensor]
#: What makes bands of other bands, not necessarily with the same borders.
Step = Callable[[Rows], Rows]
Shape = tuple[int, int, int, int]

#: A band has at least so many rows: a convolution computes two more, and throws them away.
MIN_ROWS = 4


class Held:
    """A map ``shape`` whose bands are in memory."""

    def __init__(self, shape: Shape, bands: Rows | list[Tensor]) -> None:
        self.shape = shape
        self._bands = deque(bands)

    def read(self) -> Rows:
        """All bands."""
        return iter(self._bands)

    def drain(self) -> Rows:
        """All bands for the last time: each is given up before the next is asked for."""
        while self._bands:
            yield self._bands.popleft()

    def whole(self) -> Tensor:
        """The map in one piece, given up here."""
        return torch.cat(list(self.drain()), dim=2)


class Computed:
    """A map that is computed from another, band by band, each time that it is read."""

    def __init__(self, source: Map, *steps: Step, channels: int, factor: int = 1) -> None:
        """``steps`` give ``channels`` channels and multiply height and width by ``factor``."""
        n, _, height, width = source.shape
        self.shape: Shape = (n, channels, height * factor, width * factor)
        self.source = source
        self.steps = steps

    def read(self) -> Rows:
        """All bands; the source stays."""
        return chain(self.source.read(), *self.steps)

    def drain(self) -> Rows:
        """All bands for the last time: the source's are given up."""
        return chain(self.source.drain(), *self.steps)


Map = Held | Computed


def chain(bands: Rows, *steps: Step) -> Rows:
    """Bands after all steps."""
    for step in steps:
        bands = step(bands)
    return bands


def size(shape: Shape) -> int:
    """Numbers in a map."""
    return math.prod(shape)


def band_rows(shape: Shape, pixels: int) -> int:
    """Rows of a band with about ``pixels`` pixels in all images together."""
    return max(MIN_ROWS, pixels // (shape[0] * shape[3]))


def cut(x: Tensor, pixels: int) -> Held:
    """A map in memory as bands; they are views of it."""
    n, channels, height, width = x.shape
    shape = (n, channels, height, width)
    return Held(shape, list(x.split(band_rows(shape, pixels), dim=2)))


def rows_wrap() -> bool:
    """Whether convolutions take what lies beyond the upper edge from the lower one at present.

    A pipeline that draws pictures without seams changes them so. Bands cannot see that far.
    """
    column, above = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    seen = F.conv2d(column.view(1, 1, 3, 1), above.view(1, 1, 3, 1), padding=(1, 0))
    return bool(seen[0, 0, 0, 0] != 0)


# Steps


def each(function: Callable[[Tensor], Tensor]) -> Step:
    """A function of single pixels."""

    def step(bands: Rows) -> Rows:
        for band in bands:
            yield function(band)

    return step


def convolved(layer: nn.Module, height: int) -> Step:
    """A 3x3 convolution that pads the map with one row and column of zeros on every side.

    Args:
        layer: ``(N, C, h, W)`` to ``(N, C', h, W)``.
        height: of the map.
    """

    def step(bands: Rows) -> Rows:
        top, done, kept = 0, 0, None
        for band in bands:
            x = band if kept is None else torch.cat([kept, band], dim=2)
            bottom = top + x.shape[2]
            # Inside the map, the outermost rows see zeros in place of their neighbours.
            ready = bottom if bottom == height else bottom - 1
            if ready > done:
                yield layer(x)[:, :, done - top : ready - top]
                done = ready
            kept = x[:, :, -2:].clone()
            top = bottom - kept.shape[2]

    return step


def halved(layer: nn.Module, height: int) -> Step:
    """A 3x3 convolution of stride two that pads the right and lower edges; see `convolved`."""

    def step(bands: Rows) -> Rows:
        top, kept = 0, None
        for band in bands:
            x = band if kept is None else torch.cat([kept, band], dim=2)
            rows, bottom = x.shape[2], top + x.shape[2]
            whole = rows // 2 if bottom == height else (rows - 1) // 2
            if whole > 0:
                yield layer(x)[:, :, :whole]
            kept = x[:, :, 2 * whole :].clone()
            top += 2 * whole

    return step


def doubled(pixels: int) -> Step:
    """Each pixel as two by two, in bands of about ``pixels`` pixels."""

    def step(bands: Rows) -> Rows:
        for band in bands:
            n, _, _, width = band.shape
            rows = max(MIN_ROWS, pixels // (n * 2 * width)) // 2
            for part in band.split(rows, dim=2):
                yield F.interpolate(part, scale_factor=2.0, mode="nearest")

    return step


def normalised(norm: nn.GroupNorm, x: Map) -> Step:
    """The group norm of this very map, which is read for it."""
    mean, variance = statistics(x, norm.num_groups)
    channels = x.shape[1] // norm.num_groups
    weight = norm.weight.to(mean).view(1, -1, 1, 1)
    bias = norm.bias.to(mean).view(1, -1, 1, 1)

    def per_channel(values: Tensor) -> Tensor:
        return values.repeat_interleave(channels, dim=1)[:, :, None, None]

    scale = weight * per_channel((variance + norm.eps).rsqrt())
    shift = bias - per_channel(mean) * scale
    return each(lambda band: torch.addcmul(shift, band.to(scale.dtype), scale).to(band.dtype))


def statistics(x: Map, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance ``(N, groups)`` over a whole map, in float32 at least.

    Those of the bands are joined by the formula of Chan, Golub and LeVeque (1979), which does not
    suffer from cancellation.
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for band in x.read():
        values = band.to(torch.promote_types(band.dtype, torch.float32))
        values = values.unflatten(1, (groups, -1)).flatten(2)
        variance, centre = torch.var_mean(values, dim=2, correction=0)
        n = values.shape[2]
        if count == 0:
            mean, squares = centre, variance * n
        else:
            apart = centre - mean
            mean = mean + apart * (n / (count + n))
            squares = squares + variance * n + apart.square() * (count * n / (count + n))
        count += n
    return mean, squares / count


def beside(x: Map, branch: Step, shortcut: Callable[[Tensor], Tensor]) -> Rows:
    """The sum of a branch from a map and of a shortcut; the map is given up.

    Bands come out of the branch late, so those that went in wait for them.
    """
    waiting: deque[Tensor] = deque()

    def noted(bands: Rows) -> Rows:
        for band in bands:
            waiting.append(band)
            yield band

    def again() -> Rows:
        while True:
            yield waiting.popleft()

    return added(Taken(again()), branch(noted(x.drain())), shortcut)


def added(waiting: Taken, branch: Rows, shortcut: Callable[[Tensor], Tensor]) -> Rows:
    """A branch plus a shortcut from bands with other borders."""
    for band in branch:
        yield shortcut(waiting.rows(band.shape[2])) + band


class Taken:
    """Bands, taken in other portions."""

    def __init__(self, bands: Rows) -> None:
        self._bands = bands
        self._rest: Tensor | None = None

    def rows(self, count: int) -> Tensor:
        """The next ``count`` rows."""
        parts: list[Tensor] = []
        while count > 0:
            band = next(self._bands) if self._rest is None else self._rest
            parts.append(band[:, :, :count])
            self._rest = band[:, :, count:] if band.shape[2] > count else None
            count -= parts[-1].shape[2]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
