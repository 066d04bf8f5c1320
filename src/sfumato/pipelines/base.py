"""What every pipeline is: a set of named components, where they are, and how they run.

A pipeline owns no arithmetic. It holds networks, a tokenizer and a scheduler, loads and saves
them as one folder, moves them between devices, and passes switches on to the networks.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import nn

from sfumato.checkpoints.keywords import reject_unknown
from sfumato.errors import InputError
from sfumato.pipelines import placement, storage, xformers
from sfumato.pipelines.call import Calls, CallState
from sfumato.pipelines.config import PipelineConfig
from sfumato.pipelines.image_processor import VaeImageProcessor
from sfumato.pipelines.offload import (
    LayerOffload,
    LayerRelease,
    ModelOffload,
    ModelRelease,
    Offload,
    offload_device,
)
from sfumato.runtime import pages, policy

logger = logging.getLogger(__name__)


class DiffusionPipeline:
    """Base of all pipelines.

    A subclass takes its components as arguments of ``__init__``, calls ``super().__init__()`` and
    then `register_modules`. Arguments with a default that are not listed in
    ``_optional_components`` are settings rather than components.
    """

    config_name: ClassVar[str] = "model_index.json"
    #: The order in which networks run, for `enable_model_cpu_offload`.
    model_cpu_offload_seq: ClassVar[str | None] = None
    _optional_components: ClassVar[list[str]] = []
    _exclude_from_cpu_offload: ClassVar[list[str]] = []
    _callback_tensor_inputs: ClassVar[list[str]] = []

    def __init__(self) -> None:
        self._config = PipelineConfig()
        self._calls = Calls()
        self._offload: Offload | None = None
        self._progress_bar_config: dict[str, Any] = {}
        self.fusing_unet = False
        self.fusing_vae = False
        #: Of latents, noise and the sampler's sums; None for that of the networks.
        self.latents_dtype: torch.dtype | None = None

    # Components and configuration

    def register_modules(self, **components: Any) -> None:
        """Make components attributes, and note their classes in the configuration."""
        entries = {name: storage.component_class(value) for name, value in components.items()}
        self.register_to_config(**entries)
        for name, value in components.items():
            setattr(self, name, value)

    def register_to_config(self, **entries: Any) -> None:
        """Add or replace entries of the configuration."""
        self._config = self._config.with_changes(**entries)

    def __setattr__(self, name: str, value: Any) -> None:
        config = self.__dict__.get("_config", {})
        if isinstance(config.get(name), tuple):  # the class may change with the component
            self.register_to_config(**{name: storage.component_class(value)})
        super().__setattr__(name, value)

    @property
    def config(self) -> PipelineConfig:
        """The classes of the components and the settings; read-only."""
        return self._config

    @property
    def name_or_path(self) -> str | None:
        """Where the pipeline was loaded from."""
        return self._config.get("_name_or_path")

    @classmethod
    def _signature(cls) -> tuple[set[str], set[str]]:
        """The names of the components, and those of the settings."""
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        settings = {
            p.name
            for p in named
            if p.default is not p.empty and p.name not in cls._optional_components
        }
        return {p.name for p in named} - settings, settings

    @property
    def components(self) -> dict[str, Any]:
        """All components by name, None for absent ones; `Other(**pipe.components)` shares them."""
        expected, settings = self._signature()
        defined = {k for k in self._config if not k.startswith("_") and k not in settings}
        if defined != expected:
            raise InputError(
                f"{type(self).__name__} has been incorrectly initialized or is incorrectly"
                f" implemented. Expected {sorted(expected)} to be defined, but {sorted(defined)}"
                " are defined."
            )
        return {name: getattr(self, name) for name in self._config if name in defined}

    def _networks(self) -> dict[str, nn.Module]:
        parts = ((name, getattr(self, name, None)) for name in sorted(self._signature()[0]))
        return {name: part for name, part in parts if isinstance(part, nn.Module)}

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(storage.model_index(self), indent=2)}"

    # Loading, saving, sharing

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> Self:
        """Load a pipeline from a folder in diffusers' layout, or from the Hugging Face Hub.

        Called on `DiffusionPipeline` itself, the folder's ``model_index.json`` decides the class.

        Args:
            pretrained_model_name_or_path: the folder; or the name of a model on the hub
                (``owner/name``), of which only the files that are needed are fetched. A folder of
                the same spelling goes first, and no path is ever looked for on the hub.
            kwargs: ``torch_dtype`` or ``dtype`` (a `torch.dtype`, or a dict of them by component
                name with ``default``; without one `sfumato.runtime.policy` chooses); ``variant``
                such as ``"fp16"``; ``use_safetensors`` (None prefers them, True insists on them);
                ``disable_mmap`` (read large files into memory instead of mapping them);
                ``offload_state_dict`` (converted weights wait in a temporary file from when they
                are loaded, see `enable_sequential_cpu_offload`; on Linux);
                ``check_finite`` (refuse NaN; None checks all but mapped files from 2 GiB on);
                ``quantization`` (``"int8"``, ``"int8-weights"``, ``"int4"``, or a dict of them by
                component name; see the page on quantisation); ``engine`` (see `use_engine`);
                ``device_map`` (a device, or ``"balanced"`` for the accelerator if there is one);
                any component or setting by name, such as
                ``safety_checker=None``; and for the hub ``revision``, ``cache_dir``, ``token``,
                ``proxies``, ``force_download``, ``local_files_only``.

        Raises:
            ModelNotFoundError: (an ``OSError`` and ``ValueError``) there is no such folder, model
                or revision, or a file is missing in it.
            HubError: (an ``OSError``) the hub cannot be reached, or refuses.
            MissingDependencyError: ``huggingface_hub`` is needed and not installed.
            CheckpointError: (an ``OSError``) files are missing or damaged.
            ConfigError: (a ``ValueError``) a configuration is wrong.
            InputError: (a ``ValueError``) arguments contradict each other, a component is
                missing, or the variant does not exist.
        """
        return storage.load_pipeline(cls, pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path: str | PathLike[str], **kwargs: Any
    ) -> Self:
        """Load a checkpoint in one file; as the base of all, with the class that it is made for.

        See `StableDiffusionPipeline.from_single_file`, whose arguments and errors are those here.
        """
        from sfumato.pipelines import single_file

        return single_file.load_single_file(cls, pretrained_model_link_or_path, **kwargs)

    @classmethod
    def download(cls, pretrained_model_name: str | PathLike[str], **kwargs: Any) -> str:
        """Fetch what `from_pretrained` with the same arguments would load, and load nothing.

        Returns:
            The folder that has it, in the cache of ``huggingface_hub``.
        """
        return storage.download_pipeline(cls, pretrained_model_name, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
    ) -> None:
        """Write all components into a folder that diffusers reads too.

        Args:
            save_directory: the folder; made when missing.
            safe_serialization: safetensors rather than pickles.
            variant: put before the file ending, such as ``"fp16"``.
            max_shard_size: split larger weight files, in bytes or as in ``"5GB"``.
            push_to_hub: has to stay False; sfumato uploads nothing.
        """
        storage.save_pipeline(
            self,
            save_directory,
            safe_serialization=safe_serialization,
            variant=variant,
            max_shard_size=max_shard_size,
            push_to_hub=push_to_hub,
        )

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Self:
        """Build a pipeline from another's components, which both then share.

        The components keep their data types. Settings and components may be given by name to
        replace the other's; settings that this class does not have are kept as private notes in
        the configuration.

        Args:
            pipeline: the source.
            kwargs: components, settings, and ``torch_dtype`` (or ``dtype``) to convert to.

        Raises:
            InputError: when a component that this class needs is missing.
            UnknownKeywordError: when a keyword is none of these.
        """
        dtype = placement.one_dtype(kwargs.pop("torch_dtype", None), kwargs.pop("dtype", None))
        names, settings = cls._signature()
        reject_unknown(f"{cls.__name__}.from_pipe()", kwargs, names | settings | {"torch_dtype"})
        config = dict(pipeline.config)
        arguments = {k: v for k, v in pipeline.components.items() if k in names}
        for name in settings:
            for key in (f"_{name}", name):
                arguments |= {name: config[key]} if key in config else {}
        arguments |= kwargs
        missing = names - set(cls._optional_components) - set(arguments)
        if missing:
            raise InputError(
                f"Pipeline {cls.__name__} expected {sorted(names)}, but only"
                f" {sorted(set(arguments) & names)} were passed."
            )
        optional = dict.fromkeys(names - set(arguments))
        new = cls(**optional, **arguments)
        left = {k: v for k, v in config.items() if k.removeprefix("_") not in arguments}
        new.register_to_config(**{f"_{k.removeprefix('_')}": v for k, v in left.items()})
        new._offload = getattr(pipeline, "_offload", None)
        new.latents_dtype = getattr(pipeline, "latents_dtype", None)
        return new if dtype is None else new.to(dtype=dtype)

    # Devices

    def to(
        self,
        *args: Any,
        dtype: torch.dtype | None = None,
        device: torch.device | str | int | None = None,
        silence_dtype_warnings: bool = False,
    ) -> Self:
        """Move and convert all networks: ``to(device)``, ``to(dtype)``, ``to(device, dtype)``.

        Returns:
            The pipeline itself.

        Raises:
            InputError: when the arguments contradict each other, the device does not exist, or
                the layers are moved one by one (see `enable_sequential_cpu_offload`).
        """
        target, dtype = placement.read_arguments(args, device, dtype)
        if target is not None:
            placement.require_device(target)
            placement.check_offload(self._offload, target)
        for network in self._networks().values():
            network.to(target, dtype)
        if dtype is not None:
            self.latents_dtype = None
        if not silence_dtype_warnings and self._offload is None:
            placement.warn_of_slow_type(self._networks())
        return self

    @property
    def device(self) -> torch.device:
        """The device of the first network; the CPU when there is none."""
        return placement.device_of(self._networks().values())

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the first network; float32 when there is none."""
        return placement.dtype_of(self._networks().values())

    @property
    def _execution_device(self) -> torch.device:
        """Where the networks run, which differs from `device` while they wait offloaded."""
        return self.device if self._offload is None else self._offload.device

    def enable_model_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Keep networks in main memory, and move each to the accelerator while it runs.

        On a machine without accelerator weights wait in their files (or in a temporary one, when
        they come from none), and one network at a time is in main memory.

        Args:
            gpu_id: the number of the accelerator.
            device: the accelerator, when there are several kinds; ``"cpu"`` saves main memory.
        """
        if self.model_cpu_offload_seq is None:
            raise InputError(
                "Model CPU offload cannot be enabled because no `model_cpu_offload_seq` class"
                " attribute is set."
            )
        target, networks = self._prepare_offload("enable_model_cpu_offload", gpu_id, device)
        order = self.model_cpu_offload_seq.split("->")
        chain = [networks.pop(name) for name in order if name in networks]
        if target is not None:
            self._offload = ModelOffload(target, chain, networks.values())
        elif pages.works():
            self._offload = ModelRelease(chain, networks.values())

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Keep networks in main memory, and move layer after layer to the accelerator.

        Needs the least accelerator memory, and is slow. On a machine without accelerator weights
        wait in files, and layer after layer is in main memory; see `enable_model_cpu_offload`.
        """
        target, networks = self._prepare_offload("enable_sequential_cpu_offload", gpu_id, device)
        if target is not None:
            self._offload = LayerOffload(target, networks.values())
        elif pages.works():
            self._offload = LayerRelease(networks.values())

    def _prepare_offload(
        self, name: str, gpu_id: int | None, device: torch.device | str | None
    ) -> tuple[torch.device | None, dict[str, nn.Module]]:
        """The accelerator, or None; and the networks that are to come and go."""
        target = offload_device(gpu_id, device)
        self.remove_all_hooks()
        networks = self._networks()
        if target is None:
            if not pages.works():
                logger.warning(
                    "`%s` changes nothing: there is no accelerator, and this system does not let"
                    " weights wait in files.",
                    name,
                )
            return None, networks
        self.to("cpu", silence_dtype_warnings=True)
        for fixed in self._exclude_from_cpu_offload:
            if fixed in networks:
                networks.pop(fixed).to(target)
        return target, networks

    def maybe_free_model_hooks(self) -> None:
        """Send offloaded networks back to main memory; called at the end of every call."""
        if self._offload is not None:
            self._offload.release()

    def remove_all_hooks(self) -> None:
        """Undo `enable_model_cpu_offload` and `enable_sequential_cpu_offload`."""
        if self._offload is not None:
            self._offload.remove()
            self._offload = None

    @contextmanager
    def _running(self, state: CallState) -> Iterator[None]:
        """Hold a call's state while it runs; clean up however it ends."""
        if self._execution_device.type == "cpu":
            policy.prepare_process()
        with self._calls.begin(state):
            try:
                yield
            finally:
                self.maybe_free_model_hooks()

    # Progress

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        """A tqdm bar over an iterable or up to a total; shown on a terminal, not in a pipe.

        Raises:
            InputError: unless exactly one of ``iterable`` and ``total`` is given.
        """
        from tqdm.auto import tqdm

        if (iterable is None) == (total is None):
            raise InputError("Either `total` or `iterable` has to be defined, and not both.")
        return tqdm(iterable, total=total, **{"disable": None, **self._progress_bar_config})

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Options for tqdm, such as ``disable=True`` or ``desc="Painting"``."""
        self._progress_bar_config = kwargs

    @staticmethod
    def numpy_to_pil(images: np.ndarray[Any, Any]) -> list[Image.Image]:
        """An array ``([batch,] height, width, channels)`` in 0..1 to PIL pictures."""
        return VaeImageProcessor.numpy_to_pil(images)

    # Switches that the networks have

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Compute attention in slices: less memory, somewhat slower.

        Args:
            slice_size: ``"auto"`` for half of the heads at a time, ``"max"`` for one, or a number
                of them.
        """
        self.set_attention_slice(slice_size)

    def disable_attention_slicing(self) -> None:
        """Compute attention in one step."""
        self.set_attention_slice(None)

    def set_attention_slice(self, slice_size: str | int | None) -> None:
        """Set the slice size of all networks that have one."""
        for network in self._networks().values():
            if hasattr(network, "set_attention_slice"):
                network.set_attention_slice(slice_size)  # pyright: ignore

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Use xformers in networks that know it; sfumato's own are memory-efficient already.

        Raises:
            MissingDependencyError: (a ``ModuleNotFoundError``) xformers is not installed.
            InputError: (a ``ValueError``) there is no CUDA device.
        """
        self.set_use_memory_efficient_attention_xformers(True, attention_op)

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Undo `enable_xformers_memory_efficient_attention`."""
        self.set_use_memory_efficient_attention_xformers(False)

    def set_use_memory_efficient_attention_xformers(
        self, valid: bool, attention_op: Any = None
    ) -> None:
        """Switch xformers on or off; see `enable_xformers_memory_efficient_attention`."""
        xformers.switch(self._networks().values(), valid, attention_op)

    def _part(self, name: str, feature: str) -> Any:
        part = getattr(self, name, None)
        if part is None:
            raise InputError(f"The pipeline must have `{name}` for {feature}.")
        return part

    def enable_vae_slicing(self) -> None:
        """Decode the pictures of a batch one by one: less memory, the same result."""
        self._part("vae", "slicing").enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decode a batch at once."""
        self._part("vae", "slicing").disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Decode large pictures in parts: much less memory, and the same result, without seams."""
        self._part("vae", "tiling").enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decode pictures whole."""
        self._part("vae", "tiling").disable_tiling()

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Reweight the UNet's skips (``s``) and backbone (``b``), https://arxiv.org/abs/2309.11497.

        Args:
            s1: scale of the low frequencies of the skips in the first up block.
            s2: the same in the second.
            b1: scale of half of the backbone's channels in the first up block.
            b2: the same in the second.
        """
        self._part("unet", "using FreeU").enable_freeu(s1=s1, s2=s2, b1=b1, b2=b2)

    def disable_freeu(self) -> None:
        """Undo `enable_freeu`."""
        self._part("unet", "using FreeU").disable_freeu()

    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Join the query, key and value projections of attention into one matrix each."""
        self.fusing_unet = self.fusing_vae = False
        for name, wanted in (("unet", unet), ("vae", vae)):
            if wanted:
                network = self._part(name, "fusing projections")
                if not hasattr(network, "fuse_qkv_projections"):
                    raise InputError(f"`fuse_qkv_projections()` needs another class of `{name}`.")
                network.fuse_qkv_projections()
                setattr(self, f"fusing_{name}", True)

    def unfuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Undo `fuse_qkv_projections`."""
        for name, wanted in (("unet", unet), ("vae", vae)):
            if wanted and not getattr(self, f"fusing_{name}"):
                logger.warning("The %s was not fused for QKV projections. Doing nothing.", name)
            elif wanted:
                getattr(self, name).unfuse_qkv_projections()
                setattr(self, f"fusing_{name}", False)
