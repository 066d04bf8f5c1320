"""What a file or folder is, without loading it: kind, base model, precision, rank, words, hashes.

`sfumato info` shows what `inspect_file` returns. Headers, and the pickles around tensors, are
read as data; numbers are read only for the hashes and where ``verify`` asks for it. torch is
imported in two cases: to verify, and to tell what a Stable Diffusion 2 checkpoint predicts.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfumato.checkpoints import training_notes
from sfumato.checkpoints.file_hashes import Hashes, hash_file
from sfumato.checkpoints.files import is_regular, open_regular, shown
from sfumato.checkpoints.gguf.header import MAGIC
from sfumato.checkpoints.header import DTYPE_BITS, what_it_looks_like
from sfumato.checkpoints.model_index import INDEX_NAME, read_model_index
from sfumato.checkpoints.original.detection import detect_family
from sfumato.checkpoints.original.families import family
from sfumato.checkpoints.original.parts import AVERAGE_PREFIX, COMPONENTS, find_part
from sfumato.checkpoints.original.prediction import choose_prediction
from sfumato.checkpoints.places import model_root, read_config
from sfumato.checkpoints.recognise import BASES, LATENT_DIFFUSION, recognise
from sfumato.checkpoints.source import Source, open_source, shapes_of
from sfumato.checkpoints.torch_file import ZIP_START, read_torch_file, table_of
from sfumato.checkpoints.torch_rebuild import StoredTensor
from sfumato.checkpoints.weight_files import parse_name
from sfumato.errors import CheckpointError

#: How many bytes of tensors `verify` holds at a time.
_VERIFY_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """What is known of a file or folder; empty and None where nothing is.

    Attributes:
        path: as given.
        kind: ``checkpoint``, ``lora``, ``embedding``, ``vae``, ``unet``, ``folder``, ``unknown``...
        description: the kind in a few words.
        format: ``safetensors``, ``pickle``, ``gguf`` or ``diffusers``.
        base_model: the model that it is, or is made for.
        prediction_type: what a UNet predicts, and ``prediction_reason`` why that is believed.
        components: networks in it, or the components of a folder with their classes.
        precision: dtype to number of parameters, the most frequent first.
        tensors, parameters: how many.
        averaged_weights: the file holds averaged (EMA) weights beside the others.
        adapter: of adapters: families, ranks, networks they act on, as text.
        vectors: of embeddings: how many, and how wide.
        trigger_words: that the file's metadata gives.
        frequent_tags: the tags of the training captions, the most frequent first.
        training: how it was trained, as far as the metadata tells.
        metadata: the text in the file, unchanged.
        size: in bytes.
        hashes: see `Hashes`.
        not_finite: names of tensors with NaN or infinity; None when not verified.
    """

    path: str
    kind: str
    description: str | None = None
    format: str
    base_model: str | None = None
    prediction_type: str | None = None
    prediction_reason: str | None = None
    components: Mapping[str, str] = field(default_factory=dict)
    precision: Mapping[str, int] = field(default_factory=dict)
    tensors: int = 0
    parameters: int = 0
    averaged_weights: bool = False
    adapter: Mapping[str, str] = field(default_factory=dict)
    vectors: tuple[int, int] | None = None
    trigger_words: tuple[str, ...] = ()
    frequent_tags: tuple[str, ...] = ()
    training: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    hashes: Hashes | None = None
    not_finite: tuple[str, ...] | None = None


def inspect_file(
    path: str | os.PathLike[str], *, hashes: bool = True, verify: bool = False
) -> FileInfo:
    """Find out what a file of weights, or a model's folder, is.

    Args:
        path: the file or folder.
        hashes: compute them, which reads the whole file once.
        verify: check every tensor for NaN and infinity.

    Raises:
        CheckpointError: it is no readable file or folder, damaged, or unsafe.
        ConfigError: a folder's configuration is wrong.
    """
    place = Path(path)
    if place.is_dir():
        return _inspect_folder(place, verify)
    _require_weights(place)
    try:
        source = open_source(place)
    except CheckpointError:
        embedding = _embedding_in_pickle(place)
        if embedding is None:
            raise
        return _finish(embedding, place, hashes)
    return _finish(_inspect_source(place, source, verify), place, hashes)


def _require_weights(path: Path) -> None:
    """Raise `CheckpointError` for a file that does not even begin like one of weights."""
    with open_regular(path) as file:
        start = file.read(64)
    if start[8:9] != b"{" and not start.startswith((ZIP_START, b"\x80", MAGIC)):
        guess = what_it_looks_like(start)
        raise CheckpointError(
            f"{shown(path)} is neither a picture nor a file of weights"
            f"{f' but {guess}' if guess else ''}."
        )


def _finish(values: dict[str, Any], path: Path, hashes: bool) -> FileInfo:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
    found = hash_file(path) if hashes else None
    return FileInfo(path=str(path), size=size, hashes=found, **values)


# A file


def _inspect_source(path: Path, source: Source, verify: bool) -> dict[str, Any]:
    shapes = shapes_of(source)
    kind = recognise(shapes)
    notes = training_notes.read_notes(source.metadata)
    values: dict[str, Any] = {
        "kind": kind.name if kind else "unknown",
        "description": kind.phrase if kind else None,
        "format": _format_of(path),
        "base_model": kind.base if kind else None,
        "metadata": dict(source.metadata),
        "trigger_words": notes.trigger_words,
        "frequent_tags": notes.frequent_tags,
        "training": notes.facts,
        "averaged_weights": any(name.startswith(AVERAGE_PREFIX) for name in shapes),
        **_amounts(source),
    }
    if values["kind"] == "checkpoint":
        values |= _checkpoint(source)
    elif values["kind"] == "lora":
        from sfumato.checkpoints.adapter_notes import describe_adapter

        values["adapter"] = describe_adapter(shapes)
        values["base_model"] = values["base_model"] or notes.base_model
    elif values["kind"] == "embedding":
        shape = next(iter(shapes.values()))
        values["vectors"] = (1 if len(shape) == 1 else shape[0], shape[-1])
        values["trigger_words"] = notes.trigger_words or (path.stem,)
    if verify:
        values["not_finite"] = tuple(_not_finite(source))
    return values


def _format_of(path: Path) -> str:
    with open_regular(path) as file:
        start = file.read(9)
    if start[8:9] == b"{":
        return "safetensors"
    return "gguf" if start.startswith(MAGIC) else "pickle"


def _amounts(source: Source) -> dict[str, Any]:
    precision: Counter[str] = Counter()
    for stored in source.tensors.values():
        precision[stored.dtype] += _count(stored.shape)
    return {
        "precision": dict(precision.most_common()),
        "tensors": len(source.tensors),
        "parameters": precision.total(),
    }


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _checkpoint(source: Source) -> dict[str, Any]:
    """Family and prediction type, of checkpoints that can be loaded."""
    shapes = shapes_of(source)
    parts = {c: find_part(shapes, c) for c in (*COMPONENTS, "conditioner")}
    values: dict[str, Any] = {
        "components": {c: part.layout for c, part in parts.items() if part is not None}
    }
    unet = parts["unet"]
    try:
        found = detect_family(shapes, source.where)
    except CheckpointError:
        return values
    assert unet is not None  # else there would be no family
    prediction = choose_prediction(
        found,
        unet,
        metadata=source.metadata,
        names=source.tensors,
        facts=source.facts,
        deviation=lambda name: _deviation(source, name),
    )
    if found.name == "stable-diffusion-v2" and prediction.type == "v_prediction":
        found = family("stable-diffusion-v2-v")
    return values | {
        "base_model": found.title,
        "prediction_type": prediction.type,
        "prediction_reason": prediction.reason,
    }


def _deviation(source: Source, name: str) -> float:
    tensor = source.read([name], check_finite=False)[name].float()
    return float(tensor.std(unbiased=False))


def _not_finite(source: Source) -> Iterator[str]:
    """Names of tensors with NaN or infinity, read a part at a time."""
    from sfumato.checkpoints.tensors import is_finite

    group: list[str] = []
    size = 0
    for name, stored in [*source.tensors.items(), (None, None)]:
        if name is not None and stored is not None:
            size += _count(stored.shape) * DTYPE_BITS.get(stored.dtype, 8) // 8
            group.append(name)
        if group and (size >= _VERIFY_BYTES or name is None):
            for read, tensor in source.read(group, check_finite=False, mmap=False).items():
                if not is_finite(tensor):
                    yield read
            group, size = [], 0


def _embedding_in_pickle(path: Path) -> dict[str, Any] | None:
    """An embedding as A1111 writes it, whose tensor lies in a table of its own."""
    with open_regular(path) as file:
        start = file.read(2)
    if start not in (b"PK", b"\x80\x02"):
        return None
    content = read_torch_file(path).content
    table = table_of(content.get("string_to_param")) if isinstance(content, Mapping) else None
    vectors = [v for v in table.values() if isinstance(v, StoredTensor)] if table else []
    if not vectors or not vectors[0].shape:
        return None
    shape, name = vectors[0].shape, content.get("name")
    facts = {
        key: str(content[key])
        for key in ("step", "sd_checkpoint", "sd_checkpoint_name")
        if isinstance(content.get(key), int | str)
    }
    return {
        "kind": "embedding",
        "description": "an embedding, which is loaded with `load_textual_inversion`",
        "format": "pickle",
        "base_model": BASES.get(shape[-1]),
        "precision": {vectors[0].dtype: _count(shape)},
        "tensors": 1,
        "parameters": _count(shape),
        "vectors": (1 if len(shape) == 1 else shape[0], shape[-1]),
        "trigger_words": (name if isinstance(name, str) else path.stem,),
        "training": facts,
    }


# A folder


def _inspect_folder(path: Path, verify: bool) -> FileInfo:
    root = model_root(path)
    if not (root / INDEX_NAME).is_file():
        return _inspect_network_folder(root, verify)
    index = read_model_index(root)
    present = {n: entry[1] for n, entry in index.components.items() if entry[1] is not None}
    sources = [open_source(file) for name in present for file in _weights(root / name)]
    scheduler = _config(root / "scheduler", "scheduler_config.json", root)
    unet = _config(root / "unet", "config.json", root)
    said = scheduler.get("prediction_type", "epsilon" if scheduler else None)
    return FileInfo(
        path=str(path),
        kind="folder",
        description=f"a folder of {index.class_name or 'a pipeline'}",
        format="diffusers",
        base_model=_base_of_pipeline(index.class_name or "") or _base_of_config(unet),
        prediction_type=said if isinstance(said, str) else None,
        prediction_reason="the folder's scheduler" if said else None,
        components={name: str(kind) for name, kind in present.items()},
        **_totals(sources, verify),
    )


def _inspect_network_folder(root: Path, verify: bool) -> FileInfo:
    config = read_config(root, "config.json", root)
    name = config.get("_class_name") or (config.get("architectures") or ["a network"])[0]
    sources = [open_source(file) for file in _weights(root)]
    return FileInfo(
        path=str(root),
        kind="folder",
        description=f"a folder of {str(name)[:80]}",
        format="diffusers",
        base_model=_base_of_config(config),
        **_totals(sources, verify),
    )


def _weights(folder: Path) -> list[Path]:
    """The files of weights in a component's folder, without those of variants."""
    if not folder.is_dir():
        return []
    found = [(file, parse_name(file.name)) for file in sorted(folder.iterdir())]
    plain = [(f, n) for f, n in found if n and not n.is_index and is_regular(f)]
    safe = [(f, n) for f, n in plain if n.safe] or plain
    variants = {n.variant for _, n in safe}
    chosen = None if None in variants else min(variants, default=None, key=str)
    return [f for f, n in safe if n.variant == chosen]


