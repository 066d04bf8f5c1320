"""The networks under the names of diffusers' Flax classes: a configuration, and pure functions.

A model holds no weights. `from_pretrained` returns the model and its parameters, a flat dictionary
under the names of the safetensors files (see `sfumato.jax.params`), and ``apply`` computes:

    unet, params = FlaxUNet2DConditionModel.from_pretrained("folder", subfolder="unet")
    noise = unet.apply({"params": params}, latents, timestep, text).sample
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from sfumato.errors import InputError
from sfumato.graph import autoencoder, clip_text, clip_vision, unet
from sfumato.graph.shapes import autoencoder_shapes, clip_text_shapes, clip_vision_shapes
from sfumato.graph.unet import Residuals
from sfumato.graph.unet_shapes import unet_shapes
from sfumato.jax.mixin import FlaxModelMixin, refuse_training, scope
from sfumato.models.autoencoder_config import AutoencoderKLConfig
from sfumato.models.unet_config import UNet2DConditionConfig
from sfumato.outputs import BaseOutput
from sfumato.text.clip_config import CLIPTextConfig, CLIPVisionConfig


@dataclass
class FlaxUNet2DConditionOutput(BaseOutput):
    """What the UNet returns: its prediction ``(N, out_channels, H, W)``."""

    sample: Array


@dataclass
class FlaxDecoderOutput(BaseOutput):
    """What the decoder returns: pictures ``(N, 3, H, W)`` around -1..1."""

    sample: Array


@dataclass
class FlaxAutoencoderKLOutput(BaseOutput):
    """What the encoder returns: a distribution of latents."""

    latent_dist: FlaxDiagonalGaussianDistribution


@dataclass
class FlaxCLIPTextOutput(BaseOutput):
    """What the text encoder returns; see `sfumato.graph.clip_text.TextStates`."""

    last_hidden_state: Array
    pooler_output: Array
    text_embeds: Array | None = None


@dataclass
class FlaxCLIPVisionOutput(BaseOutput):
    """What the vision encoder returns; see `sfumato.graph.clip_vision.VisionStates`."""

    last_hidden_state: Array
    pooler_output: Array
    image_embeds: Array | None = None


class FlaxDiagonalGaussianDistribution:
    """Independent normal distributions; the axis of the channels is the second.

    Args:
        parameters: means and logarithms of variances, ``(N, 2C, H, W)``.
        deterministic: no spread.
    """

    def __init__(self, parameters: Array, deterministic: bool = False) -> None:
        self.mean, logvar = jnp.split(parameters, 2, axis=1)
        self.logvar = logvar.clip(-30.0, 20.0)
        self.std = jnp.zeros_like(self.mean) if deterministic else jnp.exp(0.5 * self.logvar)

    def sample(self, key: Array) -> Array:
        """A draw ``(N, C, H, W)``."""
        return self.mean + self.std * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def mode(self) -> Array:
        """The likeliest latents."""
        return self.mean


class FlaxUNet2DConditionModel(FlaxModelMixin[UNet2DConditionConfig]):
    """The UNet; its configuration is that of `UNet2DConditionModel`."""

    config_class = UNet2DConditionConfig
    class_name = "UNet2DConditionModel"

    def shapes(self, found: Container[str] = ()) -> dict[str, tuple[int, ...]]:
        return unet_shapes(self.config)

    def apply(
        self,
        variables: Mapping[str, Any],
        sample: Array,
        timesteps: Array | float,
        encoder_hidden_states: Array,
        added_cond_kwargs: Mapping[str, Array] | None = None,
        down_block_additional_residuals: Sequence[Array] | None = None,
        mid_block_additional_residual: Array | None = None,
        return_dict: bool = True,
        train: bool = False,
        *,
        class_labels: Array | None = None,
        timestep_cond: Array | None = None,
    ) -> FlaxUNet2DConditionOutput | tuple[Array]:
        """Predict.

        Args:
            variables: ``{"params": params}`` or the parameters.
            sample: noisy latents ``(N, C, H, W)``.
            timesteps: one number, or one per sample.
            encoder_hidden_states: text ``(N, S, cross_attention_dim)``.
            added_cond_kwargs: ``image_embeds``, or ``text_embeds`` and ``time_ids``, as the
                configuration wants them.
            down_block_additional_residuals, mid_block_additional_residual: from a ControlNet.
            return_dict: return an output object rather than a tuple.
            train: has to be False: nothing here has dropout.
            class_labels, timestep_cond: as `UNet2DConditionModel.forward` has them.
        """
        refuse_training(train)
        times = jnp.broadcast_to(jnp.asarray(timesteps, jnp.float32).reshape(-1), sample.shape[:1])
        residuals = None
        if down_block_additional_residuals is not None:
            residuals = Residuals(
                tuple(down_block_additional_residuals), mid_block_additional_residual
            )
        out = unet.unet(
            self.ops,
            scope(variables),
            self.config,
            sample,
            times,
            encoder_hidden_states,
            class_labels=class_labels,
            timestep_cond=timestep_cond,
            added=added_cond_kwargs,
            residuals=residuals,
        )
        return FlaxUNet2DConditionOutput(out) if return_dict else (out,)


class FlaxAutoencoderKL(FlaxModelMixin[AutoencoderKLConfig]):
    """The autoencoder; its configuration is that of `AutoencoderKL`."""

    config_class = AutoencoderKLConfig
    class_name = "AutoencoderKL"

    def shapes(self, found: Container[str] = ()) -> dict[str, tuple[int, ...]]:
        return autoencoder_shapes(self.config)

    def encode(
        self,
        variables: Mapping[str, Any],
        sample: Array,
        deterministic: bool = True,
        return_dict: bool = True,
    ) -> FlaxAutoencoderKLOutput | tuple[FlaxDiagonalGaussianDistribution]:
        """Pictures ``(N, 3, H, W)`` in -1..1 to a distribution of latents, not scaled yet.

        The channels of the latents are their second axis, as everywhere; diffusers' class had them
        last here. ``deterministic`` is about dropout, and has to be True.
        """
        refuse_training(not deterministic, "deterministic", True)
        moments = autoencoder.encode(self.ops, scope(variables), self.config, sample)
        posterior = FlaxDiagonalGaussianDistribution(moments.astype(jnp.float32))
        return FlaxAutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def decode(
        self, variables: Mapping[str, Any], latents: Array, return_dict: bool = True
    ) -> FlaxDecoderOutput | tuple[Array]:
        """Latents ``(N, C, H, W)``, no longer scaled, to pictures ``(N, 3, H, W)``."""
        images = autoencoder.decode(self.ops, scope(variables), self.config, latents)
        return FlaxDecoderOutput(images) if return_dict else (images,)

    def apply(
        self,
        variables: Mapping[str, Any],
        *args: Any,
        method: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Call ``method`` (`encode` or `decode`) with the parameters, as Flax modules do."""
        chosen = getattr(method, "__name__", method)
        if chosen not in ("encode", "decode"):
            raise InputError(
                f"`method` has to be `vae.encode` or `vae.decode` but is {str(method)[:80]}."
            )
        return getattr(self, chosen)(variables, *args, **kwargs)


