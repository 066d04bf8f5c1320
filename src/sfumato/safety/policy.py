"""What becomes of pictures in which the safety checker finds something."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.errors import InputError

Policy = Literal["black", "blur", "flag", "off"]

#: What is said of each policy in the log.
POLICIES: dict[str, str] = {
    "black": "A black image will be returned instead.",
    "blur": "A blurred image will be returned instead.",
    "flag": "The image is returned as it is.",
    "off": "",
}

#: What is left of a blurred picture: so many patches of colour in each direction.
_PATCHES = 8


def check_policy(value: Any) -> Policy:
    """Return ``value``, or raise `InputError` unless it is a policy."""
    if value not in POLICIES:
        raise InputError(f"`policy` has to be one of {', '.join(POLICIES)} but is {value!r}.")
    return value


def applied(policy: Policy, images: Any, flags: list[bool]) -> Any:
    """The pictures with findings replaced; what was given is not changed.

    Args:
        policy: one of `POLICIES`.
        images: a tensor (batch, channels, height, width) in -1..1, or an array or list of arrays
            (height, width, channels) in 0..1, or such tensors in a list.
        flags: which are findings.

    Returns:
        The same kind of thing. Findings in a tensor come back in 0..1, the range that is shown.
    """
    if not any(flags):
        return images
    replaced = [
        _replaced(policy, image) if flag else image
        for image, flag in zip(images, flags, strict=True)
    ]
    if isinstance(images, Tensor):
        return torch.stack(replaced)
    return np.stack(replaced) if isinstance(images, np.ndarray) else replaced


def _replaced(policy: Policy, image: Any) -> Any:
    if isinstance(image, Tensor):
        shown = (image / 2 + 0.5).clamp(0, 1)
        if policy == "blur":
            return _blurred(shown)
        return torch.zeros_like(image) if policy == "black" else shown
    if policy == "blur":
        plain = torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)
        return _blurred(plain).permute(1, 2, 0).numpy().astype(image.dtype)
    return np.zeros_like(image) if policy == "black" else image


def _blurred(image: Tensor) -> Tensor:
    """A picture (channels, height, width) as a few smooth patches of its colours."""
    patches = F.adaptive_avg_pool2d(image[None].float(), _PATCHES)
    smooth = F.interpolate(patches, image.shape[1:], mode="bilinear", align_corners=False)
    return smooth[0].to(image.dtype)
