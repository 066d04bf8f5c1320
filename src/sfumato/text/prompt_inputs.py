"""Checks of prompts and negative prompts as callers give them."""

from __future__ import annotations

from typing import Any

from sfumato.errors import InputError


class InputTypeError(InputError, TypeError):
    """An argument of the wrong type, where diffusers raises a ``TypeError``."""


def checked_prompt(prompt: Any, name: str = "prompt") -> str | list[str]:
    if prompt is None:
        raise InputError(
            "Provide either `prompt` or `prompt_embeds`. Cannot leave both `prompt` and "
            "`prompt_embeds` undefined."
        )
    if not isinstance(prompt, str | list):
        raise InputError(f"`{name}` has to be of type `str` or `list` but is {type(prompt)}.")
    if isinstance(prompt, list):
        if not prompt:
            raise InputError(f"`{name}` is an empty list; it has to hold at least one text.")
        for text in prompt:
            if not isinstance(text, str):
                raise InputError(f"`{name}` has to be a list of `str` but holds a {type(text)}.")
    return prompt


def negative_texts(
    negative_prompt: str | list[str] | None, prompt: str | list[str] | None, batch_size: int
) -> list[str]:
    """One negative text per prompt, or a single one for a batch of given embeddings."""
    if negative_prompt is None:
        return [""] * batch_size
    negative_prompt = checked_prompt(negative_prompt, "negative_prompt")
    if prompt is not None and isinstance(prompt, str) != isinstance(negative_prompt, str):
        raise InputTypeError(
            f"`negative_prompt` should be the same type to `prompt`, but got "
            f"{type(negative_prompt)} != {type(prompt)}."
        )
    if isinstance(negative_prompt, str):
        return [negative_prompt]
    if len(negative_prompt) != batch_size:
        raise InputError(
            f"`negative_prompt`: {shown(negative_prompt)} has batch size {len(negative_prompt)}, "
            f"but `prompt`: {shown(prompt)} has batch size {batch_size}. Please make sure that "
            "passed `negative_prompt` matches the batch size of `prompt`."
        )
    return negative_prompt


def check_clip_skip(clip_skip: Any, layers: int) -> None:
    """Raise `InputError` unless as many of a text encoder's layers can be left out."""
    if not isinstance(clip_skip, int) or not 0 <= clip_skip <= layers:
        raise InputError(
            f"`clip_skip` has to be an integer from 0 to {layers}, the number of the text "
            f"encoder's layers, but is {clip_skip!r}."
        )


def shown(value: object) -> str:
    """A value as messages show it: not too long."""
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "..."
