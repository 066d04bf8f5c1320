"""What every network shares: its configuration, its size and place, loading and saving.

A network is an ordinary `torch.nn.Module` built from a frozen `Config`. Nothing here opens a
file: `from_pretrained` and `save_pretrained` hand over to `sfumato.checkpoints.folders`.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import nn

from sfumato.config import Config
from sfumato.errors import ConfigError, did_you_mean
from sfumato.models.layers import Recomputable
from sfumato.outputs import register_pytrees
from sfumato.quantization.tensor import stored
from sfumato.runtime import kernels
from sfumato.runtime.engines import Engine

register_pytrees()

ConfigT = TypeVar("ConfigT", bound=Config)


class ModelMixin(nn.Module, Generic[ConfigT]):
    """Base of all networks.

    A subclass names its configuration class and builds its layers in ``__init__`` after calling
    this one. The constructor takes the configuration's fields as keywords, as in diffusers, or a
    whole configuration (which the keywords then override).

    Raises:
        ConfigError: an unknown keyword, or a value out of range. Nothing was allocated then.
    """

    config_class: ClassVar[type[Config]]
    #: What computes in torch's place where it can; see `sfumato.runtime.engines`.
    engine: Engine | None = None

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__()
        self.config: ConfigT = self._make_config(config, fields)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute, by the engine or with the processor's own kernels where there are any."""
        if torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)
        if self.engine is not None:
            answer = self.engine.call("forward", args, kwargs)
            if answer is not None:
                return answer
        with kernels.active():
            return super().__call__(*args, **kwargs)

    @classmethod
    def _make_config(cls, config: Mapping[str, Any] | None, fields: Mapping[str, Any]) -> Any:
        known = [name for name in cls.config_class.__dataclass_fields__ if name != "explicit"]
        for name in fields:
            if name not in known:
                raise ConfigError(
                    f"{cls.__name__} has no option `{name}`.{did_you_mean(name, known)}"
                )
        if isinstance(config, cls.config_class):
            return config.replace(**fields) if fields else config
        return cls.config_class.from_dict({**(config or {}), **fields})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], /, **overrides: Any) -> Self:
        """Build with random weights from a configuration or a parsed ``config.json``.

        Keys that the network does not know are ignored with a logged warning.
        """
        return cls(config, **overrides)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load from a folder with ``config.json`` and weights, or from the hub by ``owner/name``.

        See `sfumato.checkpoints.folders.load_model`.
        """
        from sfumato.checkpoints import folders

        return folders.load_model(
            cls,
            pretrained_model_name_or_path,
            subfolder=subfolder,
            torch_dtype=torch_dtype,
            dtype=dtype,
            variant=variant,
            use_safetensors=use_safetensors,
            **kwargs,
        )

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path_or_dict: str | PathLike[str] | Mapping[str, torch.Tensor],
        **kwargs: Any,
    ) -> Self:
        """Load from a file in the original latent-diffusion layout, ``.safetensors`` or ``.ckpt``.

        The file may hold a whole checkpoint, or this network alone under original or today's
        names. The configuration is found out from the file.

        Args:
            pretrained_model_link_or_path_or_dict: the file, its address on the Hugging Face Hub, or
                its tensors by name.
            kwargs: ``torch_dtype`` or ``dtype`` (``"auto"`` keeps the file's), ``device``,
                ``config`` (a folder in diffusers' layout) with ``subfolder``, ``original_config``
                (YAML, JSON or a dictionary), ``extract_ema``, ``disable_mmap``,
                ``offload_state_dict``, ``check_finite``, and fields of the configuration to
                override.

        Raises:
            CheckpointError: (an ``OSError``) the file is damaged, unsafe, or of another kind.
            ConfigError: (a ``ValueError``) a configuration is wrong.
            InputError: (a ``ValueError``) the class has no original layout.
        """
        from sfumato.checkpoints.original import loading

        return loading.load_single_network(cls, pretrained_model_link_or_path_or_dict, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        *,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        **kwargs: Any,
    ) -> None:
        """Write ``config.json`` and the weights into a folder that diffusers reads too."""
        from sfumato.checkpoints import folders

        folders.save_model(
            self,
            save_directory,
            safe_serialization=safe_serialization,
            variant=variant,
            max_shard_size=max_shard_size,
            **kwargs,
        )

    # What a folder or file gets, where something was loaded on top of the network.

    @property
    def own_config(self) -> ConfigT:
        """The configuration, as it is without anything loaded on top."""
        return self.config

    def own_state(self) -> dict[str, torch.Tensor]:
        """The ``state_dict``, without anything loaded on top."""
        return self.state_dict()

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the first floating-point parameter."""
        floating = (p.dtype for p in self.parameters() if p.is_floating_point())
        return next(floating, torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """The device of the first parameter."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def num_parameters(self, only_trainable: bool = False) -> int:
        """The number of scalars in all parameters, or in those that require gradients."""
        parameters = (p for p in self.parameters() if p.requires_grad or not only_trainable)
        return sum(p.numel() for p in parameters)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes taken by the parameters (and buffers)."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(t.numel() * t.element_size() for t in stored(tensors))

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time."""
        self._set_gradient_checkpointing(True)

    def disable_gradient_checkpointing(self) -> None:
        """Keep activations for the backward pass (the default)."""
        self._set_gradient_checkpointing(False)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any part recomputes its activations in the backward pass."""
        parts = (m for m in self.modules() if isinstance(m, Recomputable))
        return any(part.gradient_checkpointing for part in parts)

    def _set_gradient_checkpointing(self, value: bool) -> None:
        for module in self.modules():
            if isinstance(module, Recomputable):
                module.gradient_checkpointing = value
