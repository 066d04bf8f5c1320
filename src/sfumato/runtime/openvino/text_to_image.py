"""A model of a folder on OpenVINO, for `sfumato.graph.text_to_image`: no torch, no conversion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from sfumato.graph.folder import ModelFolder, read_model_folder
from sfumato.runtime.openvino.compiled import Array, Settings
from sfumato.runtime.openvino.networks import Autoencoder, TextEncoder, UNet


@dataclass(frozen=True)
class OpenVinoNetworks:
    """`sfumato.graph.networks.Networks` on OpenVINO."""

    model: ModelFolder
    text_encoder: TextEncoder
    unet: UNet
    vae: Autoencoder

    @classmethod
    def load(cls, path: Path, settings: Settings) -> Self:
        """From a folder in diffusers' layout.

        Each network is compiled when it is first used, for the size of the picture.

        Raises:
            InputError: a model of another kind; the message says what torch alone can do.
            CheckpointError: files are missing or damaged.
        """
        model = read_model_folder(path)
        return cls(
            model,
            TextEncoder(model.text_config, model.weights("text_encoder"), settings),
            UNet(model.unet_config, model.weights("unet"), settings),
            Autoencoder(model.vae_config, model.weights("vae"), settings),
        )

    def with_scheduler(self, scheduler: Any) -> Self:
        """See `Networks`."""
        return replace(self, model=replace(self.model, scheduler=scheduler))

    def encode_text(self, ids: Array, mask: Array | None, clip_skip: int) -> Array:
        """See `Networks`."""
        return self.text_encoder(ids, mask, clip_skip).last_hidden_state.copy()

    def predict(self, x: Array, timestep: float, context: Array) -> Array:
        """See `Networks`."""
        times = np.full(len(x), timestep, np.float32)
        return self.unet(x.astype(np.float32), times, context).copy()

    def decode(self, latents: Array) -> Array:
        """See `Networks`."""
        return self.vae.decode(latents.astype(np.float32)).copy()
