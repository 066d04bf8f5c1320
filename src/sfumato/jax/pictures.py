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
        InputError: an array is of another shape, or the pictures differ in size.
        ImageError: it is something else, or a picture is smaller than one latent.
    """
    image = _known(image)
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

    Raises:
        InputError: an array is of another shape.
        ImageError: it is something else.
    """
    mask = _known(mask)
    if isinstance(mask, np.ndarray) and mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if isinstance(mask, np.ndarray) and mask.ndim == 3:
        mask = list(mask)
    planes = [_mask(item, height, width) for item in _each(mask)]
    return np.stack(planes).astype(np.float32)


def _known(image: Any) -> Any:
    """PIL images as they are, arrays of any kind as NumPy's, lists of both; nothing else."""
    if isinstance(image, list | tuple) and image:
        return [_known(item) for item in image]
    if isinstance(image, Image.Image):
        return image
    array = np.asarray(image) if hasattr(image, "__array__") else np.zeros(0)
    if array.dtype.kind not in "biuf" or not array.size:
        raise ImageError(
            "Input is in incorrect format. Currently, we only support PIL.Image.Image,"
            " numpy.ndarray, jax.Array, or a list of one of them."
        )
    return array


def _each(image: Any) -> Sequence[Any]:
    if isinstance(image, np.ndarray) and image.ndim == 4:
        return list(image)
    return image if isinstance(image, list) else [image]


def _rgb(item: Any) -> Array:
    """One picture ``(H, W, 3)`` in 0..1."""
    if isinstance(item, Image.Image):
        return np.asarray(item.convert("RGB"), np.float32) / 255
    if not isinstance(item, np.ndarray) or item.ndim != 3 or item.shape[2] != 3:
        raise InputError(
            f"A picture has to be a PIL image or an array (H, W, 3) in 0..1 but is {_shown(item)}."
        )
    return item.astype(np.float32) / 255 if item.dtype.kind in "iu" else item.astype(np.float32)


def _mask(item: Any, height: int, width: int) -> Array:
    """One mask ``(1, height, width)`` of truth values."""
    if isinstance(item, np.ndarray):
        if item.ndim != 2:
            raise InputError(
                f"A mask has to be a PIL image or an array (H, W) in 0..1 but is {_shown(item)}."
            )
        item = _image(item)
    if not isinstance(item, Image.Image):
        raise InputError("A mask has to be a PIL image or an array (H, W) in 0..1, not a list.")
    resized = item.convert("L").resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(resized, np.float32)[None] / 255 >= 0.5


def _shown(item: Any) -> str:
    if isinstance(item, np.ndarray):
        return f"an array {item.shape} of type {item.dtype}"
    return f"a {type(item).__name__}"


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
