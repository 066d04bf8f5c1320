"""Pictures as prompts: embeddings for the IP-Adapters of a UNet (arXiv:2308.06721)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfumato.errors import InputError
from sfumato.models.image_projections import fitting_embeds
from sfumato.models.ip_adapter import projections_of


def encode_image(
    image: Any,
    image_encoder: Any,
    feature_extractor: Any,
    device: torch.device | str,
    num_images_per_prompt: int,
    output_hidden_states: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Embed pictures, and the absence of a picture.

    Args:
        image: pictures for the feature extractor, or its ``pixel_values``.
        image_encoder: a CLIP vision model with projection.
        feature_extractor: makes ``pixel_values`` of pictures.
        device: where the encoder is.
        num_images_per_prompt: each embedding is repeated so often, next to itself.
        output_hidden_states: return the last layer but one rather than the projection.

    Returns:
        Embeddings for the pictures, and for no picture.
    """
    if image_encoder is None:
        raise InputError(
            "A picture as prompt needs an `image_encoder`, but the pipeline has none.",
            hint="Load an IP-Adapter, or pass `ip_adapter_image_embeds`.",
        )
    if not isinstance(image, Tensor):
        if feature_extractor is None:
            raise InputError(
                "A picture as prompt needs a `feature_extractor`, but the pipeline has none.",
                hint="Load an IP-Adapter with `load_ip_adapter`, or pass a tensor of pixel values.",
            )
        image = feature_extractor(image, return_tensors="pt").pixel_values
    dtype = next(image_encoder.parameters()).dtype
    image = image.to(device=device, dtype=dtype)
    if output_hidden_states:
        given = image_encoder(image, output_hidden_states=True).hidden_states[-2]
        absent = image_encoder(torch.zeros_like(image), output_hidden_states=True).hidden_states[-2]
    else:
        given = image_encoder(image).image_embeds
        absent = torch.zeros_like(given)
    return (
        given.repeat_interleave(num_images_per_prompt, dim=0),
        absent.repeat_interleave(num_images_per_prompt, dim=0),
    )


def adapters_of(unet: Any) -> list[Any]:
    """The image projections of a UNet's IP-Adapters, one per adapter.

    Raises:
        InputError: when it has none.
    """
    layers = projections_of(unet)
    if not layers:
        raise InputError(
            "`ip_adapter_image` and `ip_adapter_image_embeds` need an IP-Adapter, but none is"
            " loaded in the UNet.",
            hint="Load one first, or leave out these arguments.",
        )
    return layers


def require_none(unet: Any) -> None:
    """Raise `InputError` when a UNet has an IP-Adapter, for a call without pictures."""
    if projections_of(unet):
        raise InputError(
            "An IP-Adapter is loaded, so the call needs `ip_adapter_image` or"
            " `ip_adapter_image_embeds`.",
            hint="To draw without pictures, call `unload_ip_adapter`, or give any picture after"
            " `set_ip_adapter_scale(0)`.",
        )


def for_rows(conditions: dict[str, Any], rows: int) -> dict[str, Any]:
    """What the UNet gets in every step, without guidance's part where a callback ended that."""
    added = conditions.get("added_cond_kwargs")
    if not added or "image_embeds" not in added:
        return conditions
    embeds = []
    for value in added["image_embeds"]:
        if len(value) == 2 * rows:
            value = value[rows:]
        elif len(value) == 3 * rows:  # guidance by a picture too, which has the pictures first
            value = value[:rows]
        embeds.append(value)
    return {**conditions, "added_cond_kwargs": {**added, "image_embeds": embeds}}


def parts_of(pipeline: Any, guided: bool) -> list[int]:
    """How a batch is composed: 1 where pictures count, 0 where their absence does."""
    if not guided:
        return [1]
    return pipeline._join(torch.tensor([1]), torch.tensor([0])).tolist()


def require_batch(embeds: list[Tensor], rows: int) -> None:
    """Raise `InputError` unless each tensor is for a batch of ``rows``."""
    for value in embeds:
        if len(value) != rows:
            raise InputError(
                f"`ip_adapter_image_embeds` is for a batch of {len(value)}, but the call has one of"
                f" {rows}.",
                hint="Give embeddings for one picture; they are repeated for each drawing.",
            )


def image_prompt(
    pipeline: Any,
    image: Any,
    embeds: list[Tensor] | None,
    device: torch.device | str,
    num_images_per_prompt: int,
    do_classifier_free_guidance: bool,
) -> list[Tensor]:
    """One tensor per adapter; in guidance with what is for no picture, in the batch's order.

    Args:
        pipeline: has the UNet, `encode_image`, and `_join` for the order of a guided batch.
        image: a picture, or a list with one per adapter.
        embeds: or finished embeddings, per adapter; in guidance composed as the result.
        device: where the result shall be.
        num_images_per_prompt: how often all of it is repeated.
        do_classifier_free_guidance: whether what is for no picture is needed.

    Raises:
        InputError: when the UNet has no adapter, or another number than there are pictures.
    """
    layers = adapters_of(pipeline.unet)
    parts = parts_of(pipeline, do_classifier_free_guidance)
    pairs: list[tuple[Tensor, Tensor | None]] = []
    if embeds is not None:
        for value in _checked_embeds(embeds, layers, len(parts)):
            given = dict(zip(parts, value.chunk(len(parts)), strict=True))
            pairs.append((given[1], given.get(0)))
    else:
        images = image if isinstance(image, list) else [image]
        if len(images) != len(layers):
            raise InputError(
                "`ip_adapter_image` must have same length as the number of IP Adapters. Got"
                f" {len(images)} images and {len(layers)} IP Adapters."
            )
        for one, layer in zip(images, layers, strict=True):
            # The plain adapter projects one vector per picture; the others read hidden states.
            hidden = type(layer).__name__ != "ImageProjection"
            positive, negative = pipeline.encode_image(one, device, 1, hidden)
            pairs.append((positive[None], negative[None]))
    result = []
    for positive, negative in pairs:
        tensor = torch.cat([positive] * num_images_per_prompt)
        if do_classifier_free_guidance and negative is not None:
            tensor = pipeline._join(tensor, torch.cat([negative] * num_images_per_prompt))
        result.append(tensor.to(device))
    return result


def _checked_embeds(embeds: list[Tensor], layers: list[Any], parts: int) -> list[Tensor]:
    if len(embeds) != len(layers):
        raise InputError(
            "`ip_adapter_image_embeds` must have same length as the number of IP Adapters. Got"
            f" {len(embeds)} tensors and {len(layers)} IP Adapters."
        )
    for value, layer in zip(embeds, layers, strict=True):
        if hasattr(layer, "input_ndim"):  # one of this package
            fitting_embeds(layer, value)
        if len(value) % parts:
            raise InputError(
                f"`ip_adapter_image_embeds` has {len(value)} rows, but with guidance there have to"
                f" be {parts} parts: for no picture, and for the picture.",
                hint="`prepare_ip_adapter_image_embeds` makes both.",
            )
    return embeds
