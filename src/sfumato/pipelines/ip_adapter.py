"""Pictures as prompts: embeddings for the IP-Adapters of a UNet (arXiv:2308.06721)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfumato.errors import InputError


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
    projection = getattr(unet, "encoder_hid_proj", None)
    layers = getattr(projection, "image_projection_layers", None)
    if not layers:
        raise InputError(
            "`ip_adapter_image` and `ip_adapter_image_embeds` need an IP-Adapter, but none is"
            " loaded in the UNet.",
            hint="Load one first, or leave out these arguments.",
        )
    return list(layers)


def image_prompt(
    pipeline: Any,
    image: Any,
    embeds: list[Tensor] | None,
    device: torch.device | str,
    num_images_per_prompt: int,
    do_classifier_free_guidance: bool,
) -> list[Tensor]:
    """One tensor per adapter, in guidance with the half for no picture first.

    Args:
        pipeline: has the UNet, and `encode_image`.
        image: a picture, or a list with one per adapter.
        embeds: or finished embeddings, per adapter; in guidance with both halves.
        device: where the result shall be.
        num_images_per_prompt: how often all of it is repeated.
        do_classifier_free_guidance: whether the half for no picture is needed.

    Raises:
        InputError: when the UNet has no adapter, or another number than there are pictures.
    """
    layers = adapters_of(pipeline.unet)
    pairs: list[tuple[Tensor | None, Tensor]] = []
    if embeds is not None:
        for value in embeds:
            negative, positive = value.chunk(2) if do_classifier_free_guidance else (None, value)
            pairs.append((negative, positive))
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
            pairs.append((negative[None], positive[None]))
    halves = [
        [half for half in pair if half is not None] if do_classifier_free_guidance else [pair[1]]
        for pair in pairs
    ]
    return [
        torch.cat([torch.cat([half] * num_images_per_prompt) for half in pair]).to(device)
        for pair in halves
    ]
