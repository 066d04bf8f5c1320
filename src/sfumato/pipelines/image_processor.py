"""Pictures in and out: PIL, NumPy and torch images to the tensors of an autoencoder, and back.

The last step of every pipeline (`postprocess`), and the first of those that begin with a picture
(`preprocess`). Autoencoders work on ``(batch, channels, height, width)`` in -1..1.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from sfumato.config import Config, check_choice, check_int
from sfumato.errors import ConfigError, ImageError
from sfumato.pipelines import regions

ImageInput: TypeAlias = (
    Image.Image
    | np.ndarray[Any, Any]
    | Tensor
    | Sequence[Image.Image]
    | Sequence[np.ndarray[Any, Any]]
    | Sequence[Tensor]
)
ResizeMode: TypeAlias = Literal["default", "fill", "crop"]

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "linear": Image.Resampling.BILINEAR,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
OUTPUT_TYPES = ("latent", "pt", "np", "pil")


@dataclass(frozen=True, kw_only=True)
class ImageProcessorConfig(Config):
    """How pictures are prepared; the defaults are those for Stable Diffusion's autoencoder."""

    do_resize: bool = True
    vae_scale_factor: int = 8
    vae_latent_channels: int = 4
    resample: str = "lanczos"
    reducing_gap: float | None = None
    do_normalize: bool = True
    do_binarize: bool = False
    do_convert_rgb: bool = False
    do_convert_grayscale: bool = False

    def validate(self) -> None:
        check_int("vae_scale_factor", self.vae_scale_factor, 1, 1024)
        check_choice("resample", self.resample, tuple(RESAMPLING))
        if self.do_convert_rgb and self.do_convert_grayscale:
            raise ConfigError(
                "`do_convert_rgb` and `do_convert_grayscale` can not both be set to `True`.",
                hint="Choose the kind of picture that the autoencoder was trained on.",
            )


