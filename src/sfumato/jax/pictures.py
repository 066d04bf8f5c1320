"""Pictures and masks as the networks want them, from PIL images and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from sfumato.errors import ImageError, InputError

Array = np.ndarray[Any, Any]


def as_pictures(image: Any, factor: int) -> Array:
    """Pictures ``(B, 3, H, W)`` in -1..1, float32; sides are cut to multiples of ``factor``.

    Args:
        image: a PIL image, an array ``(H, W, 3)`` or ``(B, H, W, 3)`` in 0..1, an array
            ``(B, 3, H, W)`` in -1..1, which is taken as it is, or a list of PIL images or arrays.
        factor: pixels to a latent.

    Raises:
        InputError: it is something else, or the pictures differ in size.
        ImageError: a picture is smaller than one latent.
    """
    if isinstance(image, np.ndarray) and image.ndim == 4 and image.shape[1] == 3:
        return image.astype(np.float32)
    planes = [_rgb(item) for item in _each(image)]
    sizes = {plane.shape for plane in planes}
    if len(sizes) > 1:
        raise InputError(f"The pictures differ in size: {sorted(sizes)}.", hint="Resize them.")
    stacked = np.stack([_fitted(plane, factor) for plane in planes])
    return 2 * stacked.transpose(0, 3, 1, 2) - 1


def as_masks(mask: Any, height: int, width: int) -> Array:
    """Masks ``(B, 1, H, W)`` of zeros (keep) and ones (draw anew), float32.

    Args:
        mask: a PIL image, an array ``(H, W)`` or ``(B, H, W)`` in 0..1, an array
            ``(B, 1, H, W)``, or a list of PIL images or arrays; from a half on it is one.
        height, width: of the result.
    """
    if isinstance(mask, np.ndarray) and mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if isinstance(mask, np.ndarray) and mask.ndim == 3:
        mask = list(mask)
    planes = []
    for item in _each(mask):
        grey = item if isinstance(item, Image.Image) else _image(np.asarray(item))
        resized = grey.convert("L").resize((width, height), Image.Resampling.NEAREST)
        planes.append(np.asarray(resized, np.float32)[None] / 255 >= 0.5)
    return np.stack(planes).astype(np.float32)


def _each(image: Any) -> Sequence[Any]:
    if isinstance(image, np.ndarray) and image.ndim == 4:
        return list(image)
    return image if isinstance(image, list | tuple) and image else [image]


def _rgb(item: Any) -> Array:
    """One picture ``(H, W, 3)`` in 0..1."""
    if isinstance(item, Image.Image):
        return np.asarray(item.convert("RGB"), np.float32) / 255
    array = np.asarray(item)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind not in "fu":
        raise InputError(
            f"A picture has to be a PIL image or an array (H, W, 3) in 0..1 but is {type(item)}"
            f" {array.dtype} {array.shape}."
        )
    if array.dtype.kind == "u":
        return array.astype(np.float32) / 255
    return array.astype(np.float32)


def _fitted(plane: Array, factor: int) -> Array:
    height, width = (side - side % factor for side in plane.shape[:2])
    if not height or not width:
        raise ImageError(
            f"A picture of {plane.shape[1]}x{plane.shape[0]} is too small; each side has to have"
            f" {factor} pixels at least."
        )
    if (height, width) == plane.shape[:2]:
        return plane
    resized = _image(plane).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(resized, np.float32) / 255


def _image(plane: Array) -> Image.Image:
    return Image.fromarray(np.uint8(np.round(np.clip(plane, 0, 1) * 255)))
