"""The three networks of a text-to-image model, on any backend, and those of NumPy.

`sfumato.graph.text_to_image` draws with whatever has the methods of `Networks`; arrays that go in
and come out are NumPy's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from sfumato.errors import SfumatoError, WeightsMismatchError
from sfumato.graph.autoencoder import decode
from sfumato.graph.clip_text import clip_text
from sfumato.graph.folder import ModelFolder, read_model_folder
from sfumato.graph.numpy_ops import NumpyOps
from sfumato.graph.unet import unet
from sfumato.graph.weights import Weights
from sfumato.native.library import can_compute

Array = np.ndarray[Any, Any]


class Networks(Protocol):
    """A model that draws, as a backend computes it. Arrays are float32."""

    @property
    def model(self) -> ModelFolder:
        """Configurations, tokenizer and scheduler."""
        ...

    def with_scheduler(self, scheduler: Any) -> Networks:
        """The same with another scheduler."""
        ...

    def encode_text(self, ids: Array, mask: Array | None, clip_skip: int) -> Array:
        """Hidden states ``(N, L, C)`` of ids ``(N, L)``; ``mask`` is 1 for words, 0 for padding."""
        ...

    def predict(self, x: Array, timestep: float, context: Array) -> Array:
        """The UNet's answer to latents ``(N, C, H, W)`` at one timestep."""
        ...

    def decode(self, latents: Array) -> Array:
        """Pictures ``(N, 3, H, W)`` around -1..1 of latents as the autoencoder knows them."""
        ...


@dataclass(frozen=True)
class NumpyNetworks:
    """`Networks` on NumPy, in float32."""

    model: ModelFolder
    ops: NumpyOps
    text_encoder: Weights
    unet: Weights
    vae: Weights

    @classmethod
    def load(cls, path: Path) -> Self:
        """From a folder in diffusers' layout.

        Raises:
            InputError: a model of another kind; the message says what torch alone can do.
            CheckpointError: files are missing or damaged.
        """
        model = read_model_folder(path)
        parts = (Weights(model.weights(name)) for name in ("text_encoder", "unet", "vae"))
        return cls(model, best_ops(), *parts)

    def with_scheduler(self, scheduler: Any) -> Self:
        """See `Networks`."""
        return replace(self, model=replace(self.model, scheduler=scheduler))

    def encode_text(self, ids: Array, mask: Array | None, clip_skip: int) -> Array:
        """See `Networks`."""
        with _fitting("text_encoder"):
            return clip_text(
                self.ops,
                self.text_encoder,
                self.model.text_config,
                ids,
                attention_mask=mask,
                clip_skip=clip_skip,
            ).last_hidden_state

    def predict(self, x: Array, timestep: float, context: Array) -> Array:
        """See `Networks`."""
        times = np.full(len(x), timestep, np.float32)
        with _fitting("unet"):
            return unet(self.ops, self.unet, self.model.unet_config, x, times, context)

    def decode(self, latents: Array) -> Array:
        """See `Networks`."""
        with _fitting("vae"):
            return decode(self.ops, self.vae, self.model.vae_config, latents)


def best_ops() -> NumpyOps:
    """The compiled kernels where there are any, else NumPy alone.

    One thread computes: networks that are worth drawing with here are so small that sharing their
    layers costs more than it saves, and a busy machine would make it cost a hundred times that.
    """
    if not can_compute("float32"):
        return NumpyOps()
    from sfumato.graph.native_ops import NativeOps

    return NativeOps(threads=1)


@contextmanager
def _fitting(name: str) -> Iterator[None]:
    """Turn arrays that do not fit each other into an error about the network."""
    try:
        yield
    except SfumatoError:
        raise
    except ValueError as error:
        raise WeightsMismatchError(
            f"The weights of the {name} are not those of its configuration: {error}."
        ) from error
