"""From prompts to the embeddings that condition the UNet.

The pipelines call `encode_prompt` before the denoising loop. It does what the method of the same
name does in diffusers' ``StableDiffusionPipeline``, in the same order, and takes this package's
`CLIPTokenizer` and `CLIPTextModel` or those of transformers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import InputError, TokenizerError
from sfumato.text.prompt_inputs import (
    InputTypeError as InputTypeError,
)
from sfumato.text.prompt_inputs import check_clip_skip, checked_prompt, negative_texts, shown
from sfumato.text.remembered import remembered
from sfumato.text.written_out import maybe_convert_prompt as maybe_convert_prompt

logger = logging.getLogger(__name__)

#: No more than this is logged of a text that was cut off.
_LOGGED_CHARACTERS = 2000


def encode_prompt(
    prompt: str | list[str] | None,
    *,
    tokenizer: Any,
    text_encoder: Any,
    device: torch.device | str,
    num_images_per_prompt: int = 1,
    do_classifier_free_guidance: bool = False,
    negative_prompt: str | list[str] | None = None,
    prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
    clip_skip: int | None = None,
    clip_skip_negative: bool = False,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Embed prompts and, for guidance, negative prompts.

    Args:
        prompt: one text or a list of them; ignored when ``prompt_embeds`` is given.
        tokenizer, text_encoder: may be ``None`` when all embeddings are given.
        device: where the text encoder is and the embeddings shall be.
        num_images_per_prompt: each embedding is repeated so often, next to itself.
        do_classifier_free_guidance: whether negative embeddings are needed.
        negative_prompt: of the same type as ``prompt``; default empty. With ``prompt_embeds``, a
            single text serves the whole batch.
        prompt_embeds: (batch, length, width), in place of ``prompt``.
        negative_prompt_embeds: of the shape of ``prompt_embeds``, in place of ``negative_prompt``.
        clip_skip: how many of the encoder's last layers to leave out; the final layer norm is
            applied all the same. 1 is what other programs call "clip skip 2".
        clip_skip_negative: leave them out for the negative prompt as well. diffusers 0.35 does
            not, which is why that is the default here.
        dtype: of the result; default the text encoder's, or without one that of the embeddings.

    Returns:
        Embeddings and negative embeddings, each (batch * num_images_per_prompt, length, width).
        Without guidance the second is what was given.

    Raises:
        InputError: when arguments contradict each other or embeddings are not finite.
        InputTypeError: when ``negative_prompt`` is not of the type of ``prompt``.
        TokenizerError: when the tokenizer makes ids that the text encoder does not have.
    """
    _check_count(num_images_per_prompt)
    encoder = TextEncoding(tokenizer, text_encoder, device)
    if prompt_embeds is None:
        positive = encoder(checked_prompt(prompt), clip_skip=clip_skip, warn=True)
    else:
        positive = _checked_embeds("prompt_embeds", prompt_embeds)
    if dtype is None:
        dtype = positive.dtype if text_encoder is None else text_encoder.dtype
    positive = positive.to(device=device, dtype=dtype)
    if not do_classifier_free_guidance:
        return _repeat(positive, num_images_per_prompt), negative_prompt_embeds

    if negative_prompt_embeds is None:
        like = None if prompt_embeds is not None else prompt
        texts = negative_texts(negative_prompt, like, len(positive))
        skip = clip_skip if clip_skip_negative else None
        negative = encoder(texts, clip_skip=skip, length=positive.shape[1])
        negative = negative.expand(len(positive), -1, -1)
    else:
        negative = _checked_embeds("negative_prompt_embeds", negative_prompt_embeds)
    if negative.shape != positive.shape:
        raise InputError(
            "`prompt_embeds` and `negative_prompt_embeds` must have the same shape, but got: "
            f"{tuple(positive.shape)} != {tuple(negative.shape)}."
        )
    negative = negative.to(device=device, dtype=dtype)
    return _repeat(positive, num_images_per_prompt), _repeat(negative, num_images_per_prompt)