def _config(folder: Path, name: str, root: Path) -> dict[str, Any]:
    return read_config(folder, name, root) if (folder / name).is_file() else {}


def _base_of_pipeline(name: str) -> str | None:
    return LATENT_DIFFUSION if name.startswith(("LDM", "LatentDiffusion")) else None


def _base_of_config(config: Mapping[str, Any]) -> str | None:
    width = config.get("cross_attention_dim", config.get("hidden_size"))
    return BASES.get(width) if isinstance(width, int) else None


def _totals(sources: list[Source], verify: bool) -> dict[str, Any]:
    precision: Counter[str] = Counter()
    for source in sources:
        precision.update(_amounts(source)["precision"])
    bad = [f"{s.where}: {name}" for s in sources for name in _not_finite(s)] if verify else None
    return {
        "precision": dict(precision.most_common()),
        "tensors": sum(len(source.tensors) for source in sources),
        "parameters": precision.total(),
        "not_finite": None if bad is None else tuple(bad),
    }


def require_sound(info: FileInfo) -> None:
    """Raise `CheckpointError` when verifying found tensors that are not finite."""
    if info.not_finite:
        raise CheckpointError(
            f"{shown(info.path)}: {len(info.not_finite)} tensors hold NaN or infinity, among them "
            f"{info.not_finite[0][:120]!r}.",
            hint="Training or conversion went wrong; get the file again.",
        )
