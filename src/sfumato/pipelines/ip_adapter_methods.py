"""diffusers' methods for IP-Adapters: a pipeline's UNet, image encoder and feature extractor.

Files are read and compared with the UNet first; only then anything changes, and all of it or
nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from sfumato.adapters import network
from sfumato.adapters.files import AdapterFile
from sfumato.adapters.loading import load
from sfumato.adapters.state import layers_of, state_of
from sfumato.adapters.strengths import check_number, resolve
from sfumato.checkpoints.hub_names import HubOptions, take_hub_options
from sfumato.checkpoints.keywords import reject_unknown, without_hub_keywords
from sfumato.errors import InputError, ModelNotFoundError
from sfumato.models import ip_adapter
from sfumato.pipelines.ip_adapter_build import IPAdapter, build_adapter, make_processors
from sfumato.pipelines.ip_adapter_files import (
    Source,
    Wish,
    encoder_place,
    read_tables,
    read_wishes,
)
from sfumato.pipelines.offload import LayerOffload, Offload

logger = logging.getLogger(__name__)

#: The size of pictures for image encoders that say nothing about it.
_PICTURE_SIZE = 224


class IPAdapterMixin:
    """Methods of a pipeline to which pictures can be prompts."""

    unet: Any
    image_encoder: Any
    feature_extractor: Any
    device: Any
    dtype: Any
    register_modules: Callable[..., None]
    _signature: Callable[[], tuple[set[str], set[str]]]
    enable_model_cpu_offload: Callable[..., None]
    enable_sequential_cpu_offload: Callable[..., None]
    _offload: Offload | None

    def load_ip_adapter(
        self,
        pretrained_model_name_or_path_or_dict: Source | list[Source],
        subfolder: str | list[str],
        weight_name: str | list[str],
        image_encoder_folder: str | None = "image_encoder",
        **kwargs: Any,
    ) -> None:
        """Load one IP-Adapter or several, in place of those loaded before.

        Calls then need `ip_adapter_image` or `ip_adapter_image_embeds`, with one entry per adapter.
        LoRAs in files of the FaceID kind act as the adapters ``faceid_0``, ``faceid_1``, ...

        Args:
            pretrained_model_name_or_path_or_dict: a folder, a file, a model's name on the hub, the
                tensors themselves, or a list of such.
            subfolder: a folder in it; None for none, or a list.
            weight_name: the file in that; of no account for a file or a dictionary. A list loads
                several adapters.
            image_encoder_folder: the image encoder's folder: a name is looked for in ``subfolder``,
                a path with slashes from the top. None loads none. A pipeline that has an image
                encoder keeps it.
            kwargs: how to ask the hub, see `sfumato.checkpoints.hub_names.HubOptions`.

        Raises:
            AdapterError: a file is no IP-Adapter, or one for another UNet; nothing has changed.
            CheckpointError: (an ``OSError``) a file is missing, damaged or unsafe.
            InputError: (a ``ValueError``) arguments contradict each other.
        """
        wishes = read_wishes(pretrained_model_name_or_path_or_dict, subfolder, weight_name)
        hub = take_hub_options(kwargs)
        reject_unknown("load_ip_adapter()", without_hub_keywords(kwargs), set())
        self._require_place()
        tables = [table for wish in wishes for table in read_tables(wish, hub)]
        adapters = [build_adapter(self.unet, table) for table in tables]
        components = self._companions(wishes[0], image_encoder_folder, hub)
        _install(self.unet, adapters)
        self.register_modules(**components)
        self._offload_anew()

    def set_ip_adapter_scale(self, scale: Any) -> None:
        """Set how much pictures act; loaded adapters begin with 1.

        Args:
            scale: a number for all adapters, or a list with an entry per adapter. An entry is a
                number; a list with a number per masked picture; or a dictionary of blocks, such as
                ``{"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}}``, where
                what is not mentioned has 0.

        Raises:
            InputError: there is another number of adapters, no such block, or a number is wrong;
                nothing has changed.
        """
        count = len(ip_adapter.projections_of(self.unet))
        if not count:
            raise InputError("No IP-Adapter is loaded.", hint="Call `load_ip_adapter` first.")
        ip_adapter.require_suitable(self.unet)
        scales = scale if isinstance(scale, list) else [scale] * count
        if len(scales) != count:
            raise InputError(f"Cannot assign {len(scales)} scale_configs to {count} IP-Adapter.")
        paths = list(layers_of(self.unet))
        ip_adapter.set_scales(
            self.unet, [resolve(one, paths, default=0.0, read=_scale) for one in scales]
        )

    def unload_ip_adapter(self) -> None:
        """Take all IP-Adapters off, with the LoRAs they brought and the image encoder.

        The UNet is what it was before, bit by bit.
        """
        if not ip_adapter.projections_of(self.unet):
            return
        ip_adapter.require_suitable(self.unet)
        ip_adapter.detach(self.unet)
        self.register_modules(image_encoder=None)
        self._offload_anew()

    def _require_place(self) -> None:
        if "image_encoder" not in self._signature()[0]:
            raise InputError(f"{type(self).__name__} takes no IP-Adapters.")
        ip_adapter.require_suitable(self.unet)

    def _companions(self, wish: Wish, folder: str | None, hub: HubOptions) -> dict[str, Any]:
        """The image encoder and the feature extractor, where the pipeline has none yet."""
        from sfumato.safety.image_processor import CLIPImageProcessor

        found: dict[str, Any] = {}
        encoder = self.image_encoder
        if encoder is None and folder is not None:
            encoder = found["image_encoder"] = self._load_encoder(wish, folder, hub)
        elif encoder is None:
            logger.warning(
                "No image encoder is loaded, as `image_encoder_folder=None` asks. Calls can take"
                " `ip_adapter_image_embeds`, but no `ip_adapter_image`."
            )
        if self.feature_extractor is None:
            size = _PICTURE_SIZE if encoder is None else encoder.config.image_size
            found["feature_extractor"] = CLIPImageProcessor(size=size, crop_size=size)
        return found

    def _load_encoder(self, wish: Wish, folder: str, hub: HubOptions) -> Any:
        from sfumato.text.clip_vision import CLIPVisionModelWithProjection

        place, subfolder, revision = encoder_place(wish, folder)
        options = {name: value for name, value in vars(hub).items() if value is not None}
        if revision is not None:
            options["revision"] = revision
        try:
            encoder = CLIPVisionModelWithProjection.from_pretrained(
                place, subfolder=subfolder, torch_dtype=self.dtype, **options
            )
        except ModelNotFoundError as error:
            raise ModelNotFoundError(
                f"The image encoder is missing: {error.message}",
                hint="Say where it is with `image_encoder_folder`; None does without.",
            ) from None
        return encoder.to(self.device)

    def _offload_anew(self) -> None:
        """Where networks wait in main memory, let new ones do so too."""
        if isinstance(self._offload, LayerOffload):
            self.enable_sequential_cpu_offload(device=self._offload.device)
        elif self._offload is not None:
            self.enable_model_cpu_offload(device=self._offload.device)


def _scale(value: Any, label: str = "The scale of an IP-Adapter") -> float | list[float]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [check_number(number, label) for number in value]
    return check_number(value, label)


def _install(unet: Any, adapters: Sequence[IPAdapter]) -> None:
    """Put adapters and their LoRAs on a UNet, or leave it as it was."""
    processors = make_processors(unet, adapters)
    loras = {f"faceid_{i}": a.loras for i, a in enumerate(adapters) if a.loras}
    with ip_adapter.all_or_nothing(unet):
        ip_adapter.detach(unet)
        for name, tensors in loras.items():
            _add_lora(unet, name, tensors)
        projections = [adapter.projection for adapter in adapters]
        ip_adapter.attach(unet, projections, processors, tuple(loras))


def _add_lora(unet: nn.Module, name: str, tensors: Mapping[str, Any]) -> None:
    """Load a LoRA that acts beside those that act already."""
    state = state_of(unet)
    active = {} if state is None else {n: state.strengths.get(n) for n in state.active}
    load({"unet": unet}, AdapterFile(tensors, where="The LoRA of the IP-Adapter"), name)
    network.activate(unet, [*active, name], [*active.values(), 1.0])