class TextEncoding:
    """Tokenizer and text encoder together, as one call uses them.

    Args:
        tokenizer, text_encoder: this package's or transformers'.
        device: where the text encoder is.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, device: torch.device | str) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.device = device

    def __call__(
        self,
        texts: str | list[str],
        *,
        clip_skip: int | None,
        length: int | None = None,
        warn: bool = False,
    ) -> Tensor:
        """Hidden states of texts, (batch, length, width); by default as long as CLIP allows."""
        return self.embed(*self._tokens(texts, length, warn), clip_skip)

    def with_pooled(
        self, texts: str | list[str], *, length: int | None = None, warn: bool = False
    ) -> tuple[Tensor, Tensor]:
        """What the last layer says, before its norm, and pooled embeddings ``(batch, width)``."""
        ids, mask = self._tokens(texts, length, warn)
        output = self._encode(ids, mask, output_hidden_states=True)
        return output.hidden_states[-1], output.pooler_output

    def _tokens(
        self, texts: str | list[str], length: int | None, warn: bool
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask of texts, each ``(batch, length)``."""
        self.check_parts()
        limit = self.most_tokens()
        if length is not None and length > limit:
            raise InputError(
                f"`prompt_embeds` has {length} tokens, but a negative prompt in words has at most "
                f"{limit}.",
                hint="Pass `negative_prompt_embeds` of the same length.",
            )
        texts = maybe_convert_prompt(texts, self.tokenizer)
        batch = self.tokenizer(
            texts,
            padding="max_length",
            max_length=limit if length is None else length,
            truncation=True,
            return_tensors="pt",
        )
        if warn:
            self._warn_of_truncation(texts, batch.input_ids, limit)
        return batch.input_ids, batch.attention_mask

    def check_parts(self) -> None:
        """Raise `InputError` when the pipeline has no tokenizer or no text encoder."""
        if self.tokenizer is None or self.text_encoder is None:
            raise InputError(
                "A prompt in words needs a tokenizer and a text encoder, but the pipeline has "
                "none.",
                hint="Pass `prompt_embeds`, and `negative_prompt_embeds` for guidance.",
            )

    def embed(self, ids: Tensor, mask: Tensor, clip_skip: int | None) -> Tensor:
        """Hidden states of tokens ``(batch, length)``; ``mask`` is for encoders that take one."""
        question = (ids.shape, tuple(ids.flatten().tolist()), tuple(mask.flatten().tolist()))
        return remembered(
            self.text_encoder,
            (*question, clip_skip, str(self.device)),
            lambda: self._embed(ids, mask, clip_skip),
        )

    def _embed(self, ids: Tensor, mask: Tensor, clip_skip: int | None) -> Tensor:
        if clip_skip is None:
            return self._encode(ids, mask)[0]
        check_clip_skip(clip_skip, self.text_encoder.config.num_hidden_layers)
        states = self._encode(ids, mask, output_hidden_states=True)[-1]
        return self.text_encoder.text_model.final_layer_norm(states[-(clip_skip + 1)])

    def _encode(self, ids: Tensor, mask: Tensor, **options: Any) -> Any:
        self._check_ids(ids)
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        seen = mask.to(self.device) if masked else None
        return self.text_encoder(ids.to(self.device), attention_mask=seen, **options)

    def row(self, ids: Sequence[int], used: int, clip_skip: int | None) -> Tensor:
        """Hidden states ``(length, width)`` of one chunk, of which ``used`` tokens are words."""
        mask = torch.tensor([[1] * used + [0] * (len(ids) - used)])
        return self.embed(torch.tensor([ids]), mask, clip_skip)[0]

    def most_tokens(self) -> int:
        """What the tokenizer and the positions of the text encoder allow.

        A tokenizer from transformers may state 1e30, for want of a configuration.
        """
        positions = getattr(self.text_encoder.config, "max_position_embeddings", None)
        stated = self.tokenizer.model_max_length
        return stated if positions is None else min(stated, positions)

    def _check_ids(self, ids: Tensor) -> None:
        table = getattr(self.text_encoder, "get_input_embeddings", lambda: None)()
        rows = getattr(table, "num_embeddings", None)
        highest = int(ids.max())
        if rows is not None and highest >= rows:
            raise TokenizerError(
                f"The tokenizer made the id {highest}, but the text encoder has only {rows} "
                "tokens.",
                hint="They have to come from the same model; after `add_tokens`, call "
                "`text_encoder.resize_token_embeddings(len(tokenizer))`.",
            )

    def _warn_of_truncation(self, texts: str | list[str], ids: Tensor, limit: int) -> None:
        whole = self.tokenizer(texts, padding="longest", return_tensors="pt").input_ids
        if whole.shape[-1] < ids.shape[-1] or torch.equal(ids, whole):
            return
        removed = str(self.tokenizer.batch_decode(whole[:, limit - 1 : -1]))
        if len(removed) > _LOGGED_CHARACTERS:
            removed = removed[:_LOGGED_CHARACTERS] + "..."
        logger.warning(
            "The following part of your input was truncated because CLIP can only handle "
            "sequences up to %d tokens: %s",
            limit,
            removed,
        )


def _checked_embeds(name: str, embeds: Any) -> Tensor:
    if not isinstance(embeds, Tensor) or embeds.ndim != 3 or not embeds.is_floating_point():
        found = f"{embeds.dtype} {tuple(embeds.shape)}" if isinstance(embeds, Tensor) else embeds
        raise InputError(
            f"`{name}` has to be a floating-point tensor of shape (batch, length, width) but is "
            f"{shown(found)}."
        )
    if 0 in embeds.shape:
        raise InputError(f"`{name}` is empty: its shape is {tuple(embeds.shape)}.")
    if not embeds.is_meta and not bool(torch.isfinite(embeds).all()):
        raise InputError(f"`{name}` has values that are NaN or infinite.")
    return embeds


def _check_count(number: Any) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise InputError(
            f"`num_images_per_prompt` has to be an integer from 1 on but is {number!r}."
        )


def _repeat(embeds: Tensor, times: int) -> Tensor:
    """Each row ``times`` times in a row: a, a, b, b, ..."""
    return embeds.repeat_interleave(times, dim=0) if times > 1 else embeds.contiguous()
