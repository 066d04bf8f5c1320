"""Parts of pictures: the region of a mask, a result laid over the original, room to grow into."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from sfumato.errors import ImageError

Box = tuple[int, int, int, int]  # left, upper, right and lower edge in pixels


def region_of_mask(mask: Image.Image, width: int, height: int, pad: int = 0) -> Box:
    """The part of a picture that holds all of a mask, in the shape of what will be drawn there.

    Args:
        mask: black where nothing shall change.
        width, height: of what will be drawn; their ratio is that of the result, if it fits.
        pad: pixels around the mask that belong to the region.

    Raises:
        ImageError: when all of the mask is black.
    """
    marked = np.asarray(mask.convert("L")) != 0
    if not marked.any():
        raise ImageError("The mask is black everywhere, so there is nothing to draw.")
    left, right = _span(marked.any(axis=0), pad)
    upper, lower = _span(marked.any(axis=1), pad)
    wanted = width / height
    if (right - left) / (lower - upper) > wanted:
        upper, lower = _grown(upper, lower, (right - left) / wanted, mask.height)
    else:
        left, right = _grown(left, right, (lower - upper) * wanted, mask.width)
    return left, upper, right, lower


def _span(marked: np.ndarray, pad: int) -> tuple[int, int]:
    """First and past-the-end index that is marked, with ``pad`` around it as far as there is."""
    places = np.flatnonzero(marked)
    return max(int(places[0]) - pad, 0), min(int(places[-1]) + 1 + pad, len(marked))


def _grown(start: int, end: int, length: float, limit: int) -> tuple[int, int]:
    """A span grown to ``length`` on both sides, moved to lie in 0..limit, cut where it cannot."""
    more = int(length - (end - start))
    start, end = start - more // 2, end + more - more // 2
    if end >= limit:
        start, end = start - (end - limit), limit
    if start < 0:
        start, end = 0, end - start
    return start, min(end, limit)


def overlay(
    mask: Image.Image, original: Image.Image, drawn: Image.Image, region: Box | None = None
) -> Image.Image:
    """The original picture where the mask is black, what was drawn where it is white.

    Args:
        mask: of the original's size.
        original: what was to be changed.
        drawn: what was drawn; of the original's size, or of any when there is a region.
        region: where in the original it belongs.
    """
    kept = Image.new("RGBa", original.size)
    opaque = ImageOps.invert(mask.convert("L"))
    kept.paste(original.convert("RGBA").convert("RGBa"), mask=opaque)
    if region is not None:
        canvas = Image.new("RGB", original.size)
        canvas.paste(drawn, region[:2])
        drawn = canvas
    result = drawn.convert("RGBA")
    result.alpha_composite(kept.convert("RGBA"))
    return result.convert("RGB")


def extended(picture: Image.Image, edges: Box) -> tuple[Image.Image, Image.Image]:
    """A picture with room around it, and the mask of that room, to draw into (outpainting).

    The room is filled with the picture's own edge pixels, so that a model without mask channels
    has colours to begin from.

    Args:
        picture: any.
        edges: pixels to add on the left, above, on the right and below.
    """
    left, upper, right, lower = edges
    if min(edges) < 0 or not any(edges):
        raise ImageError("There is nothing to extend: give the pixels to add, 0 or more per side.")
    pixels = np.pad(
        np.asarray(picture.convert("RGB")), ((upper, lower), (left, right), (0, 0)), mode="edge"
    )
    mask = Image.new("L", (pixels.shape[1], pixels.shape[0]), 255)
    mask.paste(0, (left, upper, left + picture.width, upper + picture.height))
    return Image.fromarray(pixels), mask