class FlaxCLIPTextModel(FlaxModelMixin[CLIPTextConfig]):
    """CLIP's text encoder; its configuration is that of `CLIPTextModel`."""

    config_class = CLIPTextConfig
    weights_name = "model.safetensors"
    class_name = "CLIPTextModel"

    def shapes(self, found: Container[str] = ()) -> dict[str, tuple[int, ...]]:
        projection = "text_projection.weight"
        width = (self.config.projection_dim, self.config.hidden_size)
        return clip_text_shapes(self.config) | ({projection: width} if projection in found else {})

    def apply(
        self,
        variables: Mapping[str, Any],
        input_ids: Array,
        attention_mask: Array | None = None,
        *,
        clip_skip: int = 0,
        return_dict: bool = True,
    ) -> FlaxCLIPTextOutput | tuple[Array, Array]:
        """Encode ids ``(N, L)``; a mask counts only where the configuration says so.

        Args:
            variables: ``{"params": params}`` or the parameters.
            input_ids: from the tokenizer.
            attention_mask: ``(N, L)``, 1 for tokens and 0 for padding.
            clip_skip: how many of the last layers to leave out.
            return_dict: return an output object rather than a tuple.
        """
        mask = None
        if attention_mask is not None and self.config.use_attention_mask:
            mask = jnp.asarray(attention_mask, jnp.float32)
        ids = jnp.asarray(input_ids, jnp.int32)
        states = clip_text.clip_text(
            self.ops, scope(variables), self.config, ids, attention_mask=mask, clip_skip=clip_skip
        )
        out = states.last_hidden_state, states.pooled
        return FlaxCLIPTextOutput(*out, states.text_embeds) if return_dict else out

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        position_ids: None = None,
        params: Mapping[str, Any] | None = None,
        dropout_rng: None = None,
        train: bool = False,
        *,
        return_dict: bool = True,
    ) -> FlaxCLIPTextOutput | tuple[Array, Array]:
        """`apply`, as transformers' class is called: ``text_encoder(ids, params=params)[0]``.

        Args:
            input_ids, attention_mask, return_dict: see `apply`.
            position_ids, dropout_rng: have to be None.
            params: the parameters; a model has none of its own.
            train: has to be False.
        """
        refuse_training(train)
        if params is None or position_ids is not None or dropout_rng is not None:
            raise InputError(
                "The text encoder takes `params`, and neither `position_ids` nor `dropout_rng`.",
                hint='text_encoder(ids, params=params["text_encoder"])',
            )
        return self.apply(params, input_ids, attention_mask, return_dict=return_dict)

    def _config_to_write(self) -> dict[str, Any]:
        config = super()._config_to_write()
        return {"architectures": [config.pop("_class_name")], **config}


class FlaxCLIPVisionModel(FlaxModelMixin[CLIPVisionConfig]):
    """CLIP's vision encoder; its configuration is that of `CLIPVisionModel`."""

    config_class = CLIPVisionConfig
    weights_name = "model.safetensors"
    class_name = "CLIPVisionModel"

    def shapes(self, found: Container[str] = ()) -> dict[str, tuple[int, ...]]:
        projection = "visual_projection.weight"
        width = (self.config.projection_dim, self.config.hidden_size)
        own = clip_vision_shapes(self.config)
        return own | ({projection: width} if projection in found else {})

    def apply(
        self, variables: Mapping[str, Any], pixel_values: Array, return_dict: bool = True
    ) -> FlaxCLIPVisionOutput | tuple[Array, Array]:
        """Encode pictures ``(N, 3, H, W)`` as `CLIPImageProcessor` makes them.

        Args:
            variables: ``{"params": params}`` or the parameters; with ``visual_projection`` among
                them there are ``image_embeds`` too.
            pixel_values: the pictures.
            return_dict: return an output object rather than a tuple.

        Raises:
            InputError: pictures of another size.
        """
        states = clip_vision.clip_vision(self.ops, scope(variables), self.config, pixel_values)
        out = states.last_hidden_state, states.pooled
        return FlaxCLIPVisionOutput(*out, states.image_embeds) if return_dict else out

    def _config_to_write(self) -> dict[str, Any]:
        config = super()._config_to_write()
        return {"architectures": [config.pop("_class_name")], **config}
