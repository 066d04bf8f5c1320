"""Which files of a folder hold a network's weights: formats, variants and shards.

A folder in diffusers' layout has ``<base>[.<variant>].safetensors`` or ``.bin``, or several
shards of either with a JSON index that says which tensor is in which shard.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.checkpoints.files import is_regular, require_inside, shown
from sfumato.checkpoints.jsonfile import read_json
from sfumato.errors import CheckpointError, ConfigError, InputError, ModelNotFoundError

logger = logging.getLogger(__name__)

#: An index of 100,000 tensors has some 10 MB.
MAX_INDEX_BYTES = 32 * 2**20

#: The base name of networks; transformers names its pickles differently from its safetensors.
DEFAULT_BASE = "diffusion_pytorch_model"
_PICKLE_BASE = {"model": "pytorch_model"}

_ENDINGS = {True: "safetensors", False: "bin"}
_NAMES = [
    re.compile(pattern)
    for pattern in (
        r"(?P<base>\w+)(?:\.(?P<variant>\w[\w.-]*?))?(?:-\d{5}-of-\d{5})?\.(?P<end>safetensors|bin)",
        r"(?P<base>\w+)\.(?P<end>safetensors|bin)\.(?P<index>index)(?:\.(?P<variant>\w[\w.-]*))?\.json",
        r"(?P<base>\w+)\.(?P<variant>\w[\w.-]*)\.(?P<end>safetensors|bin)\.(?P<index>index)\.json",
    )
]


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """The files to read.

    Attributes:
        paths: one file, or all shards.
        safe: safetensors rather than pickles.
        weight_map: tensor name to file name, when there are shards.
        variant: the variant found, ``None`` for the plain files.
    """

    paths: tuple[Path, ...]
    safe: bool
    weight_map: Mapping[str, str] | None = None
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class WeightChoice:
    """The file to begin with: the weights themselves, or the index of their shards."""

    name: str
    safe: bool
    variant: str | None

    @property
    def is_index(self) -> bool:
        """Whether it is an index."""
        return self.name.endswith(".json")


@dataclass(frozen=True, slots=True)
class WeightName:
    """What a file name says; ``family`` is the base name, the same for both formats."""

    family: str
    variant: str | None
    safe: bool
    is_index: bool


def parse_name(name: str) -> WeightName | None:
    """Take apart the name of a weight file or an index; ``None`` for other files.

    >>> parse_name("model.fp16-00001-of-00002.safetensors").variant
    'fp16'
    """
    for pattern in _NAMES:
        if match := pattern.fullmatch(name):
            parts = match.groupdict()
            base = next((k for k, v in _PICKLE_BASE.items() if v == parts["base"]), parts["base"])
            return WeightName(base, parts["variant"], parts["end"] != "bin", "index" in parts)
    return None


def base_names(model_class: Any) -> dict[bool, str]:
    """File names without ending, for safetensors (True) and pickles (False).

    A network of transformers says so by ``weights_name = "model.safetensors"``.
    """
    base = getattr(model_class, "weights_name", DEFAULT_BASE).removesuffix(".safetensors")
    return {True: base, False: _PICKLE_BASE.get(base, base)}


def check_variant(variant: str | None) -> None:
    """Raise `InputError` unless the variant can be a part of a file name."""
    if variant is not None and not (
        isinstance(variant, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", variant)
    ):
        raise InputError(
            f"`variant` has to be a short word such as 'fp16' but is {str(variant)[:80]!r}."
        )


def find_weights(
    folder: Path,
    bases: Mapping[bool, str],
    *,
    root: Path | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    fall_back: bool = False,
) -> WeightFiles:
    """Choose the weight files of a folder.

    Args:
        folder: where to look.
        bases: see `base_names`.
        root: the model's folder that no link may leave; default ``folder``.
        variant: such as ``"fp16"``.
        use_safetensors: True for these only, False for pickles only, None for pickles when there
            are no safetensors.
        fall_back: take the plain files, with a warning, when there are none of the variant.

    Raises:
        ModelNotFoundError: when there are no such files; the message says what there is.
        CheckpointError: when an index names files that are missing or outside the folder.
    """
    root = folder if root is None else root
    choice = choose_weights(
        [path.name for path in folder.iterdir() if is_regular(path)],
        f"The folder {shown(folder)}",
        bases,
        variant=variant,
        use_safetensors=use_safetensors,
        fall_back=fall_back,
    )
    if choice.variant != variant:
        logger.warning(
            "%s has no files of the variant '%s'; the plain ones are loaded.",
            shown(folder),
            variant,
        )
    path = require_inside(folder / choice.name, root)
    if choice.is_index:
        return _from_index(path, choice, root)
    return WeightFiles(paths=(path,), safe=choice.safe, variant=choice.variant)


def choose_weights(
    names: Collection[str],
    where: str,
    bases: Mapping[bool, str],
    *,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    fall_back: bool = False,
) -> WeightChoice:
    """Choose among the names of a folder's files; arguments as of `find_weights`.

    Raises:
        ModelNotFoundError: there is none to choose; ``where`` names the folder in the message.
    """
    check_variant(variant)
    formats = (True, False) if use_safetensors is None else (bool(use_safetensors),)
    for kind in (variant, None) if fall_back and variant is not None else (variant,):
        for safe in formats:
            for name in _names(bases[safe], safe, kind):
                if name in names:
                    return WeightChoice(name, safe, kind)
    raise _nothing_found(names, where, bases, variant, formats)


def has_variant(has: Callable[[str], bool], bases: Mapping[bool, str], variant: str) -> bool:
    """Whether there are files of the variant, in any format; ``has`` knows a folder's names."""
    return any(has(name) for safe in (True, False) for name in _names(bases[safe], safe, variant))


