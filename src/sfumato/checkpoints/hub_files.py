"""Which files of a model on the hub are needed: decided from names, before anything is fetched.

A repository often has every network three times over (safetensors, pickles, other frameworks) and
in several precisions, and beside that whole checkpoints. Of all these one is chosen, as it would
be chosen in a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from sfumato.checkpoints.hub import HubModel
from sfumato.checkpoints.weight_files import choose_weights, file_names, read_index
from sfumato.errors import ModelNotFoundError

#: Files that are a vocabulary, the first found counts: CLIP's, BERT's, or any in one file.
_VOCABULARIES = (("vocab.json", "merges.txt"), ("vocab.txt",), ("tokenizer.json",))
_TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def joined(folder: str | None, *names: str) -> str:
    """A path in a repository.

    >>> joined("./models/", "image_encoder"), joined(None, "config.json")
    ('models/image_encoder', 'config.json')
    """
    path = PurePosixPath((folder or "").replace("\\", "/"), *names).as_posix()
    return "" if path == "." else path


def network_files(
    model: HubModel,
    folder: str | None,
    bases: Mapping[bool, str],
    *,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    fall_back: bool = False,
) -> list[str]:
    """``config.json`` and the weights, as `sfumato.checkpoints.weight_files` would choose them.

    Raises:
        SfumatoError: there are none.
    """
    config = joined(folder, "config.json")
    if not model.has(config):
        raise model.lacks(config)
    place = joined(folder)
    where = f"{model.name!r} on the hub" + (f", folder {place!r}," if place else "")
    try:
        choice = choose_weights(
            model.names_in(place),
            where,
            bases,
            variant=variant,
            use_safetensors=use_safetensors,
            fall_back=fall_back,
        )
    except ModelNotFoundError as error:
        safe = use_safetensors is not False
        usual = file_names(bases[safe], safe, variant, 1)[0]
        raise model.lacks(joined(folder, usual), error.message, error.hint) from None
    found = joined(folder, choice.name)
    shards = set(read_index(model.get(found), choice.safe).values()) if choice.is_index else ()
    return [config, found, *(joined(folder, shard) for shard in sorted(shards))]


def tokenizer_files(model: HubModel, folder: str | None) -> list[str]:
    """The vocabulary and what else a tokenizer's folder has.

    Raises:
        SfumatoError: it has no vocabulary.
    """
    names = set(model.names_in(joined(folder)))
    vocabulary = next((v for v in _VOCABULARIES if names.issuperset(v)), None)
    if vocabulary is None:
        usual = _VOCABULARIES[0]
        raise model.lacks(joined(folder, next(n for n in usual if n not in names)))
    return [joined(folder, n) for n in (*vocabulary, *_TOKENIZER_EXTRAS) if n in names]
