"""A model of a folder on JAX, for `sfumato.graph.text_to_image`: the command's way to draw.

The loop is the one that NumPy and OpenVINO share, so a seed draws the picture that it draws with
them; each network is compiled once per size. `sfumato.jax.pipeline` has the loop inside the program
instead, and JAX's own random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from sfumato.graph.folder import ModelFolder, read_model_folder
from sfumato.jax.models import FlaxAutoencoderKL, FlaxCLIPTextModel, FlaxUNet2DConditionModel
from sfumato.jax.params import as_array

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class JaxNetworks:
    """`sfumato.graph.networks.Networks` on JAX's default device."""

    model: ModelFolder
    params: dict[str, dict[str, jax.Array]]
    compiled: dict[str, Any]

    @classmethod
    def load(cls, path: Path, dtype: str) -> Self:
        """From a folder in diffusers' layout.

        Args:
            path: the folder.
            dtype: in which to compute, ``"float32"``, ``"bfloat16"`` or ``"float16"``.

        Raises:
            InputError: a model of another kind; the message says what torch alone can do.
            CheckpointError: files are missing or damaged.
        """
        model = read_model_folder(path)
        params = {
            name: {key: as_array(value, dtype) for key, value in model.weights(name).items()}
            for name in ("text_encoder", "unet", "vae")
        }
        text = FlaxCLIPTextModel(model.text_config, dtype=dtype)
        unet = FlaxUNet2DConditionModel(model.unet_config, dtype=dtype)
        vae = FlaxAutoencoderKL(model.vae_config, dtype=dtype)
        compiled = {
            "text_encoder": jax.jit(text.apply, static_argnames=("clip_skip", "return_dict")),
            "unet": jax.jit(unet.apply, static_argnames="return_dict"),
            "vae": jax.jit(vae.decode, static_argnames="return_dict"),
        }
        return cls(model, params, compiled)

    def with_scheduler(self, scheduler: Any) -> Self:
        """See `Networks`."""
        return replace(self, model=replace(self.model, scheduler=scheduler))

    def encode_text(self, ids: Array, mask: Array | None, clip_skip: int) -> Array:
        """See `Networks`."""
        given = (jnp.asarray(ids, jnp.int32), None if mask is None else jnp.asarray(mask))
        return self._ask("text_encoder", *given, clip_skip=clip_skip)

    def predict(self, x: Array, timestep: float, context: Array) -> Array:
        """See `Networks`."""
        return self._ask("unet", jnp.asarray(x), jnp.float32(timestep), jnp.asarray(context))

    def decode(self, latents: Array) -> Array:
        """See `Networks`."""
        return self._ask("vae", jnp.asarray(latents))

    def _ask(self, name: str, *given: Any, **options: Any) -> Array:
        out = self.compiled[name](self.params[name], *given, return_dict=False, **options)[0]
        return np.array(out, np.float32)