def require_variant(
    has: Callable[[str], bool], networks: Mapping[str, Mapping[bool, str]], variant: str | None
) -> None:
    """Raise `InputError` when no network of a model has files of the variant.

    Args:
        has: knows the paths of the model.
        networks: their names to the `base_names` of their classes.
        variant: such as ``"fp16"``; None is always there.
    """
    check_variant(variant)
    if variant is None or not networks:
        return
    for name, bases in networks.items():
        if has_variant(lambda file, name=name: has(f"{name}/{file}"), bases, variant):
            return
    raise InputError(
        f"You are trying to load the model files of the `variant={variant}`, but no such"
        " modeling files are available.",
        hint="Leave out `variant` to load the plain files.",
    )


def file_names(base: str, safe: bool, variant: str | None, count: int) -> list[str]:
    """The names to save ``count`` shards under, as diffusers chooses them."""
    ending = _ENDINGS[safe]
    stem = f"{base}.{variant}" if variant else base
    if count == 1:
        return [f"{stem}.{ending}"]
    return [f"{stem}-{i:05d}-of-{count:05d}.{ending}" for i in range(1, count + 1)]


def index_name(base: str, safe: bool, variant: str | None) -> str:
    """The name to save an index under."""
    ending = _ENDINGS[safe]
    return f"{base}.{ending}.index.{variant}.json" if variant else f"{base}.{ending}.index.json"


def obsolete_weights(new: Path, old: Path) -> Iterator[Path]:
    """Files below ``old`` that a reader could prefer to, or mix with, the weights below ``new``.

    These are indexes and other safetensors of the same variant, and pickles when ``new`` has
    pickles. Indexes are among them even when ``new`` has one of the same name.
    """
    for directory, _, names in os.walk(new):
        saved = [parsed for parsed in map(parse_name, names) if parsed]
        families = {(p.family, p.variant) for p in saved}
        pickles = any(not p.safe for p in saved)
        target = old / Path(directory).relative_to(new)
        for file in sorted(target.iterdir()) if families and target.is_dir() else ():
            parsed = parse_name(file.name)
            if (
                parsed is not None
                and (parsed.family, parsed.variant) in families
                and (parsed.safe or pickles)
                and (parsed.is_index or file.name not in names)
            ):
                yield file


