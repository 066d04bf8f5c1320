"""Textual inversion (arXiv:2208.01618): new words for the text encoder, added and taken away.

The pipelines' ``load_textual_inversion`` and ``unload_textual_inversion`` come here. A token that
stands for several vectors is several tokens, ``<cat>``, ``<cat>_1``, ``<cat>_2``;
`maybe_convert_prompt` in ``conditioning.py`` writes them out in prompts. Works with this package's
tokenizer and text encoder and with those of transformers. Nothing is changed before everything was
read and checked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sfumato.checkpoints.hub_names import take_hub_options
from sfumato.checkpoints.keywords import reject_unknown, without_hub_keywords
from sfumato.config import Config
from sfumato.errors import InputError, TokenizerError
from sfumato.text import token_removal
from sfumato.text.bpe import without_surrogates
from sfumato.text.embedding_files import Embedding, read_embedding

logger = logging.getLogger(__name__)

Source = str | PathLike[str] | Mapping[str, Tensor] | Tensor

#: Which models have token vectors of a width, for messages.
_MODELS = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    1280: "the second text encoder of Stable Diffusion XL",
}

#: Rows that a text encoder had beyond its tokenizer's tokens, kept until its last token goes.
_surplus: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()


@dataclass(frozen=True)
class _NewToken:
    token: str
    vector: Tensor


def load_textual_inversion(
    tokenizer: Any,
    text_encoder: Any,
    sources: Source | Sequence[Source],
    token: str | Sequence[str | None] | None = None,
    **kwargs: Any,
) -> list[str]:
    """Add embeddings; both objects stay as they were when anything is wrong.

    Args:
        tokenizer, text_encoder: the pair that gets the tokens.
        sources: a file, a folder, a name on the hub, a dictionary, a tensor (which needs
            ``token``), or a list of these. Files: see `sfumato.text.embedding_files`.
        token: the word in prompts, in place of the name in the file; a list for a list. A single
            tensor ``(n, width)`` with a list of n tokens gives one vector to each.
        kwargs: ``weight_name``, ``subfolder``, ``use_safetensors``; and how to ask the hub:
            ``hf_token`` and what else `sfumato.checkpoints.hub_names.HubOptions` has.

    Returns:
        The tokens that were added.

    Raises:
        InputError: (a ``ValueError``) the lists do not fit each other, a token is taken or
            missing, or the vectors are of another width than the text encoder's.
        CheckpointError: (an ``OSError``) a file is missing, damaged or unsafe.
        TokenizerError: (a ``ValueError``) tokenizer and text encoder do not belong together.
    """
    _require_parts(tokenizer, text_encoder, "load_textual_inversion")
    if "hf_token" in kwargs:  # for `token` is the word here
        kwargs["token"] = kwargs.pop("hf_token")
    hub = take_hub_options(kwargs)
    kwargs = without_hub_keywords(kwargs)
    known = {"weight_name", "subfolder", "use_safetensors"}
    reject_unknown("load_textual_inversion()", kwargs, known)
    listed = list(sources) if isinstance(sources, list | tuple) else [sources]
    names = list(token) if isinstance(token, list | tuple) else [token]
    listed, names = _matched(listed, names)
    embeddings = [read_embedding(source, hub=hub, **kwargs) for source in listed]
    new = _new_tokens(embeddings, names, tokenizer.get_vocab())
    if new:
        _add(tokenizer, text_encoder, new)
    for item in new:
        logger.info("Loaded textual inversion embedding for %s.", item.token)
    return [item.token for item in new]


def unload_textual_inversion(
    tokenizer: Any, text_encoder: Any, tokens: str | Sequence[str] | None = None
) -> None:
    """Take embeddings away; the remaining added tokens move up.

    When none is left, tokenizer and text encoder are bit-equal to what they were.

    Args:
        tokens: which; one of several vectors goes with all of them. ``None`` for every added
            token that is not a special one.

    Raises:
        InputError: (a ``ValueError``) there is no such token.
    """
    _require_parts(tokenizer, text_encoder, "unload_textual_inversion")
    there = _added(tokenizer)
    gone = set(there) if tokens is None else _families(tokens, there)
    if not gone:
        return
    table = text_encoder.get_input_embeddings()
    base = tokenizer.vocab_size
    dropped = {there[name] for name in gone}
    rows = [i for i in range(base, len(tokenizer)) if i not in dropped and i < len(table.weight)]
    parts = [table.weight.data[:base], table.weight.data[rows]]
    if len(gone) == len(there) and text_encoder in _surplus:
        parts.append(_surplus[text_encoder].to(table.weight))
    weight = torch.cat(parts)
    token_removal.remove_tokens(tokenizer, gone)
    _set_rows(text_encoder, weight)
    if len(gone) == len(there):
        _surplus.pop(text_encoder, None)


# What to add


def _require_parts(tokenizer: Any, text_encoder: Any, call: str) -> None:
    for name, part, kind in (
        ("tokenizer", tokenizer, "PreTrainedTokenizer"),
        ("text_encoder", text_encoder, "PreTrainedModel"),
    ):
        if part is None:
            raise InputError(
                f"The pipeline has no {name}: `{call}` requires `self.{name}` or passing a"
                f" `{name}` of type `{kind}`."
            )


def _matched(sources: list[Any], names: list[Any]) -> tuple[list[Any], list[Any]]:
    """As many names as sources."""
    for name in names:
        if name is not None:
            _check_token(name)
    given = [name for name in names if name is not None]
    if len(set(given)) < len(given):
        raise InputError(f"You have passed a list of tokens that contains duplicates: {given}.")
    if len(names) == 1 and names[0] is None:
        return sources, names * len(sources)
    if len(sources) == 1 and len(names) > 1 and isinstance(sources[0], Tensor):
        if sources[0].ndim != 2 or len(sources[0]) != len(names):
            raise InputError(
                f"You have passed a tensor of shape {tuple(sources[0].shape)} and a list of tokens"
                f" of length {len(names)}. Make sure that there is one row for each token."
            )
        return list(sources[0]), names
    if len(sources) != len(names):
        raise InputError(
            f"You have passed a list of models of length {len(sources)}, and list of tokens of"
            f" length {len(names)}. Make sure both lists have the same length."
        )
    return sources, names


def _check_token(token: Any) -> None:
    if not isinstance(token, str) or not token.strip() or without_surrogates(token) != token:
        raise InputError(f"A token has to be a text with something in it but is {token!r}.")


def _new_tokens(
    embeddings: Iterable[Embedding], names: Iterable[str | None], vocabulary: Mapping[str, int]
) -> list[_NewToken]:
    taken, new = set(vocabulary), []
    for embedding, name in zip(embeddings, names, strict=True):
        token = embedding.token if name is None else name
        if token is None:
            raise InputError(
                f"{embedding.where} is a textual inversion embedding without a name for its token.",
                hint="Make sure to pass the name in this case: `token=...`.",
            )
        _check_token(token)
        if name is None and token == "emb_params":
            logger.warning("%s names no token; it is `emb_params` now.", embedding.where)
        elif name is not None and embedding.token not in (None, name):
            logger.info("The loaded token %s is overwritten by %s.", embedding.token, name)
        count = len(embedding.vectors)
        tokens = [token, *(f"{token}_{i}" for i in range(1, count))]
        _check_free(tokens, taken)
        taken.update(tokens)
        new += map(_NewToken, tokens, embedding.vectors)
    return new


def _check_free(tokens: list[str], taken: set[str]) -> None:
    if tokens[0] in taken:
        raise InputError(
            f"Token {tokens[0]} already in tokenizer vocabulary. Please choose a different token"
            f" name or remove {tokens[0]} and embedding from the tokenizer and text encoder."
        )
    others = [t for t in dict.fromkeys([*tokens[1:], f"{tokens[0]}_1"]) if t in taken]
    if others:
        raise InputError(
            f"Multi-vector Token {others} already in tokenizer vocabulary. Please choose a"
            f" different token name or remove the {others} and embedding from the tokenizer and"
            " text encoder."
        )


# Changing the pair


def _add(tokenizer: Any, text_encoder: Any, new: list[_NewToken]) -> None:
    table = text_encoder.get_input_embeddings()
    weight, before = table.weight.data, len(tokenizer)
    if weight.is_meta:
        raise InputError(
            "The text encoder's weights are not in memory: another library has offloaded them.",
            hint="Load textual inversions before offloading.",
        )
    if len(weight) < before:
        raise TokenizerError(
            f"The tokenizer has {before} tokens, but the text encoder only {len(weight)}.",
            hint="They have to come from the same model.",
        )
    vectors = torch.stack([_fitted(item, weight) for item in new])
    grown = torch.cat([weight[:before], vectors])
    surplus = weight[before:].clone()
    try:
        tokenizer.add_tokens([item.token for item in new])
        ids = tokenizer.convert_tokens_to_ids([item.token for item in new])
        if list(ids) != list(range(before, before + len(new))):
            raise TokenizerError("The tokenizer did not take the new tokens one after the other.")
    except Exception:
        added = _added(tokenizer)
        token_removal.remove_tokens(tokenizer, {i.token for i in new if i.token in added})
        raise
    if len(surplus):
        _surplus[text_encoder] = surplus
    _set_rows(text_encoder, grown)


def _fitted(item: _NewToken, weight: Tensor) -> Tensor:
    """A vector as a row of the table; raises `InputError` when it is of another model."""
    width, found = weight.shape[1], item.vector.shape[0]
    if width != found:
        made_for = f" (as for {_MODELS[found]})" if found in _MODELS else ""
        needed = f" ({_MODELS[width]})" if width in _MODELS else ""
        raise InputError(
            "Loaded embeddings are of incorrect shape. Expected each textual inversion embedding to"
            f" be of width {width}{needed}, but that of {item.token[:80]!r} has {found}{made_for}.",
            hint="Use an embedding that was made for the same base model.",
        )
    row = item.vector.to(weight)
    if not bool(torch.isfinite(row).all()):
        raise InputError(
            f"The embedding of {item.token[:80]!r} has numbers too large for {weight.dtype}.",
            hint="Load the pipeline in bfloat16 or float32.",
        )
    return row


def _set_rows(text_encoder: Any, weight: Tensor) -> None:
    """Another table in the same module, so that hooks on it stay; the configuration follows."""
    table = text_encoder.get_input_embeddings()
    table.weight = nn.Parameter(weight, requires_grad=table.weight.requires_grad)
    table.num_embeddings = len(weight)
    if isinstance(text_encoder.config, Config):
        text_encoder.config = text_encoder.config.replace(vocab_size=len(weight))
    else:
        text_encoder.config.vocab_size = len(weight)


# What was added


def _added(tokenizer: Any) -> dict[str, int]:
    """Tokens beyond the vocabulary that are not special, with their ids."""
    return {
        token.content: index
        for index, token in sorted(tokenizer.added_tokens_decoder.items())
        if index >= tokenizer.vocab_size and not token.special
    }


def _families(tokens: str | Sequence[str], there: Mapping[str, int]) -> set[str]:
    named = [tokens] if isinstance(tokens, str) else list(tokens)
    unknown = [token for token in named if token not in there]
    if unknown:
        known = ", ".join(list(there)[:10]) or "none"
        raise InputError(f"No tokens to remove found: {unknown[:10]}. Those added are: {known}.")
    family = set(named)
    for token in named:
        index = 1
        while f"{token}_{index}" in there:
            family.add(f"{token}_{index}")
            index += 1
    return family