class VaeImageProcessor:
    """Converts pictures for an autoencoder and from it.

    Args:
        do_resize: scale pictures down to a multiple of ``vae_scale_factor``, or to the size asked.
        vae_scale_factor: pixels per latent, along one side.
        vae_latent_channels: a tensor with this many channels is taken for latents, left as it is.
        resample: filter for PIL pictures: nearest, bilinear, bicubic or lanczos.
        reducing_gap: lets Pillow shrink large pictures in two steps.
        do_normalize: map 0..1 to -1..1, and back.
        do_binarize: round to 0 and 1, for masks.
        do_convert_rgb: convert PIL pictures of other modes to RGB.
        do_convert_grayscale: convert PIL pictures to one channel.

    Raises:
        ConfigError: when an option is out of range or contradicts another.
    """

    def __init__(
        self,
        do_resize: bool = True,
        vae_scale_factor: int = 8,
        vae_latent_channels: int = 4,
        resample: str = "lanczos",
        reducing_gap: float | None = None,
        do_normalize: bool = True,
        do_binarize: bool = False,
        do_convert_rgb: bool = False,
        do_convert_grayscale: bool = False,
    ) -> None:
        self.config = ImageProcessorConfig(
            do_resize=do_resize,
            vae_scale_factor=vae_scale_factor,
            vae_latent_channels=vae_latent_channels,
            resample=resample,
            reducing_gap=reducing_gap,
            do_normalize=do_normalize,
            do_binarize=do_binarize,
            do_convert_rgb=do_convert_rgb,
            do_convert_grayscale=do_convert_grayscale,
        )

    def preprocess(
        self,
        image: ImageInput,
        height: int | None = None,
        width: int | None = None,
        resize_mode: ResizeMode = "default",
        crops_coords: tuple[int, int, int, int] | None = None,
    ) -> Tensor:
        """Pictures to one float tensor ``(batch, channels, height, width)``.

        Args:
            image: a picture, a batch, or a list of pictures of one kind. Arrays are
                ``(height, width[, channels])`` and tensors ``(channels, height, width)`` in 0..1.
            height: rows wanted; by default those of the picture, cut to a multiple of the factor.
            width: columns wanted, likewise.
            resize_mode: ``default`` stretches, ``fill`` shows all and extends the edges, ``crop``
                covers and cuts. Arrays and tensors are always stretched.
            crops_coords: left, upper, right and lower edge cut from PIL pictures first.

        Raises:
            ImageError: when the input is not a picture, or the mode does not suit it.
        """
        images = _as_list(image, self.config.do_convert_grayscale)
        pictures = [item for item in images if isinstance(item, Image.Image)]
        if pictures:
            batch = self._from_pil(pictures, height, width, resize_mode, crops_coords)
        else:
            batch = _stack([item for item in images if not isinstance(item, Image.Image)])
            given_as_tensor = isinstance(images[0], Tensor)
            if given_as_tensor and batch.shape[1] == self.config.vae_latent_channels:
                return batch
            if self.config.do_resize:
                size = self.get_default_height_width(batch, height, width)
                batch = self.resize(batch, *size)
        return self._to_range(batch)

    def postprocess(
        self,
        image: Tensor,
        output_type: str = "pil",
        do_denormalize: Sequence[bool] | None = None,
    ) -> Any:
        """The autoencoder's output as what the caller wants to hold.

        Args:
            image: ``(batch, channels, height, width)``.
            output_type: ``pil`` for a list of PIL pictures, ``np`` for a float32 array
                ``(batch, height, width, channels)`` in 0..1, ``pt`` for a tensor in 0..1,
                ``latent`` for the input untouched.
            do_denormalize: for each picture whether it has to be mapped from -1..1 to 0..1; a
                picture that a safety checker blackened has not.

        Raises:
            ImageError: when ``image`` is not a tensor.
        """
        if not isinstance(image, Tensor):
            raise ImageError(
                f"Input for postprocessing is in incorrect format: {type(image)}."
                " We only support pytorch tensor."
            )
        if output_type not in OUTPUT_TYPES:
            warnings.warn(
                f"the output_type {str(output_type)[:80]} is outdated and has been set to `np`."
                " Please make sure to set it to one of these instead: `pil`, `np`, `pt`, `latent`",
                FutureWarning,
                stacklevel=2,
            )
            output_type = "np"
        if output_type == "latent":
            return image
        image = self._from_range(image, do_denormalize)
        if output_type == "pt":
            return image
        array = self.pt_to_numpy(image)
        return array if output_type == "np" else self.numpy_to_pil(array)

    def get_default_height_width(
        self, image: ImageInput, height: int | None = None, width: int | None = None
    ) -> tuple[int, int]:
        """The size a picture gets: the one asked for or its own, cut to a multiple of the factor.

        Args:
            image: a PIL picture, a tensor ``(batch, channels, height, width)`` or an array
                ``(batch, height, width[, channels])``.
        """
        if isinstance(image, Image.Image):
            own_height, own_width = image.height, image.width
        elif isinstance(image, Tensor):
            own_height, own_width = image.shape[2], image.shape[3]
        else:
            own_height, own_width = np.asarray(image).shape[1:3]
        factor = self.config.vae_scale_factor
        rows: int = own_height if height is None else height
        columns: int = own_width if width is None else width
        return rows - rows % factor, columns - columns % factor

    @overload
    def resize(
        self, image: Image.Image, height: int, width: int, resize_mode: ResizeMode = ...
    ) -> Image.Image: ...
    @overload
    def resize(
        self, image: Tensor, height: int, width: int, resize_mode: ResizeMode = ...
    ) -> Tensor: ...
    @overload
    def resize(
        self, image: np.ndarray[Any, Any], height: int, width: int, resize_mode: ResizeMode = ...
    ) -> np.ndarray[Any, Any]: ...
    def resize(
        self,
        image: Image.Image | Tensor | np.ndarray[Any, Any],
        height: int,
        width: int,
        resize_mode: ResizeMode = "default",
    ) -> Image.Image | Tensor | np.ndarray[Any, Any]:
        """Scale one PIL picture with the configured filter, or a batch to its nearest pixels."""
        if not isinstance(image, Image.Image):
            if resize_mode != "default":
                raise ImageError(f"Only PIL image input is supported for resize_mode {resize_mode}")
            batch = image if isinstance(image, Tensor) else self.numpy_to_pt(image)
            batch = torch.nn.functional.interpolate(batch, size=(height, width))
            return batch if isinstance(image, Tensor) else self.pt_to_numpy(batch)
        if resize_mode == "default":
            filter_ = RESAMPLING[self.config.resample]
            gap = self.config.reducing_gap
            return image.resize((width, height), resample=filter_, reducing_gap=gap)
        if resize_mode not in ("fill", "crop"):
            raise ImageError(f"resize_mode {str(resize_mode)[:80]} is not supported")
        return _fit(image, width, height, cover=resize_mode == "crop")

    @staticmethod
    def blur(image: Image.Image, blur_factor: int = 4) -> Image.Image:
        """A picture or mask with soft edges; the factor is the radius in pixels."""
        return image.filter(ImageFilter.GaussianBlur(blur_factor))

    @staticmethod
    def get_crop_region(
        mask_image: Image.Image, width: int, height: int, pad: int = 0
    ) -> tuple[int, int, int, int]:
        """The region around a mask in the shape of what is drawn; see `regions.region_of_mask`."""
        return regions.region_of_mask(mask_image, width, height, pad)

    def apply_overlay(
        self,
        mask: Image.Image,
        init_image: Image.Image,
        image: Image.Image,
        crop_coords: tuple[int, int, int, int] | None = None,
    ) -> Image.Image:
        """What was drawn, with the original where the mask is black; see `regions.overlay`."""
        if crop_coords is not None:
            left, upper, right, lower = crop_coords
            image = self.resize(image, lower - upper, right - left, resize_mode="crop")
        return regions.overlay(mask, init_image, image, crop_coords)

    def _from_pil(
        self,
        pictures: list[Image.Image],
        height: int | None,
        width: int | None,
        resize_mode: ResizeMode,
        crop: tuple[int, int, int, int] | None,
    ) -> Tensor:
        if crop is not None:
            pictures = [picture.crop(crop) for picture in pictures]
        if self.config.do_resize:
            size = self.get_default_height_width(pictures[0], height, width)
            pictures = [self.resize(picture, *size, resize_mode) for picture in pictures]
        if self.config.do_convert_rgb:
            pictures = [picture.convert("RGB") for picture in pictures]
        elif self.config.do_convert_grayscale:
            pictures = [picture.convert("L") for picture in pictures]
        return self.numpy_to_pt(self.pil_to_numpy(pictures))

    def _to_range(self, batch: Tensor) -> Tensor:
        if self.config.do_normalize and batch.min() < 0:
            warnings.warn(
                "Passing `image` as torch tensor with value range in [-1,1] is deprecated. The"
                " expected value range for image tensor is [0,1] when passing as pytorch tensor or"
                f" numpy Array. You passed `image` with value range [{batch.min()},{batch.max()}]",
                FutureWarning,
                stacklevel=3,
            )
        elif self.config.do_normalize:
            batch = self.normalize(batch)
        return (batch >= 0.5).to(batch.dtype) if self.config.do_binarize else batch

    def _from_range(self, batch: Tensor, wanted: Sequence[bool] | None) -> Tensor:
        if wanted is None:
            return self.denormalize(batch) if self.config.do_normalize else batch
        pairs = zip(batch, wanted, strict=True)
        return torch.stack([self.denormalize(one) if flag else one for one, flag in pairs])

    @staticmethod
    def normalize(images: Tensor) -> Tensor:
        """0..1 to -1..1."""
        return 2.0 * images - 1.0

    @staticmethod
    def denormalize(images: Tensor) -> Tensor:
        """-1..1 to 0..1; values outside are cut."""
        return (images * 0.5 + 0.5).clamp(0, 1)

    @staticmethod
    def pil_to_numpy(images: Image.Image | Sequence[Image.Image]) -> np.ndarray[Any, Any]:
        """PIL pictures of one size to float32 ``(batch, height, width[, channels])`` in 0..1."""
        pictures = [images] if isinstance(images, Image.Image) else images
        return np.stack([np.array(picture).astype(np.float32) / 255.0 for picture in pictures])

    @staticmethod
    def numpy_to_pil(images: np.ndarray[Any, Any]) -> list[Image.Image]:
        """An array ``([batch,] height, width, channels)`` in 0..1 to 8-bit PIL pictures."""
        batch = images[None] if images.ndim == 3 else images
        pixels = (batch * 255).round().astype("uint8")
        if pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
        return [Image.fromarray(picture) for picture in pixels]

    @staticmethod
    def numpy_to_pt(images: np.ndarray[Any, Any]) -> Tensor:
        """``(batch, height, width[, channels])`` to ``(batch, channels, height, width)``."""
        batch = images[..., None] if images.ndim == 3 else images
        return torch.from_numpy(batch.transpose(0, 3, 1, 2))

    @staticmethod
    def pt_to_numpy(images: Tensor) -> np.ndarray[Any, Any]:
        """``(batch, channels, height, width)`` to float32 ``(batch, height, width, channels)``."""
        return images.cpu().permute(0, 2, 3, 1).float().numpy()


