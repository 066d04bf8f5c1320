"""What a text-to-image pipeline returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sfumato.outputs import BaseOutput

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor


@dataclass
class ImagePipelineOutput(BaseOutput):
    """Pictures of a pipeline without a safety checker, of the type asked for."""

    images: list[Image] | np.ndarray[Any, Any] | Tensor


@dataclass
class StableDiffusionPipelineOutput(BaseOutput):
    """Pictures, and whether a safety checker objected to them.

    Attributes:
        images: a list of PIL pictures, an array ``(batch, height, width, channels)`` in 0..1, a
            tensor ``(batch, channels, height, width)`` in 0..1, or latents, as asked for.
        nsfw_content_detected: one flag per picture, or None when nothing was checked.
    """

    images: list[Image] | np.ndarray[Any, Any] | Tensor
    nsfw_content_detected: list[bool] | None
