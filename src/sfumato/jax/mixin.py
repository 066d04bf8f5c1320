"""What all networks in JAX are: a configuration, files, no weights. See `sfumato.jax.models`."""

from __future__ import annotations

from collections.abc import Container, Mapping
from os import PathLike
from typing import Any, ClassVar, Generic, Self, TypeVar

import jax.numpy as jnp
from jax import Array

from sfumato.checkpoints.atomic import atomic_directory
from sfumato.checkpoints.files import checked_path, shown
from sfumato.checkpoints.hub import HubModel, local_copy
from sfumato.checkpoints.hub_files import network_files
from sfumato.checkpoints.hub_names import take_hub_options
from sfumato.checkpoints.jsonfile import write_json
from sfumato.checkpoints.keywords import reject_unknown, without_hub_keywords
from sfumato.checkpoints.places import check_class, model_root, read_config, subfolder_of
from sfumato.checkpoints.weight_files import base_names, obsolete_weights
from sfumato.config import Config
from sfumato.errors import ConfigError, InputError, did_you_mean
from sfumato.graph.weights import Weights
from sfumato.jax.ops import JaxOps
from sfumato.jax.params import (
    Params,
    cast_floating,
    random_params,
    read_params,
    write_params,
)

C = TypeVar("C", bound=Config)

#: Keywords of upstream's loaders that mean nothing here: weights need no conversion, attention is
#: always blocked, and heads are always apart.
WITHOUT_EFFECT = ("from_pt", "from_flax", "use_memory_efficient_attention", "split_head_dim")
#: Arguments of `FlaxModelMixin.from_pretrained`, for suggestions.
_ARGUMENTS = {"dtype", "subfolder", "variant", *WITHOUT_EFFECT}


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

    def shapes(self, found: Container[str] = ()) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters.

        Args:
            found: names in a file, where some are optional.
        """
        raise NotImplementedError

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
        self.ops: Any = JaxOps(dtype)
        self.dtype = self.ops.dtype

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
            ConfigError: the configuration is wrong, or that of another class.
            UnknownKeywordError: a keyword that neither loading nor the network has.
        """
        hub = take_hub_options(kwargs)
        overrides = {
            name: value
            for name, value in without_hub_keywords(kwargs).items()
            if name not in WITHOUT_EFFECT
        }
        fields = set(cls.config_class.__dataclass_fields__) - {"explicit"}
        reject_unknown(f"{cls.__name__}.from_pretrained()", overrides, fields | _ARGUMENTS)

        def needed(model: HubModel) -> list[str]:
            return network_files(
                model, folder=subfolder, bases=base_names(cls), variant=variant,
                use_safetensors=True, fall_back=True,
            )  # fmt: skip

        path = local_copy(pretrained_model_name_or_path, hub, needed)
        root = model_root(path)
        folder = subfolder_of(root, path, subfolder)
        config = read_config(folder, "config.json", root)
        where = folder / "config.json"
        check_class(config, (cls.class_name,), cls.__name__, where)
        if "quantization_config" in config:
            raise ConfigError(
                f"{shown(where)}: the weights are quantised, which torch alone computes with.",
                hint="Get the model in 16-bit or 32-bit.",
            )
        model = cls({**config, **overrides}, dtype=dtype)
        params = read_params(folder, model, root=root, variant=variant)
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

    def register_to_config(self, **changes: Any) -> None:
        """Change fields of the configuration."""
        self.config = self.config.replace(**changes)

    def init_weights(self, rng: Array) -> Params:
        """Random parameters: normal, with one over the inputs as variance; norms change nothing.

        Args:
            rng: a key of `jax.random`.
        """
        return random_params(self.shapes(), rng)

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


def scope(variables: Mapping[str, Any]) -> Weights:
    """The weights in what ``apply`` is given: ``{"params": params}``, or the parameters alone."""
    params = variables.get("params", variables)
    return Weights(params)


def refuse_training(train: bool, name: str = "train", wanted: bool = False) -> None:
    """Raise `InputError` if the argument ``name`` of upstream's networks asks to ``train``."""
    if train:
        raise InputError(
            f"`{name}` has to be {wanted}: the JAX networks are for drawing.",
            hint="Train with `sfumato train`.",
        )
