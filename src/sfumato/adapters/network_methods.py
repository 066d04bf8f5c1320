"""diffusers' names for the adapters of one network: thin methods for UNets and text encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, cast

from torch import Tensor, nn

from sfumato.adapters import network as functions
from sfumato.adapters.state import adapters_of, state_of
from sfumato.adapters.strengths import Strength
from sfumato.errors import InputError


class AdapterMethods:
    """Methods of a network that takes adapters; see `sfumato.adapters.network`."""

    #: What the network is called in files and pipelines.
    adapter_prefix: str

    def load_lora_adapter(
        self,
        pretrained_model_name_or_path_or_dict: str | PathLike[str] | Mapping[str, Tensor],
        prefix: str | None = None,
        hotswap: bool = False,
        *,
        adapter_name: str | None = None,
        network_alphas: Mapping[str, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Load a LoRA or one of its kin from a file, a folder or a dictionary.

        Args:
            pretrained_model_name_or_path_or_dict: tensors of other networks in it are left out.
            prefix: take only keys that begin with it and a dot.
            hotswap: take the place of the adapter named ``adapter_name``.
            adapter_name: default ``default_0``, ``default_1``, ...
            network_alphas: alphas apart from the tensors, by layer.
            metadata: PEFT's configuration, in place of the file's.
            kwargs: see `sfumato.adapters.files.read_adapter_file`.

        Raises:
            AdapterError: nothing in the file fits, or something fits half.
            CheckpointError: the file is damaged or unsafe.
            InputError: the name is taken.
        """
        from sfumato.adapters.files import AdapterFile, read_adapter_file
        from sfumato.adapters.keys import TEXT_ENCODER, UNET
        from sfumato.adapters.loading import load

        file = read_adapter_file(pretrained_model_name_or_path_or_dict, **kwargs)
        tensors = file.tensors
        if prefix is not None:
            start = f"{prefix}."
            tensors = {
                f"{self.adapter_prefix}.{key.removeprefix(start)}": tensor
                for key, tensor in tensors.items()
                if key.startswith(start)
            }
        given = file.metadata if metadata is None else metadata
        load(
            {self.adapter_prefix: self._network},
            AdapterFile(tensors, given, file.where),
            adapter_name,
            replace=hotswap,
            alphas=network_alphas,
            elsewhere={UNET, TEXT_ENCODER, "text_encoder_2"} - {self.adapter_prefix},
        )

    def save_lora_adapter(
        self,
        save_directory: str | PathLike[str],
        adapter_name: str = "default",
        upcast_before_saving: bool = False,
        safe_serialization: bool = True,
        weight_name: str | None = None,
        format: str = "diffusers",
    ) -> None:
        """Write one adapter, with PEFT's configuration in the metadata.

        Args:
            save_directory: a folder, made when missing.
            adapter_name: which.
            upcast_before_saving: in float32.
            safe_serialization: safetensors rather than a pickle.
            weight_name: default ``pytorch_lora_weights.safetensors``.
            format: ``"diffusers"``, or ``"kohya"`` for other programs.
        """
        from sfumato.adapters.saving import save

        tensors, metadata = self.lora_state_dict(adapter_name)
        if upcast_before_saving:
            tensors = {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}
        network = self.adapter_prefix if format == "kohya" else ""
        save(
            save_directory,
            {network: tensors},
            metadata={network: metadata} if safe_serialization else None,
            weight_name=weight_name,
            safe_serialization=safe_serialization,
            format=format,
        )

    def lora_state_dict(
        self, adapter_name: str = "default"
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """An adapter's tensors under PEFT's names, and its configuration, ready to be saved.

        Raises:
            InputError: there is no such adapter.
        """
        from sfumato.adapters.saving import exported

        adapters = adapters_of(self._network)
        if adapter_name not in adapters:
            raise InputError(
                f"Adapter name {adapter_name} not found in the model; there are: "
                f"{', '.join(adapters) or 'none'}."
            )
        return exported(adapters[adapter_name])

    def add_adapter(self, adapter_config: Any, adapter_name: str = "default") -> None:
        """Add a LoRA to train; see `sfumato.adapters.training.add_trainable`."""
        from sfumato.adapters.training import add_trainable

        add_trainable(self._network, adapter_name, adapter_config)

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Let these adapters act at the strengths they have, and no others."""
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        state = state_of(self._network)
        strengths = [None if state is None else state.strengths.get(name) for name in names]
        self.set_adapters(names, strengths)

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        weights: Strength | Sequence[Strength | None] | None = None,
    ) -> None:
        """Let these adapters act, and no others.

        Args:
            adapter_names: one or several.
            weights: one for all, or one each; a number, or a dictionary of blocks (see
                `sfumato.adapters.strengths`).

        Raises:
            InputError: there is no such adapter, or a weight is wrong.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        each = weights_of(names, weights)
        missing = set(names) - set(adapters_of(self._network))
        if missing:
            raise InputError(
                f"Following adapter(s) could not be found: {', '.join(sorted(missing))}. Loaded"
                f" adapters are: {list(adapters_of(self._network))}."
            )
        functions.activate(self._network, names, each)

    def active_adapters(self) -> list[str]:
        """Names of the adapters that act (or would, were they not switched off)."""
        state = state_of(self._network)
        return [] if state is None else list(state.active)

    def disable_lora(self) -> None:
        """Switch all adapters off, fused ones included."""
        functions.set_enabled(self._network, False)

    def enable_lora(self) -> None:
        """Undo `disable_lora`."""
        functions.set_enabled(self._network, True)

    disable_adapters = disable_lora
    enable_adapters = enable_lora

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Take adapters off, out of fused weights too."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        functions.remove(self._network, names)

    def fuse_lora(
        self,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Make adapters part of the weights; see `sfumato.adapters.network.fuse`.

        Args:
            lora_scale: multiplies their strengths.
            safe_fusing: weights are always checked for NaN, so this changes nothing.
            adapter_names: default those that act.
        """
        functions.fuse(self._network, adapter_names, lora_scale)

    def unfuse_lora(self) -> None:
        """Undo `fuse_lora`, to the bit."""
        functions.unfuse(self._network)

    def unload_lora(self) -> None:
        """Forget all adapters. What is fused stays, until `unfuse_lora`."""
        functions.remove(self._network)

    def enable_lora_hotswap(self, target_rank: int = 128, check_compiled: str = "error") -> None:
        """Compute adapters at one rank, so that compiled code need not be compiled again.

        Args:
            target_rank: the highest rank of all adapters to come.
            check_compiled: what to do when adapters are loaded already: "error", "warn" or
                "ignore".
        """
        functions.prepare_for_swapping(self._network, target_rank, check_compiled)

    @property
    def _network(self) -> nn.Module:
        return cast(nn.Module, self)


def weights_of(names: Sequence[str], weights: Any) -> list[Any]:
    """One strength per name, of one for all or a list.

    Raises:
        InputError: the list is of another length.
    """
    if not isinstance(weights, list | tuple):
        return [weights] * len(names)
    if len(weights) != len(names):
        raise InputError(
            f"Length of adapter names {len(names)} is not equal to the length of the weights"
            f" {len(weights)}."
        )
    return list(weights)
