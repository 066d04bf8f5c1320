"""Pictures to the input of CLIP's vision encoder: resized, cropped, and standardised.

Settings, files and numbers are those of transformers' ``CLIPImageProcessor`` (in early folders
``CLIPFeatureExtractor``). Pictures are resized by Pillow in 8 bits, as CLIP was trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from sfumato.checkpoints.atomic import atomic_directory
from sfumato.checkpoints.files import checked_path
from sfumato.checkpoints.hub import local_copy
from sfumato.checkpoints.hub_files import joined
from sfumato.checkpoints.hub_names import take_hub_options
from sfumato.checkpoints.jsonfile import read_json, write_json
from sfumato.checkpoints.keywords import reject_unknown, without_hub_keywords
from sfumato.config import Config, check_choice, check_int
from sfumato.errors import ConfigError, ImageError, InputError
from sfumato.models.checks import check_flags, check_number, label
from sfumato.text.batch_encoding import BatchEncoding

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_LARGEST = 8192

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class CLIPImageProcessorConfig(Config):
    """Settings of a `CLIPImageProcessor`, with transformers' names and defaults.

    Attributes:
        size: ``{"shortest_edge": n}`` or ``{"height": h, "width": w}``, in pixels; a single
            number means the shortest edge.
        resample: Pillow's number of the filter; 3 is bicubic.
        crop_size: ``{"height": h, "width": w}``; a single number means a square.
        rescale_factor: what 8-bit values are multiplied with.
    """

    ignored_keys: ClassVar[frozenset[str]] = frozenset(
        {"feature_extractor_type", "image_processor_type", "processor_class"}
    )

    do_resize: bool = True
    size: Any = 224
    resample: int = 3
    do_center_crop: bool = True
    crop_size: Any = 224
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...] = _MEAN
    image_std: tuple[float, ...] = _STD
    do_convert_rgb: bool = True

    def validate(self) -> None:
        flags = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
        check_flags(self, flags)
        check_choice(label(self, "resample"), self.resample, tuple(range(6)))
        check_number(self, "rescale_factor", 0.0, 1e6)
        self._standardise("size", ("shortest_edge",))
        self._standardise("crop_size", ("height", "width"))
        for name in ("image_mean", "image_std"):
            values = self[name]
            if not isinstance(values, tuple) or len(values) != 3:
                raise ConfigError(f"`{label(self, name)}` has to be a list of three numbers.")
            for value in values:
                number = isinstance(value, int | float) and abs(value) < math.inf
                if not number or (name == "image_std" and value == 0):
                    raise ConfigError(f"`{label(self, name)}` holds {value!r:.40}.")

    def _standardise(self, name: str, sides: tuple[str, ...]) -> None:
        """A size as a dictionary; a single number is taken for the given sides."""
        value = self[name]
        sizes = dict(value) if isinstance(value, Mapping) else dict.fromkeys(sides, value)
        allowed = [{"height", "width"}] + [{"shortest_edge"}] * (name == "size")
        if set(sizes) not in allowed:
            raise ConfigError(
                f"`{label(self, name)}` cannot have the keys {str(list(sizes))[:80]}."
            )
        for size in sizes.values():
            check_int(label(self, name), size, 1, _LARGEST)
        object.__setattr__(self, name, sizes)


class CLIPImageProcessor:
    """Makes ``pixel_values`` of pictures; callable.

    Args:
        config: settings, or a mapping of them.
        fields: settings by name; see `CLIPImageProcessorConfig`.

    Raises:
        ConfigError: a setting is out of range.
    """

    model_input_names = ("pixel_values",)
    config_name = "preprocessor_config.json"

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        self.config = CLIPImageProcessorConfig.from_dict({**(config or {}), **fields})

    def __getattr__(self, name: str) -> Any:
        if name != "config" and name in self.config:
            return self.config[name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load the settings from a folder.

        Args:
            pretrained_model_name_or_path: the folder, or a name on the hub.
            subfolder: a folder in it, such as ``feature_extractor``.
            kwargs: settings that go before the file's; and how to ask the hub, see
                `sfumato.checkpoints.hub_names.HubOptions`.

        Raises:
            CheckpointError: when the file is missing.
            ConfigError: when it cannot be used.
            UnknownKeywordError: when there is no such setting.
        """
        hub = take_hub_options(kwargs)
        overrides = without_hub_keywords(kwargs)
        known = set(CLIPImageProcessorConfig())
        reject_unknown(f"{cls.__name__}.from_pretrained()", overrides, known)
        path = local_copy(
            pretrained_model_name_or_path,
            hub,
            lambda model: [joined(subfolder, cls.config_name)],
        )
        folder = checked_path(path) / (subfolder or "")
        return cls(read_json(folder / cls.config_name), **overrides)

    def save_pretrained(self, save_directory: str | PathLike[str]) -> None:
        """Write the settings into a folder that transformers reads too."""
        with atomic_directory(checked_path(save_directory)) as temporary:
            write_json(temporary / self.config_name, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The settings, with the names by which transformers finds the class."""
        names = {
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_processor_type": type(self).__name__,
        }
        return {**self.config.to_dict(), **names}

    def __call__(
        self, images: Any, *, return_tensors: str | None = None, **overrides: Any
    ) -> BatchEncoding:
        """Prepare pictures.

        Args:
            images: a picture, or a list or batch: of Pillow, or an array or tensor with the
                channels first or last, of 8-bit values or of floating-point ones in 0..1 (which
                are not rescaled again) or 0..255.
            return_tensors: ``"pt"`` for torch, ``"np"`` for NumPy, None for a list of arrays.
            overrides: settings for this call.

        Returns:
            ``pixel_values``, float32 (batch, 3, height, width).

        Raises:
            ImageError: when something is no picture.
            InputError: when ``return_tensors`` is another word, or sizes differ without a crop.
            UnknownKeywordError: when there is no such setting.
        """
        reject_unknown(type(self).__name__, overrides, set(self.config))
        config = self.config.replace(**overrides) if overrides else self.config
        arrays = [_prepared(image, config) for image in _listed(images)]
        if return_tensors is None:
            return BatchEncoding(pixel_values=arrays)
        if return_tensors not in ("pt", "np"):
            raise InputError(
                f"`return_tensors` has to be 'pt', 'np' or None but is {return_tensors!r}."
            )
        if len({array.shape for array in arrays}) != 1:
            raise InputError("The pictures have different sizes, so they make no tensor.")
        batch = np.stack(arrays)
        if return_tensors == "np":
            return BatchEncoding(pixel_values=batch)
        import torch

        return BatchEncoding(pixel_values=torch.from_numpy(batch))

    preprocess = __call__


class CLIPFeatureExtractor(CLIPImageProcessor):
    """The earlier name of `CLIPImageProcessor`."""


def _listed(images: Any) -> list[Any]:
    if isinstance(images, list | tuple):
        return [image for item in images for image in _listed(item)]
    if getattr(images, "ndim", 0) == 4:
        return list(images)
    return [images]


def _prepared(image: Any, config: CLIPImageProcessorConfig) -> Array:
    picture, is_scaled = _as_picture(image, config.do_convert_rgb)
    if config.do_resize:
        rows, columns = _new_size(picture.height, picture.width, config.size)
        picture = picture.resize((columns, rows), resample=Image.Resampling(config.resample))
    array = np.array(picture)
    if config.do_center_crop:
        array = _cropped(array, config.crop_size["height"], axis=0)
        array = _cropped(array, config.crop_size["width"], axis=1)
    factor = 1 / 255 if is_scaled else config.rescale_factor if config.do_rescale else 1.0
    scaled = (array.astype(np.float64) * factor).astype(np.float32)
    if config.do_normalize:
        mean, std = (np.array(v, np.float32) for v in (config.image_mean, config.image_std))
        scaled = (scaled - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def _as_picture(image: Any, convert: bool) -> tuple[Image.Image, bool]:
    """An RGB picture, and whether its values were in 0..1."""
    if isinstance(image, Image.Image):
        if image.mode != "RGB" and not convert:
            raise ImageError(f"The picture has the mode {image.mode}, but RGB is needed.")
        return image.convert("RGB"), False
    if hasattr(image, "detach"):
        image = image.detach().float().cpu() if image.is_floating_point() else image.cpu()
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.dtype.kind not in "uifb" or 0 in array.shape:
        raise ImageError(
            f"A picture has to be one of Pillow, or an array, but is {type(image).__name__} of "
            f"shape {array.shape}."
        )
    if array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    elif array.shape[2] not in (1, 3):
        raise ImageError(f"A picture has 1 or 3 channels, but the shape is {array.shape}.")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):
        raise ImageError(f"The values of a picture are in 0..255 or 0..1, but are {low}..{high}.")
    is_scaled = array.dtype.kind == "f" and high <= 1
    bytes_ = (array * 255 if is_scaled else array).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(bytes_, (*bytes_.shape[:2], 3)).copy()), is_scaled


def _new_size(height: int, width: int, size: Mapping[str, int]) -> Sequence[int]:
    if "height" in size:
        return size["height"], size["width"]
    short, long = size["shortest_edge"], max(height, width)
    other = int(short * long / min(height, width))
    return (other, short) if width <= height else (short, other)


def _cropped(array: Array, size: int, axis: int) -> Array:
    """The middle of an axis, with black added evenly where there is too little."""
    length = array.shape[axis]
    if length < size:
        before = math.ceil((size - length) / 2)
        padding = [(0, 0)] * array.ndim
        padding[axis] = (before, size - length - before)
        return np.pad(array, padding)
    start = (length - size) // 2
    return array.take(range(start, start + size), axis=axis)