def _as_list(
    image: ImageInput, grayscale: bool
) -> list[Image.Image | np.ndarray[Any, Any] | Tensor]:
    """The input as a list of one kind, or `ImageError`."""
    if isinstance(image, Tensor | np.ndarray) and image.ndim == 3 and grayscale:
        image = _with_channel(image)
    images: list[Any] = list(image) if isinstance(image, list | tuple) else [image]
    kinds = (Image.Image, np.ndarray, Tensor)
    alike = any(bool(images) and all(isinstance(item, kind) for item in images) for kind in kinds)
    if not alike or any(getattr(item, "ndim", 3) not in (2, 3, 4) for item in images):
        names = "PIL.Image.Image, numpy.ndarray, torch.Tensor"
        raise ImageError(
            f"Input is in incorrect format. Currently, we only support {names},"
            " or a list of one of them."
        )
    return images


def _with_channel(image: Tensor | np.ndarray[Any, Any]) -> Tensor | np.ndarray[Any, Any]:
    """A grayscale batch without a channel axis, or one picture without a batch axis, to 4-D."""
    if isinstance(image, Tensor):
        return image.unsqueeze(1)
    return image[None] if image.shape[-1] == 1 else image[..., None]


def _stack(images: Sequence[Tensor | np.ndarray[Any, Any]]) -> Tensor:
    """Arrays ``(height, width, channels)`` or tensors ``(channels, height, width)`` to a batch."""
    arrays = [item for item in images if isinstance(item, np.ndarray)]
    if arrays:
        batch = np.concatenate(arrays) if arrays[0].ndim == 4 else np.stack(arrays)
        return VaeImageProcessor.numpy_to_pt(batch)
    tensors = [item for item in images if isinstance(item, Tensor)]
    joined = torch.cat(tensors) if tensors[0].ndim == 4 else torch.stack(tensors)
    return joined.unsqueeze(1) if joined.ndim == 3 else joined


def _fit(image: Image.Image, width: int, height: int, *, cover: bool) -> Image.Image:
    """Scale without distortion and centre: cut what stands over, or extend the edges."""
    wider = image.width * height > width * image.height
    narrower = image.width * height < width * image.height
    if narrower if cover else wider:
        size = (width, image.height * width // image.width)
    else:
        size = (image.width * height // image.height, height)
    scaled = image.resize(size, resample=Image.Resampling.LANCZOS)
    left, top = width // 2 - size[0] // 2, height // 2 - size[1] // 2
    canvas = Image.new("RGB", (width, height))
    canvas.paste(scaled, (left, top))
    if top > 0:
        for edge, y in ((0, 0), (scaled.height, top + scaled.height)):
            canvas.paste(scaled.resize((width, top), box=(0, edge, width, edge)), (0, y))
    if left > 0:
        for edge, x in ((0, 0), (scaled.width, left + scaled.width)):
            canvas.paste(scaled.resize((left, height), box=(edge, 0, edge, height)), (x, 0))
    return canvas