def each_shard(
    files: WeightFiles, names_of: Callable[[Path], Mapping[str, Any]]
) -> Iterator[tuple[str, Any]]:
    """(tensor name, value) from all files, where ``names_of`` reads one.

    Raises:
        CheckpointError: when the shards do not hold what the index says.
    """
    seen: set[str] = set()
    for path in files.paths:
        for name, value in names_of(path).items():
            if files.weight_map is not None and files.weight_map.get(name) != path.name:
                raise CheckpointError(
                    f"{shown(path)} holds the tensor {name[:80]!r}, which its index does not list "
                    "there."
                )
            seen.add(name)
            yield name, value
    missing = [name for name in files.weight_map or () if name not in seen]
    if missing:
        raise CheckpointError(
            f"{shown(files.paths[0].parent)}: the shards lack {len(missing)} tensors that their "
            f"index lists, among them {missing[0][:80]!r}."
        )


def _names(base: str, safe: bool, variant: str | None) -> list[str]:
    """Names to look for, the best first: both spellings of an index, then the single file."""
    ending = _ENDINGS[safe]
    single = file_names(base, safe, variant, 1)[0]
    other_index = f"{base}.{variant}.{ending}.index.json" if variant else None
    names = (index_name(base, safe, variant), other_index, single)
    return [name for name in names if name is not None]


def _from_index(index: Path, choice: WeightChoice, root: Path) -> WeightFiles:
    weight_map = read_index(index, choice.safe)
    paths = []
    for name in sorted(set(weight_map.values())):
        path = require_inside(index.with_name(name), root)
        if not is_regular(path):
            raise CheckpointError(
                f"The shard {shown(path)} is missing.", hint="Fetch the whole folder again."
            )
        paths.append(path)
    return WeightFiles(
        paths=tuple(paths), safe=choice.safe, weight_map=weight_map, variant=choice.variant
    )


def read_index(index: Path, safe: bool) -> dict[str, str]:
    """Which tensor is in which shard, as an index says; the shards lie beside it.

    Raises:
        ConfigError: it is no index.
        CheckpointError: it names what cannot be a shard.
    """
    weight_map = read_json(index, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConfigError(f"{shown(index)} has no `weight_map` from tensors to files.")
    ending = f".{_ENDINGS[safe]}"
    for name in {str(value) for value in weight_map.values()}:
        if re.search(r"[/\\:\0]", name) or name.startswith(".") or not name.endswith(ending):
            raise CheckpointError(
                f"{shown(index)} names the file {name[:80]!r}, which is refused: a shard has to "
                f"lie beside its index and end in {ending}."
            )
    return {tensor: str(name) for tensor, name in weight_map.items()}


def _nothing_found(
    names: Collection[str],
    where: str,
    bases: Mapping[bool, str],
    variant: str | None,
    formats: tuple[bool, ...],
) -> ModelNotFoundError:
    wanted = " or ".join(f"`{file_names(bases[s], s, variant, 1)[0]}`" for s in formats)
    message = f"{where} has no weights: no file named {wanted} found in it."
    parsed = map(parse_name, sorted(names))
    there = [n for n in parsed if n is not None and n.family == bases[True]]
    variants = [n.variant for n in there if n.safe in formats and n.variant]
    hint = None
    if variant is None and variants:
        hint = f"Pass variant={variants[0]!r} to load the files that are there."
    elif any(n.variant == variant for n in there):
        hint = "Leave out `use_safetensors` to load the files that are there."
    elif there:
        hint = "Leave out `variant` to load the files that are there."
    return ModelNotFoundError(message, hint=hint)
