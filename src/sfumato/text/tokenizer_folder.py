"""Folders of a tokenizer: what transformers writes, read and written.

``CLIPTokenizer.from_pretrained`` and ``save_pretrained`` come here. Of ``tokenizer_config.json``,
``special_tokens_map.json`` and ``added_tokens.json`` only known facts are taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken

from sfumato.checkpoints.atomic import atomic_directory
from sfumato.checkpoints.files import checked_path, is_regular, shown
from sfumato.checkpoints.hub import local_copy
from sfumato.checkpoints.hub_files import tokenizer_files
from sfumato.checkpoints.hub_names import take_hub_options
from sfumato.errors import (
    ModelNotFoundError,
    TokenizerError,
    UnknownKeywordError,
    did_you_mean,
)
from sfumato.text.bpe import without_surrogates
from sfumato.text.vocabulary import (
    Vocabulary,
    merges_as_text,
    read_json_object,
    read_tokenizer_json,
    read_vocab_and_merges,
)

if TYPE_CHECKING:
    from sfumato.text.tokenizer import CLIPTokenizer

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
_SETTINGS = ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces")

#: Arguments that scripts pass for transformers' own classes.
_IGNORED = frozenset(
    "from_slow mirror resume_download trust_remote_code use_fast variant".split()  # noqa: SIM905
)

#: transformers writes 1e30 where it does not know the length; no text encoder has so many.
_LARGEST_LENGTH = 1_000_000


def read(
    path: str | PathLike[str], subfolder: str | None, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments with which `CLIPTokenizer` is built from a folder or the hub.

    Raises:
        HubError: when the hub cannot be reached, or refuses.
        ModelNotFoundError: when the folder has no vocabulary.
        TokenizerError: when a file cannot be used.
        UnknownKeywordError: when an override is unknown.
    """
    given = dict(overrides)
    hub = take_hub_options(given)
    overrides = {k: v for k, v in given.items() if k not in _IGNORED}
    known = (*_ROLES, "additional_special_tokens", *_SETTINGS)
    for name in overrides:
        if name not in known:
            raise UnknownKeywordError(
                f"CLIPTokenizer has no option `{name[:80]}`.{did_you_mean(name, known)}"
            )
    path = local_copy(path, hub, lambda model: tokenizer_files(model, subfolder))
    folder = checked_path(path) / (subfolder or "")
    vocabulary, added = _read_vocabulary(folder)
    config = _optional(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        stated = config["added_tokens_decoder"]
        if not isinstance(stated, dict):
            raise TokenizerError("`added_tokens_decoder` in tokenizer_config.json is no object.")
        added |= {_index(key): _token(value) for key, value in stated.items()}
    else:  # files from before transformers 4.34: there the map of special tokens is right
        config = {**config, **_optional(folder / "special_tokens_map.json")}
        for content, index in _optional(folder / "added_tokens.json").items():
            special = content in [_content(config.get(role)) for role in _ROLES]
            flags = {"normalized": not special, "special": special}
            added.setdefault(_index(index), _token({"content": content, **flags}))
    return {
        "vocabulary": vocabulary,
        "added_tokens": added,
        **_roles(config, {token.content: token for token in added.values()}),
        **_settings(config),
        **overrides,
    }


def write(tokenizer: CLIPTokenizer, path: str | PathLike[str]) -> tuple[str, ...]:
    """Write the files that `read` and transformers' two CLIP tokenizers load; whole or not at all.

    Returns:
        The paths of the files.
    """
    added = sorted(tokenizer.added_tokens_decoder.items())
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "added_tokens_decoder": {str(i): _as_json(token) for i, token in added},
        **tokenizer.special_tokens_map,
        **{name: getattr(tokenizer, name) for name in _SETTINGS},
    }
    contents = {
        "vocab.json": _dump(tokenizer.vocabulary.tokens),
        "merges.txt": merges_as_text(tokenizer.vocabulary.merges),
        "tokenizer_config.json": _dump(config),
        "special_tokens_map.json": _dump(tokenizer.special_tokens_map),
    }
    folder = checked_path(path)
    with atomic_directory(folder) as temporary:
        for name, text in contents.items():
            (temporary / name).write_text(text, encoding="utf-8")
    return tuple(str(folder / name) for name in contents)


def _read_vocabulary(folder: Path) -> tuple[Vocabulary, dict[int, AddedToken]]:
    vocab, merges, whole = (folder / n for n in ("vocab.json", "merges.txt", "tokenizer.json"))
    if is_regular(vocab) and is_regular(merges):
        return read_vocab_and_merges(vocab, merges), {}
    if not is_regular(whole):
        raise ModelNotFoundError(
            f"The folder {shown(folder)} has no tokenizer: neither `vocab.json` with `merges.txt` "
            "nor `tokenizer.json`.",
            hint="`CLIPTokenizer()` without a folder has the vocabulary of Stable Diffusion 1.x.",
        )
    vocabulary, listed = read_tokenizer_json(whole)
    return vocabulary, {_index(token.get("id")): _token(token) for token in listed}


def _optional(file: Path) -> dict[str, Any]:
    return read_json_object(file) if is_regular(file) else {}


def _roles(config: Mapping[str, Any], added: Mapping[str, AddedToken]) -> dict[str, Any]:
    """The special tokens that a configuration names, with the flags of the added tokens."""
    roles: dict[str, Any] = {}
    for role in _ROLES:
        value = config.get(role)
        if value is not None:
            content = _content(value)
            if content is None:
                raise TokenizerError(f"`{role}` is {str(value)[:80]!r}, which is no token.")
            named = _token(value, special=True) if isinstance(value, dict) else content
            roles[role] = added.get(content, named)
    more = config.get("additional_special_tokens") or []
    if not isinstance(more, list):
        raise TokenizerError("`additional_special_tokens` has to be a list of tokens.")
    roles["additional_special_tokens"] = [
        token if isinstance(token, str) else _token(token, special=True) for token in more
    ]
    return roles


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    settings = {name: config[name] for name in _SETTINGS if config.get(name) is not None}
    length = settings.pop("model_max_length", None)
    if length is None:
        return settings
    if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 2:
        raise TokenizerError(f"`model_max_length` has to be at least 2 but is {str(length)[:40]}.")
    if length <= _LARGEST_LENGTH:
        settings["model_max_length"] = int(length)
    return settings


def _index(value: Any) -> int:
    try:
        index = int(value)
    except (TypeError, ValueError, OverflowError):
        index = -1
    if not 0 <= index < 2**31:
        raise TokenizerError(f"An added token has {str(value)[:40]!r} where its id should be.")
    return index


def _content(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _token(value: Any, special: bool | None = None) -> AddedToken:
    """An added token from the object that describes it in a file."""
    content = _content(value) if isinstance(value, dict) else None
    if not content or without_surrogates(content) != content:
        raise TokenizerError(f"An added token is {str(value)[:80]!r}, without valid `content`.")
    flags = {name: bool(value[name]) for name in _FLAGS if name in value}
    return AddedToken(content, **({**flags, "special": special} if special else flags))


def _as_json(token: AddedToken) -> dict[str, Any]:
    return {"content": token.content, **{name: getattr(token, name) for name in _FLAGS}}


def _dump(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
