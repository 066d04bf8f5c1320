"""Which picture of a gallery does a drawn picture look like most? Arithmetic only, in NumPy.

A picture becomes a vector of two halves that weigh the same:

- *colour*: CIE L*a*b* (Pillow's conversion), averaged over 16x16 cells;
- *edges*: strength of horizontal and of vertical brightness steps, taken at 64x64 and averaged
  over 16x16 cells, so that a shift by a few pixels changes little.

Each half is centred on the gallery's mean and scaled to the gallery's mean length. The nearest
picture is the one of highest cosine similarity. Nothing is learned, so nothing favours a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

Array = npt.NDArray[np.float32]

CELLS = 16
EDGE_SIDE = 64
_TO_LAB = ImageCms.buildTransform(
    ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
)


def features(image: Image.Image) -> tuple[Array, Array]:
    """The colour and the edge half of a picture, neither centred nor scaled.

    Returns:
        float32 arrays of `CELLS * CELLS * 3` and `CELLS * CELLS * 2` values.
    """
    image = image.convert("RGB")
    small = image.resize((CELLS, CELLS), Image.Resampling.BOX)
    lab = ImageCms.applyTransform(small, _TO_LAB)
    assert lab is not None  # only an in-place transform returns nothing
    # Pillow stores a* and b* as signed bytes, which NumPy hands over unsigned.
    values = np.asarray(lab)
    lightness = values[..., :1].astype(np.float32) * (100 / 255)
    colour = np.concatenate([lightness, values[..., 1:].astype(np.int8)], axis=-1)
    grey = image.convert("L").resize((EDGE_SIDE, EDGE_SIDE), Image.Resampling.BOX)
    brightness = np.asarray(grey, dtype=np.float32)
    across = np.abs(np.diff(brightness, axis=1, append=brightness[:, -1:]))
    down = np.abs(np.diff(brightness, axis=0, append=brightness[-1:]))
    cell = EDGE_SIDE // CELLS
    edges = np.stack([across, down], -1).reshape(CELLS, cell, CELLS, cell, 2).mean(axis=(1, 3))
    return colour.astype(np.float32).ravel(), edges.ravel()


def _centre(half: Sequence[Array]) -> tuple[Array, float]:
    """The mean of some vectors, and their mean distance from it."""
    mean = np.mean(half, axis=0)
    return mean, float(np.linalg.norm(np.stack(half) - mean, axis=1).mean())


@dataclass(frozen=True)
class Frame:
    """Where a gallery's features lie: mean and mean distance from it, for colour and edges."""

    colour: tuple[Array, float]
    edges: tuple[Array, float]

    def vector(self, colour: Array, edges: Array) -> Array:
        """The unit vector of a picture with these features."""
        halves = ((colour, *self.colour), (edges, *self.edges))
        joined = np.concatenate([(half - mean) / scale for half, mean, scale in halves])
        return joined / max(float(np.linalg.norm(joined)), 1e-12)


@dataclass(frozen=True)
class Gallery:
    """Pictures to be found again."""

    names: tuple[str, ...]
    vectors: Array
    frame: Frame

    @classmethod
    def of(cls, names: Sequence[str], images: Sequence[Image.Image]) -> Gallery:
        """A gallery of at least two different pictures, one for each name."""
        halves = [features(image) for image in images]
        frame = Frame(_centre([half[0] for half in halves]), _centre([half[1] for half in halves]))
        return cls(tuple(names), np.stack([frame.vector(*half) for half in halves]), frame)

    def rank(self, image: Image.Image, name: str) -> int:
        """How many pictures of the gallery are nearer to `image` than `name`'s, plus one."""
        similarity = self.vectors @ self.frame.vector(*features(image))
        return 1 + int((similarity > similarity[self.names.index(name)]).sum())

    def nearest(self, image: Image.Image) -> str:
        """The name of the most similar picture."""
        return self.names[int(np.argmax(self.vectors @ self.frame.vector(*features(image))))]
