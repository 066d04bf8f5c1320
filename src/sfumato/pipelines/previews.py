"""Small pictures of a drawing on its way, from its latents alone: no network is asked.

Each latent becomes one pixel, by a linear map from its channels to red, green and blue. For Stable
Diffusion's latents the map is known; for others it is fitted once, on patches of colour that the
autoencoder encodes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.pipelines import checks, stages

#: From the channels of Stable Diffusion 1.x and 2.x to colours around -1..1, as found by others.
STABLE_DIFFUSION = (
    (0.3512, 0.2297, 0.3227),
    (0.3250, 0.4974, 0.2350),
    (-0.2829, 0.1762, 0.2721),
    (-0.2120, -0.2616, -0.7177),
)
#: Patches of colour along a side of the picture that maps are fitted on, and latents along a patch.
_PATCHES, _PATCH = 8, 4

Show = Callable[[list[Image.Image], int, int], object]


@dataclass(frozen=True, eq=False)
class LatentColours:
    """A linear map from latents to colours.

    Attributes:
        weights: ``(channels, 3)``.
        offset: ``(3,)``.
    """

    weights: Tensor
    offset: Tensor

    def __call__(self, latents: Tensor) -> list[Image.Image]:
        """One picture for each of ``(n, channels, height, width)``, a pixel for each latent.

        Raises:
            InputError: when the latents have other channels.
        """
        if latents.ndim != 4 or latents.shape[1] != len(self.weights):
            raise InputError(
                f"The latents' shape is {tuple(latents.shape)}, but the previews are for"
                f" {len(self.weights)} channels."
            )
        weights, offset = (part.to(latents.device) for part in (self.weights, self.offset))
        colours = latents.detach().float().movedim(1, -1) @ weights + offset
        bytes_ = ((colours / 2 + 0.5).nan_to_num(0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return [Image.fromarray(picture) for picture in bytes_.cpu().numpy()]


_fitted: WeakKeyDictionary[Any, LatentColours] = WeakKeyDictionary()
_fitting = threading.Lock()


def colours_of(vae: Any) -> LatentColours:
    """The map for the latents of an autoencoder, as the UNet knows them.

    Raises:
        InputError: there is no autoencoder.
    """
    if vae is None:
        raise InputError("Previews need the autoencoder (`vae`) that the latents belong to.")
    config = vae.config
    factor = getattr(config, "scaling_factor", None)
    if getattr(config, "latent_channels", None) == 4 and factor == 0.18215:
        widths = tuple(getattr(config, "block_out_channels", ()))
        if widths == (128, 256, 512, 512):
            return LatentColours(torch.tensor(STABLE_DIFFUSION), torch.zeros(3))
    with _fitting:
        if vae not in _fitted:
            _fitted[vae] = fit_colours(vae)
        return _fitted[vae]


@torch.no_grad()
def fit_colours(vae: Any) -> LatentColours:
    """The map with the least squared error on a picture of random patches of colour."""
    channels = getattr(vae.config, "in_channels", 3)
    if channels != 3:
        raise InputError(f"Previews are for pictures of 3 channels, not {channels}.")
    generator = torch.Generator().manual_seed(0)
    side = _PATCHES * _PATCH
    patches = torch.rand(1, 3, _PATCHES, _PATCHES, generator=generator) * 2 - 1
    small = nn.functional.interpolate(patches, size=(side, side), mode="nearest")
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    picture = nn.functional.interpolate(small, scale_factor=factor, mode="nearest")
    latents = stages.most_likely(vae, picture.to(vae.device), torch.float32)
    known = (latents * vae.config.scaling_factor).cpu().movedim(1, -1).flatten(0, 2).numpy()
    wanted = small.movedim(1, -1).flatten(0, 2).numpy()
    found = np.linalg.lstsq(np.pad(known, ((0, 0), (0, 1)), constant_values=1), wanted)[0]
    return LatentColours(torch.from_numpy(found[:-1]), torch.from_numpy(found[-1]))


class PreviewCallback:
    """Shows a drawing on its way; a ``callback_on_step_end``.

    Args:
        show: called with the pictures, one pixel for each latent, the number of steps that are
            done and that of all; what it returns is not looked at.
        every: after how many steps.
        vae: the autoencoder that the latents belong to, if not the pipeline's.
    """

    #: What the network takes the finished latents to be.
    tensor_inputs = ("denoised",)

    def __init__(self, show: Show, every: int = 1, vae: Any = None) -> None:
        self.show, self.vae = show, vae
        self.every = checks.whole_number("every", every, 1, 1_000_000)

    def __call__(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        done, total = step_index + 1, pipeline.num_timesteps
        if done % self.every == 0 or done == total:
            colours = colours_of(pipeline.vae if self.vae is None else self.vae)
            self.show(colours(callback_kwargs["denoised"]), done, total)
        return callback_kwargs
