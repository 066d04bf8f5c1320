"""The networks of a Stable Diffusion model as functions of arrays, compiled by OpenVINO.

They take and give float32 and need no torch. Weights stay where they are: a mapping of arrays or
of `sfumato.checkpoints.arrays.StoredTensor`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sfumato.graph import autoencoder, clip_text, unet
from sfumato.graph.weights import Weights
from sfumato.models.autoencoder_config import AutoencoderKLConfig
from sfumato.models.unet_config import UNet2DConditionConfig
from sfumato.runtime.openvino.compiled import DOWN, UP, Array, Compiled, Settings
from sfumato.runtime.openvino.ops import OpenVinoOps, Value
from sfumato.text.clip_config import CLIPTextConfig


class UNet:
    """`sfumato.graph.unet.unet`, with the arguments of that function."""

    def __init__(
        self, config: UNet2DConditionConfig, arrays: Mapping[str, Any], settings: Settings
    ) -> None:
        unet.supported_stages(config)
        self.config, self._weights = config, Weights(arrays)
        self.compiled = Compiled(self._build, self._weights, settings)

    def __call__(
        self,
        sample: Array,
        timesteps: Array,
        context: Array,
        *,
        class_labels: Array | None = None,
        timestep_cond: Array | None = None,
        added: Mapping[str, Array] | None = None,
        down: Sequence[Array] | None = None,
        mid: Array | None = None,
        blocks: Sequence[Array] = (),
        context_mask: Array | None = None,
        low_rank: Mapping[str, tuple[Array, Array]] | None = None,
    ) -> Array:
        """Predict.

        ``down``, ``mid`` and ``blocks`` are those of `Residuals`. ``low_rank`` has for paths of
        layers the factors ``(rank, in)`` and ``(out, rank)`` of what is added to their weights;
        other factors of the same sizes need no other graph.
        """
        inputs = {"sample": sample, "timesteps": timesteps, "context": context}
        inputs |= {f"added.{name}": array for name, array in (added or {}).items()}
        inputs |= {f"down.{i}": array for i, array in enumerate(down or ())}
        inputs |= {f"blocks.{i}": array for i, array in enumerate(blocks)}
        for path, (first, second) in (low_rank or {}).items():
            inputs |= {DOWN + path: first, UP + path: second}
        others = {
            "class_labels": class_labels,
            "timestep_cond": timestep_cond,
            "mid": mid,
            "context_mask": context_mask,
        }
        inputs |= {name: array for name, array in others.items() if array is not None}
        return self.compiled(inputs)[0]

    def _build(self, ops: OpenVinoOps, inputs: Mapping[str, Any]) -> list[Value]:
        down, blocks, added = (_below(inputs, name) for name in ("down", "blocks", "added"))
        residuals = unet.Residuals(
            list(down.values()) or None, inputs.get("mid"), list(blocks.values())
        )
        names = ("class_labels", "timestep_cond", "context_mask")
        optional = {name: inputs[name] for name in names if name in inputs}
        return [
            unet.unet(
                ops,
                self._weights,
                self.config,
                inputs["sample"],
                inputs["timesteps"],
                inputs["context"],
                added=added,
                residuals=residuals,
                **optional,
            )
        ]


def _below(inputs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The inputs whose names begin with ``name.``, in order."""
    return {k.partition(".")[2]: v for k, v in inputs.items() if k.startswith(f"{name}.")}


class Autoencoder:
    """Both halves of the KL autoencoder; each is compiled when it is first used."""

    def __init__(
        self, config: AutoencoderKLConfig, arrays: Mapping[str, Any], settings: Settings
    ) -> None:
        self.config, self._weights = config, Weights(arrays)
        self._encode = Compiled(self._build_encoder, self._weights, settings)
        self._decode = Compiled(self._build_decoder, self._weights, settings)

    def encode(self, images: Array) -> Array:
        """Moments of images; see `sfumato.graph.autoencoder.encode`."""
        return self._encode({"images": images})[0]

    def decode(self, latents: Array) -> Array:
        """Images of latents; see `sfumato.graph.autoencoder.decode`."""
        return self._decode({"latents": latents})[0]

    def _build_encoder(self, ops: OpenVinoOps, inputs: Mapping[str, Any]) -> list[Value]:
        return [autoencoder.encode(ops, self._weights, self.config, inputs["images"])]

    def _build_decoder(self, ops: OpenVinoOps, inputs: Mapping[str, Any]) -> list[Value]:
        return [autoencoder.decode(ops, self._weights, self.config, inputs["latents"])]


class TextEncoder:
    """The CLIP text encoder."""

    def __init__(
        self, config: CLIPTextConfig, arrays: Mapping[str, Any], settings: Settings
    ) -> None:
        self.config, self._weights, self._settings = config, Weights(arrays), settings
        self._by_skip: dict[int, Compiled] = {}

    def __call__(
        self, ids: Array, attention_mask: Array | None = None, clip_skip: int = 0
    ) -> clip_text.TextStates[Array]:
        """Encode; see `sfumato.graph.clip_text.clip_text`."""
        inputs = {"ids": ids}
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask.astype(np.float32)
        if clip_skip not in self._by_skip:

            def build(ops: OpenVinoOps, given: Mapping[str, Any]) -> list[Value]:
                states = clip_text.clip_text(
                    ops, self._weights, self.config, **given, clip_skip=clip_skip
                )
                made = (states.last_hidden_state, states.pooled, states.text_embeds)
                return [state for state in made if state is not None]

            self._by_skip[clip_skip] = Compiled(build, self._weights, self._settings)
        last, pooled, *embeds = self._by_skip[clip_skip](inputs)
        return clip_text.TextStates(last, pooled, embeds[0] if embeds else None)
