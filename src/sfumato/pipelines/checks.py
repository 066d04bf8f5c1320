"""Arguments of a call, checked before anything is computed.

Messages that diffusers has too are worded as there, since programs look for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from sfumato.diffusion.noise import NoiseSource
from sfumato.errors import InputError
from sfumato.pipelines.number_checks import (
    MAX_IMAGES_PER_PROMPT,
    MAX_SIDE,
    check_callable,
    check_descending,
    check_steps,
    check_strength,
    finite_number,
    image_size,
    optional_dict,
    shown,
    whole_number,
)

__all__ = [
    "MAX_IMAGES_PER_PROMPT",
    "MAX_SIDE",
    "check_callable",
    "check_descending",
    "check_steps",
    "check_strength",
    "finite_number",
    "image_size",
    "optional_dict",
    "shown",
    "whole_number",
]


def check_callbacks(
    callback_steps: Any, tensor_inputs: Sequence[str] | None, allowed: Sequence[str]
) -> None:
    """How often the older kind of callback is called, and which tensors the newer kind gets."""
    if callback_steps is not None and (
        not isinstance(callback_steps, int)
        or isinstance(callback_steps, bool)
        or callback_steps <= 0
    ):
        raise InputError(
            f"`callback_steps` has to be a positive integer but is {callback_steps} of type"
            f" {type(callback_steps)}."
        )
    known = (*allowed, "latents", "denoised")  # which every step has
    unknown = [name for name in tensor_inputs or () if name not in known]
    if unknown:
        raise InputError(
            f"`callback_on_step_end_tensor_inputs` has to be in {list(allowed)}, but found"
            f" {unknown}"
        )


def require_callback_steps(callback_steps: Any) -> None:
    """For pipelines whose older callback has no default frequency of None."""
    if callback_steps is None:
        raise InputError(
            "`callback_steps` has to be a positive integer but is None of type"
            f" {type(callback_steps)}."
        )


def check_prompts(
    prompt: Any, negative_prompt: Any, prompt_embeds: Any, negative_prompt_embeds: Any
) -> None:
    """One of text and embeddings each, and of one shape; encoding them checks what they hold."""
    if prompt is not None and prompt_embeds is not None:
        raise InputError(
            f"Cannot forward both `prompt`: {str(prompt)[:80]} and `prompt_embeds`:"
            f" {_summary(prompt_embeds)}. Please make sure to only forward one of the two."
        )
    if prompt is None and prompt_embeds is None:
        raise InputError(
            "Provide either `prompt` or `prompt_embeds`. Cannot leave both `prompt` and"
            " `prompt_embeds` undefined."
        )
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise InputError(
            f"Cannot forward both `negative_prompt`: {str(negative_prompt)[:80]} and"
            f" `negative_prompt_embeds`: {_summary(negative_prompt_embeds)}. Please make sure to"
            " only forward one of the two."
        )
    if prompt is not None and not isinstance(prompt, str | list):
        raise InputError(f"`prompt` has to be of type `str` or `list` but is {type(prompt)}.")
    shapes = [getattr(embeds, "shape", None) for embeds in (prompt_embeds, negative_prompt_embeds)]
    if None not in shapes and shapes[0] != shapes[1]:
        raise InputError(
            "`prompt_embeds` and `negative_prompt_embeds` must have the same shape when passed"
            f" directly, but got: `prompt_embeds` {shapes[0]} != `negative_prompt_embeds`"
            f" {shapes[1]}."
        )


def check_embedding_width(name: str, value: Tensor | None, unet_config: Any) -> None:
    """The last axis of embeddings against what the UNet attends to."""
    wanted = getattr(unet_config, "cross_attention_dim", None)
    projected = getattr(unet_config, "encoder_hid_dim", None) is not None
    if projected or not isinstance(wanted, int) or not isinstance(value, Tensor):
        return
    if value.ndim == 3 and value.shape[-1] != wanted:
        raise InputError(
            f"`{name}` is {_summary(value)}, but the UNet attends to vectors of width {wanted}.",
            hint="Make the embeddings with the text encoder that belongs to this UNet.",
        )


def check_image_prompts(image: Any, embeds: Any) -> None:
    """Pictures as prompts, for IP-Adapters."""
    if image is not None and embeds is not None:
        raise InputError(
            "Provide either `ip_adapter_image` or `ip_adapter_image_embeds`. Cannot leave both"
            " `ip_adapter_image` and `ip_adapter_image_embeds` defined."
        )
    if embeds is None:
        return
    if not isinstance(embeds, list):
        raise InputError(
            f"`ip_adapter_image_embeds` has to be of type `list` but is {type(embeds)}"
        )
    for value in embeds:
        if not isinstance(value, Tensor) or value.ndim not in (3, 4):
            kind = f"{value.ndim}D" if isinstance(value, Tensor) else str(type(value))
            raise InputError(
                f"`ip_adapter_image_embeds` has to be a list of 3D or 4D tensors but is {kind}"
            )


def check_call(
    pipeline: Any,
    prompt: Any,
    callback_steps: Any,
    negative_prompt: Any = None,
    prompt_embeds: Any = None,
    negative_prompt_embeds: Any = None,
    ip_adapter_image: Any = None,
    ip_adapter_image_embeds: Any = None,
    tensor_inputs: Sequence[str] | None = None,
) -> None:
    """What the ``check_inputs`` of all pipelines have in common: prompts and callbacks."""
    check_callbacks(callback_steps, tensor_inputs, pipeline._callback_tensor_inputs)
    check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
    check_image_prompts(ip_adapter_image, ip_adapter_image_embeds)
    unet_config = getattr(pipeline.unet, "config", None)
    check_embedding_width("prompt_embeds", prompt_embeds, unet_config)
    check_embedding_width("negative_prompt_embeds", negative_prompt_embeds, unet_config)


def check_pictures(image: Any, prompts: int) -> None:
    """Pictures to enlarge, in one of the forms there are: one PIL picture, or one per prompt."""
    if not isinstance(image, Tensor | Image | np.ndarray | list):
        raise InputError(
            "`image` has to be of type `torch.Tensor`, `np.ndarray`, `PIL.Image.Image` or"
            f" `list` but is {type(image)}"
        )
    if isinstance(image, Image):
        return
    images = 1 if not isinstance(image, list) and image.ndim == 3 else len(image)
    if images != prompts:
        raise InputError(
            f"`prompt` has batch size {prompts} and `image` has batch size {images}. Please"
            " make sure that passed `prompt` matches the batch size of `image`."
        )


def check_generator(generator: Any, batch_size: int) -> None:
    """A torch generator, or one for each picture, or a noise source."""
    if isinstance(generator, NoiseSource):
        return
    listed = isinstance(generator, list | tuple)
    for item in generator if listed else [generator]:
        if not isinstance(item, torch.Generator) and not (item is None and not listed):
            raise InputError(
                f"`generator` has to be a torch.Generator or a list of them but is {shown(item)}.",
                hint="For a seed: torch.Generator().manual_seed(seed).",
            )
    if listed and len(generator) != batch_size:
        raise InputError(
            f"You have passed a list of generators of length {len(generator)}, but requested an"
            f" effective batch size of {batch_size}. Make sure the batch size matches the length"
            " of the generators."
        )


def check_latents(latents: Any, shape: tuple[int, int, int, int]) -> None:
    """Latents to start from: finite, and of the batch and channels that ``shape`` begins with.

    Their height and width may be others: they then decide the size of the pictures.
    """
    if latents is None:
        return
    fits = isinstance(latents, Tensor) and latents.is_floating_point() and latents.ndim == 4
    if not fits or latents.shape[:2] != shape[:2]:
        raise InputError(
            f"`latents` has to be a floating-point tensor {shape} but is {_summary(latents)}."
        )
    if not torch.isfinite(latents).all():
        raise InputError("`latents` has NaN or infinity in it.")


def _summary(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return shown(value)
