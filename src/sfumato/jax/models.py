"""The networks under the names of diffusers' Flax classes: a configuration, and pure functions.

A model holds no weights. `from_pretrained` returns the model and its parameters, a flat dictionary
under the names of the safetensors files (see `sfumato.jax.params`), and ``apply`` computes:

    unet, params = FlaxUNet2DConditionModel.from_pretrained("folder", subfolder="unet")
    noise = unet.apply({"params": params}, latents, timestep, text).sample
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, Generic, Self, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from sfumato.checkpoints.atomic import atomic_directory
from sfumato.checkpoints.files import checked_path
from sfumato.checkpoints.hub import HubModel, local_copy
from sfumato.checkpoints.hub_files import network_files
from sfumato.checkpoints.hub_names import take_hub_options
from sfumato.checkpoints.jsonfile import write_json
from sfumato.checkpoints.places import model_root, read_config, subfolder_of
from sfumato.checkpoints.weight_files import base_names, obsolete_weights
from sfumato.config import Config
from sfumato.errors import ConfigError, InputError, did_you_mean
from sfumato.graph import autoencoder, clip_text, unet
from sfumato.graph.unet import Residuals
from sfumato.graph.weights import Weights
from sfumato.jax.ops import JaxOps
from sfumato.jax.params import (
    Params,
    cast_floating,
    random_params,
    read_params,
    write_params,
)
from sfumato.models.autoencoder_config import AutoencoderKLConfig
from sfumato.models.unet_config import UNet2DConditionConfig
from sfumato.outputs import BaseOutput
from sfumato.text.clip_config import CLIPTextConfig

C = TypeVar("C", bound=Config)

#: Keywords of upstream's loaders that mean nothing here: weights need no conversion, attention is
#: always blocked, and heads are always apart.
_WITHOUT_EFFECT = ("from_pt", "from_flax", "use_memory_efficient_attention", "split_head_dim")


class FlaxModelMixin(Generic[C]):
    """Base of the models.

    Args:
        config: the configuration, or a mapping of it.
        dtype: in which ``apply`` computes; parameters of other types are converted on the way.
        fields: fields of the configuration.
    """

    config_class: ClassVar[type[Config]]
    weights_name: ClassVar[str] = "diffusion_pytorch_model.safetensors"
    #: What the files' configuration calls the class.
    class_name: ClassVar[str]

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        /,
        dtype: Any = jnp.float32,
        **fields: Any,
    ) -> None:
        known = [name for name in self.config_class.__dataclass_fields__ if name != "explicit"]
        for name in fields:
            if name not in known:
                raise ConfigError(
                    f"{type(self).__name__} has no option `{name}`.{did_you_mean(name, known)}"
                )
        if isinstance(config, self.config_class):
            made = config.replace(**fields) if fields else config
        else:
            made = self.config_class.from_dict({**(config or {}), **fields})
        self.config: C = made  # pyright: ignore[reportAttributeAccessIssue]
        self.dtype = jnp.dtype(dtype)
        self.ops: Any = JaxOps(dtype)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        dtype: Any = jnp.float32,
        *,
        subfolder: str | None = None,
        variant: str | None = None,
        **kwargs: Any,
    ) -> tuple[Self, Params]:
        """A model and its parameters from a folder in diffusers' layout, or from the hub.

        Args:
            pretrained_model_name_or_path: the folder or the hub's name.
            dtype: in which to compute; the parameters keep the type that they have in the file.
            subfolder: a folder in it, such as ``unet``.
            variant: such as ``"fp16"``.
            kwargs: fields of the configuration to override; how to ask the hub; ``from_pt``,
                ``use_memory_efficient_attention`` and ``split_head_dim`` are accepted and needed
                no longer.

        Raises:
            ModelNotFoundError: no such folder, or no safetensors in it.
            CheckpointError: a file is damaged.
            ConfigError: the configuration is wrong.
        """
        hub = take_hub_options(kwargs)
        overrides = {name: value for name, value in kwargs.items() if name not in _WITHOUT_EFFECT}

        def needed(model: HubModel) -> list[str]:
            return network_files(
                model, folder=subfolder, bases=base_names(cls), variant=variant,
                use_safetensors=True, fall_back=True,
            )  # fmt: skip

        path = local_copy(pretrained_model_name_or_path, hub, needed)
        root = model_root(path)
        folder = subfolder_of(root, path, subfolder)
        config = read_config(folder, "config.json", root)
        model = cls({**config, **overrides}, dtype=dtype)
        params = read_params(folder, cls, root=root, variant=variant)
        return model, params

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        params: Mapping[str, Any],
        is_main_process: bool = True,
    ) -> None:
        """Write the folder that `from_pretrained` reads, and so do the torch classes.

        Args:
            save_directory: the folder; made when missing.
            params: the parameters, not replicated.
            is_main_process: False writes nothing, for all but one of several processes.
        """
        if not is_main_process:
            return
        with atomic_directory(checked_path(save_directory), obsolete=obsolete_weights) as folder:
            write_params(folder / self.weights_name, params)
            write_json(folder / "config.json", self._config_to_write())

    def init_weights(self, rng: Array) -> Params:
        """Random parameters: normal, with one over the inputs as variance; norms change nothing.

        Names and shapes are those of the torch class, so this imports torch.

        Args:
            rng: a key of `jax.random`.
        """
        return random_params(self.class_name, self.config, rng)

    def _config_to_write(self) -> dict[str, Any]:
        return {"_class_name": self.class_name, **self.config.to_dict()}

    def to_bf16(self, params: Mapping[str, Any], mask: Any = None) -> Params:
        """The parameters in bfloat16; ``mask`` is a pytree of bools, False leaves a leaf as is."""
        return cast_floating(params, jnp.bfloat16, mask)

    def to_fp16(self, params: Mapping[str, Any], mask: Any = None) -> Params:
        """The parameters in float16; see `to_bf16`."""
        return cast_floating(params, jnp.float16, mask)

    def to_fp32(self, params: Mapping[str, Any], mask: Any = None) -> Params:
        """The parameters in float32; see `to_bf16`."""
        return cast_floating(params, jnp.float32, mask)


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


def scope(variables: Mapping[str, Any]) -> Weights:
    """The weights in what ``apply`` is given: ``{"params": params}``, or the parameters alone."""
    params = variables.get("params", variables)
    return Weights(params)


def refuse_training(train: bool) -> None:
    """Raise `InputError` unless ``train``, an argument of upstream's networks, is False."""
    if train:
        raise InputError(
            "`train` has to be False: the JAX networks are for drawing.",
            hint="Train with `sfumato train`.",
        )


class FlaxUNet2DConditionModel(FlaxModelMixin[UNet2DConditionConfig]):
    """The UNet; its configuration is that of `UNet2DConditionModel`."""

    config_class = UNet2DConditionConfig
    class_name = "UNet2DConditionModel"

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

    def encode(
        self, variables: Mapping[str, Any], sample: Array, return_dict: bool = True
    ) -> FlaxAutoencoderKLOutput | tuple[FlaxDiagonalGaussianDistribution]:
        """Pictures ``(N, 3, H, W)`` in -1..1 to a distribution of latents, not scaled yet."""
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

    __call__ = apply

    def _config_to_write(self) -> dict[str, Any]:
        config = super()._config_to_write()
        return {"architectures": [config.pop("_class_name")], **config}
