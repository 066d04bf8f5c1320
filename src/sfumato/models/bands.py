"""Feature maps too large to hold whole, as bands of rows, and layers that run band by band.

What comes out is what the layer makes of the whole map, up to rounding: a convolution is shown the
rows on either side of its band, and a group norm is given the statistics of the whole map, for
which it reads the map once more. So there is nothing to blend and there are no seams.

Bands of a map wait in a `sfumato.runtime.spill.Room`, not necessarily in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.models.fused import group_moments, scale_act
from sfumato.runtime.spill import Kept, Room

#: Bands of a map from top to bottom, each ``(N, C, rows, W)``.
Rows = Iterator[Tensor]
#: What makes bands of other bands, not necessarily with the same borders.
Step = Callable[[Rows], Rows]
Shape = tuple[int, int, int, int]

#: A band has at least so many rows: a convolution computes two more, and throws them away.
MIN_ROWS = 4


class Map:
    """A map ``shape``, band by band; `add` all of it before reading.

    Args:
        shape: of the whole.
        bands: those there are already.
        room: where they wait.
    """

    def __init__(self, shape: Shape, bands: Iterable[Tensor], room: Room) -> None:
        self.shape = shape
        self.room = room
        self._bands: deque[Kept] = deque()
        for band in bands:
            self.add(band)
            del band  # before the next is made

    def add(self, band: Tensor) -> None:
        """One more band."""
        self._bands.append(self.room.keep(band))

    def read(self) -> Rows:
        """All bands."""
        return (kept.get() for kept in self._bands)

    def drain(self) -> Rows:
        """All bands for the last time: each is given up before the next is asked for."""
        while self._bands:
            yield self._bands.popleft().take()

    def whole(self) -> Tensor:
        """The map in one piece, given up here."""
        return torch.cat(list(self.drain()), dim=2)


def chain(bands: Rows, *steps: Step) -> Rows:
    """Bands after all steps."""
    for step in steps:
        bands = step(bands)
    return bands


def band_rows(shape: Shape, pixels: int) -> int:
    """Rows of a band with about ``pixels`` pixels in all images together."""
    return max(MIN_ROWS, pixels // (shape[0] * shape[3]))


def cut(x: Tensor, pixels: int, room: Room) -> Map:
    """A map in memory as bands; they are views of it."""
    n, channels, height, width = x.shape
    shape = (n, channels, height, width)
    return Map(shape, x.split(band_rows(shape, pixels), dim=2), room)


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
    return lambda bands: map(function, bands)


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
            wanted = slice(done - top, ready - top)
            y = layer(x)[:, :, wanted] if ready > done else None
            kept = x[:, :, -2:].clone()
            top, done = bottom - kept.shape[2], max(done, ready)
            del band, x  # whoever computes with `y` needs the memory
            if y is not None:
                yield y
            del y

    return step


def halved(layer: nn.Module, height: int) -> Step:
    """A 3x3 convolution of stride two that pads the right and lower edges; see `convolved`."""

    def step(bands: Rows) -> Rows:
        top, kept = 0, None
        for band in bands:
            x = band if kept is None else torch.cat([kept, band], dim=2)
            rows, bottom = x.shape[2], top + x.shape[2]
            whole = rows // 2 if bottom == height else (rows - 1) // 2
            y = layer(x)[:, :, :whole] if whole > 0 else None
            kept = x[:, :, 2 * whole :].clone()
            top += 2 * whole
            del band, x
            if y is not None:
                yield y
            del y

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


def normalised(norm: nn.GroupNorm, act: nn.Module, x: Map) -> Step:
    """The group norm of this very map, which is read for it, and an activation."""
    count, mean, squares = moments(x, norm.num_groups)
    channels = x.shape[1] // norm.num_groups
    scale = (squares / count + norm.eps).rsqrt().repeat_interleave(channels, dim=1)
    scale = scale * norm.weight.to(scale)
    shift = norm.bias.to(scale) - mean.repeat_interleave(channels, dim=1) * scale
    factors = torch.stack([scale, shift], dim=1)
    return each(lambda band: scale_act(band, factors, act))


def moments(x: Map, groups: int) -> tuple[int, Tensor, Tensor]:
    """How many numbers a group has, their mean, and the sum of squares around it: ``(N, groups)``.

    Those of the bands are joined by the formula of Chan, Golub and LeVeque (1979), which does not
    suffer from cancellation.
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for band in x.read():
        n = band[0].numel() // groups
        centre, around = group_moments(band, groups).unbind(dim=2)
        if count == 0:
            mean, squares = centre, around
        else:
            apart = centre - mean
            mean = mean + apart * (n / (count + n))
            squares = squares + around + apart.square() * (count * n / (count + n))
        count += n
    return count, mean, squares


def teed(bands: Rows, other: Map, function: Callable[[Tensor], Tensor]) -> Rows:
    """Bands as they are, of which a function goes into another map."""
    for band in bands:
        other.add(function(band))
        yield band
        del band


def added(waiting: Taken, branch: Rows) -> Rows:
    """The sum of bands, those of a branch and others with other borders."""
    for band in branch:
        yield waiting.rows(band.shape[2]) + band
        del band


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
