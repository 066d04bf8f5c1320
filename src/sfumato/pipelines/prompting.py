"""Prompts in a syntax of their own, in the flow of a call: tags, adapters, embeddings by step.

`flow.draw` asks here when a call says ``prompt_syntax="a1111"`` or another; literal prompts go
through ``encode_prompt`` as in diffusers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from sfumato.adapters.network import activate
from sfumato.adapters.state import adapters_of, state_of, using
from sfumato.errors import InputError, did_you_mean
from sfumato.pipelines import stages
from sfumato.text.conditioning import TextEncoding, negative_texts
from sfumato.text.contexts import Conditioning, condition
from sfumato.text.long_prompts import PromptSyntax, find_syntax
from sfumato.text.prompt.schedule import Earlier
from sfumato.text.prompt.tags import take_tags, total_strengths

#: Loading for a tag is one at a time, so that two calls do not load one file twice.
_loading = threading.Lock()


@dataclass(frozen=True, eq=False)
class Wording:
    """The prompts of a call, without their tags.

    Attributes:
        syntax: how to read them.
        prompts: the texts.
        strengths: for each prompt, the adapters that its tags name: their strength in the text
            encoder and in the UNet. Empty when no prompt has a tag.
    """

    syntax: PromptSyntax
    prompts: Sequence[str]
    strengths: Sequence[Mapping[str, tuple[float, float]]] = ()


def read_wording(pipeline: Any, request: Any) -> Wording | None:
    """Take the prompts of a request apart, and load the adapters that tags name.

    Returns:
        None when the prompts are literal, or given as embeddings.

    Raises:
        InputError: there is no such syntax, or no adapter of a tag's name.
    """
    syntax = find_syntax(request.prompt_syntax)
    if syntax is None or request.prompt is None:
        return None
    prompts = [request.prompt] if isinstance(request.prompt, str) else list(request.prompt)
    if not syntax.scripted:
        return Wording(syntax, prompts)
    taken = [take_tags(text) for text in prompts]
    strengths = [total_strengths(tags) for _, tags in taken]
    for name in {name for own in strengths for name in own}:
        _require_adapter(pipeline, name, request.loras or {})
    return Wording(syntax, [text for text, _ in taken], strengths if any(strengths) else ())


def _require_adapter(pipeline: Any, name: str, loras: Mapping[str, Any]) -> None:
    networks = pipeline._adapted_networks()
    with _loading:
        if any(name in adapters_of(network) for network in networks.values()):
            return
        if name in loras:
            _load_quietly(networks, name, loras[name])
            return
    loaded = {known for network in networks.values() for known in adapters_of(network)}
    known = sorted(loaded | set(loras))
    raise InputError(
        f"There is no LoRA {name[:80]!r} for a tag in the prompt; there are: "
        f"{', '.join(known)[:2000] or 'none'}.{did_you_mean(name, known)}",
        hint="Load it with `load_lora_weights(file, adapter_name=name)`, or name it in `loras`.",
    )


def _load_quietly(networks: Mapping[str, nn.Module], name: str, file: Any) -> None:
    """Load an adapter that acts only where a tag says so."""
    from sfumato.adapters.files import read_adapter_file
    from sfumato.adapters.loading import load

    states = {network: state_of(network) for network in networks.values()}
    acting = {network: () if state is None else state.active for network, state in states.items()}
    load(networks, read_adapter_file(file), name)
    for network, active in acting.items():
        state = state_of(network)
        known = {} if state is None else state.strengths
        activate(network, active, [known.get(one) for one in active])


@contextmanager
def acting(pipeline: Any, wording: Wording | None, images: int) -> Iterator[None]:
    """Let the adapters of the prompts act on the UNet, for each picture its own.

    Adapters that act anyway go on acting, at the strength of a tag if there is one of their name.
    """
    if wording is None or not wording.strengths:
        yield
        return
    rows = [_all_acting(pipeline.unet, own, 1) for own in wording.strengths for _ in range(images)]
    alike = all(row == rows[0] for row in rows)
    with using(pipeline.unet, rows[0] if alike else rows):
        yield


def _all_acting(
    network: nn.Module, strengths: Mapping[str, tuple[float, float]], place: int
) -> dict[str, Any]:
    """Name to strength of everything that shall act on a network that has it."""
    state = state_of(network)
    if state is None:
        return {}
    already = {name: state.strengths.get(name) for name in state.active} if state.enabled else {}
    named = {name: own[place] for name, own in strengths.items() if name in state.adapters}
    return {**{name: 1.0 if s is None else s for name, s in already.items()}, **named}


def embed(
    pipeline: Any, request: Any, wording: Wording, steps: int, device: torch.device
) -> Conditioning:
    """The prompts and, for guidance, the negative prompts, for every step."""
    encoder = pipeline.text_encoder
    guided = pipeline.do_classifier_free_guidance
    negatives = None
    if guided:
        count = len(wording.prompts)
        texts = negative_texts(request.negative_prompt, request.prompt, count)
        negatives = texts * count if len(texts) == 1 else texts
    scale = (request.cross_attention_kwargs or {}).get("scale")
    around: list[Callable[[], AbstractContextManager[object]]] = [
        partial(_adapted, encoder, strengths, scale)
        for strengths in wording.strengths or [{}] * len(wording.prompts)
    ]
    earlier = None
    if request.earlier_steps is not None:
        earlier = Earlier(steps=request.earlier_steps, total=request.num_inference_steps)
    return condition(
        wording.prompts,
        negatives,
        syntax=wording.syntax,
        encoding=TextEncoding(pipeline.tokenizer, encoder, device),
        steps=steps,
        earlier=earlier,
        images=int(request.num_images_per_prompt),
        clip_skip=request.clip_skip,
        acting=around,
    )


@contextmanager
def _adapted(
    encoder: Any, strengths: Mapping[str, tuple[float, float]], scale: float | None
) -> Iterator[None]:
    with ExitStack() as stack:
        if strengths and isinstance(encoder, nn.Module):
            stack.enter_context(using(encoder, _all_acting(encoder, strengths, 0)))
        stack.enter_context(stages.adapter_scale(encoder, scale))
        yield


def repeat_positive(conditions: Any, pictures: int, parts: int) -> Any:
    """Tensors of two halves (negative, positive), the positive one for each part of the prompts."""
    if isinstance(conditions, dict):
        return {k: repeat_positive(v, pictures, parts) for k, v in conditions.items()}
    if isinstance(conditions, list | tuple):
        return type(conditions)(repeat_positive(v, pictures, parts) for v in conditions)
    if isinstance(conditions, torch.Tensor) and len(conditions) == 2 * pictures:
        return torch.cat([conditions[:pictures], *[conditions[pictures:]] * parts])
    return conditions
