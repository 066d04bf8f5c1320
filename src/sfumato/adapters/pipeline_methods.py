"""diffusers' names for the adapters of a pipeline: thin methods over its UNet and text encoder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sfumato.adapters import network as functions
from sfumato.adapters.network_methods import weights_of
from sfumato.adapters.state import adapters_of, state_of
from sfumato.adapters.strengths import Strength
from sfumato.checkpoints.keywords import reject_unknown
from sfumato.errors import InputError

logger = logging.getLogger(__name__)

Layers = Mapping[str, Tensor] | nn.Module

#: Networks of other pipelines, whose tensors a loader for one network passes over.
_OTHERS = frozenset({"unet", "text_encoder", "text_encoder_2", "text_encoder_3"})


class StableDiffusionLoraLoaderMixin:
    """Methods of a pipeline whose networks take adapters; see `sfumato.adapters.network`."""

    _lora_loadable_modules: ClassVar[list[str]] = ["unet", "text_encoder"]
    unet_name = "unet"
    text_encoder_name = "text_encoder"

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | PathLike[str] | Mapping[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load a LoRA or one of its kin, of any trainer, into the UNet and the text encoder.

        It acts at once, and what was loaded before no longer does; see `set_adapters`. Keys of
        the file that cannot be used are logged one by one.

        Args:
            pretrained_model_name_or_path_or_dict: a file, a folder with one, a name on the hub
                (``owner/name``), or the tensors.
            adapter_name: default ``default_0``, ``default_1``, ...
            hotswap: take the place of the adapter of that name, and act as it did.
            kwargs: ``weight_name``, ``subfolder``, ``use_safetensors``, and how to ask the hub; see
                `sfumato.adapters.files.read_adapter_file`.

        Raises:
            AdapterError: nothing in the file fits, or something fits half; nothing has changed.
            CheckpointError: (an ``OSError``) the file is missing, damaged or unsafe.
            InputError: (a ``ValueError``) the name is taken.
        """
        from sfumato.adapters.files import read_adapter_file
        from sfumato.adapters.loading import load

        kwargs.pop("unet_config", None)  # the UNet itself says what its layers are
        file = read_adapter_file(pretrained_model_name_or_path_or_dict, **kwargs)
        load(self._adapted_networks(), file, adapter_name, replace=hotswap)

    @classmethod
    def lora_state_dict(
        cls,
        pretrained_model_name_or_path_or_dict: str | PathLike[str] | Mapping[str, Tensor],
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """A file's tensors and, where it has them, its alphas.

        The names of kohya's scripts become PEFT's (``unet.<layer>.lora_A.weight``); others stay.

        Args:
            pretrained_model_name_or_path_or_dict: see `load_lora_weights`.
            kwargs: as there; ``unet_config``, whose layers to look for instead of Stable
                Diffusion's; and ``return_lora_metadata``, to get PEFT's configuration as a third.

        Returns:
            ``(tensors, alphas or None)``.
        """
        from sfumato.adapters.files import read_adapter_file
        from sfumato.adapters.loading import canonical_state_dict
        from sfumato.adapters.standard import is_kohya, standard_tables

        config = kwargs.pop("unet_config", None)
        with_metadata = kwargs.pop("return_lora_metadata", False)
        file = read_adapter_file(pretrained_model_name_or_path_or_dict, **kwargs)
        tensors, alphas = dict(file.tensors), None
        if is_kohya(tensors):
            tensors, alphas = canonical_state_dict(file, standard_tables(config))
        if with_metadata:
            return tensors, alphas, dict(file.metadata) or None
        return tensors, alphas

    @classmethod
    def load_lora_into_unet(
        cls,
        state_dict: Mapping[str, Tensor],
        network_alphas: Mapping[str, float] | None,
        unet: nn.Module,
        adapter_name: str | None = None,
        _pipeline: Any = None,
        low_cpu_mem_usage: bool = False,
        hotswap: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Load what `lora_state_dict` gave into a UNet; what is of other networks is left out."""
        _load_into(cls.unet_name, unet, state_dict, network_alphas, adapter_name, hotswap, metadata)

    @classmethod
    def load_lora_into_text_encoder(
        cls,
        state_dict: Mapping[str, Tensor],
        network_alphas: Mapping[str, float] | None,
        text_encoder: nn.Module,
        prefix: str | None = None,
        lora_scale: float = 1.0,
        adapter_name: str | None = None,
        _pipeline: Any = None,
        low_cpu_mem_usage: bool = False,
        hotswap: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Load what `lora_state_dict` gave into a text encoder, to act at ``lora_scale``.

        ``prefix`` is what the keys begin with, if it is not ``text_encoder``.
        """
        name = cls.text_encoder_name
        if prefix is not None and prefix != name:
            state_dict = _renamed(state_dict, prefix, name)
            network_alphas = _renamed(network_alphas or {}, prefix, name)
            metadata = _renamed(metadata or {}, prefix, name)
        loaded = _load_into(
            name, text_encoder, state_dict, network_alphas, adapter_name, hotswap, metadata
        )
        if loaded is not None and lora_scale != 1.0:
            functions.activate(text_encoder, [loaded], [lora_scale])

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | PathLike[str],
        unet_lora_layers: Layers | None = None,
        text_encoder_lora_layers: Layers | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[[dict[str, Tensor], str], Any] | None = None,
        safe_serialization: bool = True,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
        format: str = "diffusers",
    ) -> None:
        """Write a file of adapters; see `sfumato.adapters.saving.save`.

        Args:
            save_directory: a folder, made when missing.
            unet_lora_layers, text_encoder_lora_layers: tensors under PEFT's or diffusers' names,
                such as the networks' ``lora_state_dict(name)`` gives.
            is_main_process: False writes nothing.
            weight_name: default ``pytorch_lora_weights.safetensors``.
            save_function: writes the file instead: ``(tensors, path)``.
            safe_serialization: safetensors rather than a pickle.
            unet_lora_adapter_metadata, text_encoder_lora_adapter_metadata: PEFT's configuration.
            format: ``"diffusers"``, or ``"kohya"`` for A1111, ComfyUI and others.
        """
        from sfumato.adapters.saving import save

        if is_main_process:
            save(
                save_directory,
                {
                    cls.unet_name: unet_lora_layers,
                    cls.text_encoder_name: text_encoder_lora_layers,
                },
                metadata={
                    cls.unet_name: unet_lora_adapter_metadata,
                    cls.text_encoder_name: text_encoder_lora_adapter_metadata,
                },
                weight_name=weight_name,
                save_function=save_function,
                safe_serialization=safe_serialization,
                format=format,
            )

    def unload_lora_weights(self) -> None:
        """Forget all adapters. What is fused stays in the weights, until `unfuse_lora`."""
        for network in self._adapted_networks().values():
            functions.remove(network)

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: Strength | Sequence[Strength | None] | None = None,
    ) -> None:
        """Let these adapters act, and no others; takes no time to speak of.

        Args:
            adapter_names: one or several.
            adapter_weights: one for all, or one each: a number, or a dictionary by component, as
                ``{"text_encoder": 0.5, "unet": {"down": 0.9, "up": {"block_1": [0.4, 0.8, 1]}}}``.

        Raises:
            InputError: there is no such adapter, or a weight is wrong; nothing has changed.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = weights_of(names, adapter_weights)
        networks = self._adapted_networks()
        self._require_adapters(names)
        for name, weight in zip(names, weights, strict=True):
            self._warn_of_components(name, weight)
        with functions.all_or_nothing(networks.values()):
            for component, network in networks.items():
                own = [w.get(component) if isinstance(w, Mapping) else w for w in weights]
                functions.activate(network, names, own)

    def _require_adapters(self, names: Collection[str]) -> None:
        networks = self._adapted_networks().values()
        there = {name for network in networks for name in adapters_of(network)}
        if missing := sorted(set(names) - there):
            raise InputError(
                f"Adapter name(s) {missing} not in the list of present adapters: {sorted(there)}."
            )

    def _warn_of_components(self, name: str, weight: Any) -> None:
        for component in weight if isinstance(weight, Mapping) else ():
            network = self._adapted_networks().get(component)
            if network is None:
                logger.warning(
                    "The weights of '%s' for '%s' are ignored: the components with adapters are "
                    "%s.",
                    name,
                    component,
                    ", ".join(self._lora_loadable_modules),
                )
            elif name not in adapters_of(network):
                logger.warning(
                    "The weight of '%s' for '%s' is ignored: it has nothing for that component.",
                    name,
                    component,
                )

    def disable_lora(self) -> None:
        """Switch all adapters off, fused ones included."""
        for network in self._adapted_networks().values():
            functions.set_enabled(network, False)

    def enable_lora(self) -> None:
        """Undo `disable_lora`."""
        for network in self._adapted_networks().values():
            functions.set_enabled(network, True)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Take adapters off, out of fused weights too."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        for network in self._adapted_networks().values():
            functions.remove(network, names)

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that act (or would, were they not switched off)."""
        states = [state_of(network) for network in self._adapted_networks().values()]
        return list(dict.fromkeys(n for state in states if state for n in state.active))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of all adapters, by component."""
        names = {key: list(adapters_of(net)) for key, net in self._adapted_networks().items()}
        return {component: found for component, found in names.items() if found}

    def fuse_lora(
        self,
        components: Sequence[str] = ("unet", "text_encoder"),
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Make adapters part of the weights, so that they cost no time; `unfuse_lora` undoes it.

        Args:
            components: whose adapters.
            lora_scale: multiplies their strengths.
            safe_fusing: weights are always checked for NaN, so this changes nothing.
            adapter_names: which; default those that act.

        Raises:
            AdapterError: a fused weight would have NaN or infinity; nothing has changed.
            InputError: there is no such component or adapter.
        """
        _check_old_keywords("fuse_lora", kwargs, ("fuse_unet", "fuse_text_encoder"))
        networks = self._chosen_networks(components)
        self._require_adapters(adapter_names or ())
        with functions.all_or_nothing(networks):
            for network in networks:
                functions.fuse(network, adapter_names, lora_scale)

    def unfuse_lora(
        self, components: Sequence[str] = ("unet", "text_encoder"), **kwargs: Any
    ) -> None:
        """Undo `fuse_lora`, to the bit."""
        _check_old_keywords("unfuse_lora", kwargs, ("unfuse_unet", "unfuse_text_encoder"))
        for network in self._chosen_networks(components):
            functions.unfuse(network)

    @property
    def fused_loras(self) -> set[str]:
        """Names of the adapters that are part of the weights."""
        states = [state_of(network) for network in self._adapted_networks().values()]
        return {entry.name for state in states if state for entry in state.fused}

    @property
    def num_fused_loras(self) -> int:
        """The number of adapters that are part of the weights."""
        return len(self.fused_loras)

    @property
    def lora_scale(self) -> float:
        """What a call multiplies all strengths with, if it says nothing: 1."""
        return getattr(self, "_lora_scale", 1.0)

    def set_lora_device(
        self, adapter_names: str | Sequence[str], device: torch.device | str | int
    ) -> None:
        """Keep adapters on a device. Layers fetch what they need, so they act from any device."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        for network in self._adapted_networks().values():
            functions.move(network, names, device)

    def enable_lora_hotswap(self, target_rank: int = 128, check_compiled: str = "error") -> None:
        """Compute adapters at one rank, so that compiled networks need not be compiled again.

        Args:
            target_rank: the highest rank of all adapters to come.
            check_compiled: what to do when adapters are loaded already: "error", "warn" or
                "ignore".
        """
        for network in self._adapted_networks().values():
            functions.prepare_for_swapping(network, target_rank, check_compiled)

    def _adapted_networks(self) -> dict[str, nn.Module]:
        """The networks that are there and take adapters, by component."""
        parts = {name: getattr(self, name, None) for name in self._lora_loadable_modules}
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}

    def _chosen_networks(self, components: Collection[str]) -> list[nn.Module]:
        if not components:
            raise InputError("`components` cannot be an empty list.")
        for name in components:
            if name not in self._lora_loadable_modules:
                raise InputError(
                    f"{name} is not found in {self._lora_loadable_modules}, the components that"
                    " take adapters."
                )
        networks = self._adapted_networks()
        return [networks[name] for name in components if name in networks]


def _load_into(
    component: str,
    network: nn.Module,
    state_dict: Mapping[str, Tensor],
    alphas: Mapping[str, float] | None,
    name: str | None,
    hotswap: bool,
    metadata: Mapping[str, Any] | None,
) -> str | None:
    from sfumato.adapters.files import AdapterFile
    from sfumato.adapters.loading import load

    loaded = load(
        {component: network},
        AdapterFile(dict(state_dict), metadata or {}),
        name,
        replace=hotswap,
        alphas=alphas,
        elsewhere=_OTHERS - {component},
        required=False,
    )
    if loaded is None:
        logger.warning("The state dict has no adapters for the %s.", component)
    return loaded


def _renamed(values: Mapping[str, Any], prefix: str, name: str) -> dict[str, Any]:
    start = f"{prefix}."
    return {f"{name}.{k.removeprefix(start)}": v for k, v in values.items() if k.startswith(start)}


def _check_old_keywords(call: str, kwargs: Mapping[str, Any], old: tuple[str, ...]) -> None:
    reject_unknown(f"{call}()", kwargs, set(old))
    for name in kwargs:
        warnings.warn(
            f"`{name}` of `{call}` is deprecated and has no effect. Use `components` instead.",
            FutureWarning,
            stacklevel=3,
        )
