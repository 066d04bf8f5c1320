"""A network as a folder: ``config.json`` and weights, as diffusers and transformers keep them.

`load_model` and `save_model` are what ``from_pretrained`` and ``save_pretrained`` of every network
call. Only data is read: the caller names the class, the file its sizes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from sfumato.checkpoints.arguments import chosen_dtype, floating_dtype, shard_bytes
from sfumato.checkpoints.atomic import atomic_directory
from sfumato.checkpoints.files import checked_path, shown
from sfumato.checkpoints.fitting import assign, build_without_memory, check_fit
from sfumato.checkpoints.header import Header, read_header
from sfumato.checkpoints.hub import local_copy
from sfumato.checkpoints.hub_files import network_files
from sfumato.checkpoints.hub_names import take_hub_options
from sfumato.checkpoints.jsonfile import write_json
from sfumato.checkpoints.keywords import reject_unknown, without_hub_keywords
from sfumato.checkpoints.pickles import read_pickle
from sfumato.checkpoints.places import check_class, model_root, read_config, subfolder_of
from sfumato.checkpoints.tensors import cast_all, read_safetensors, ready_to_write, save_safetensors
from sfumato.checkpoints.weight_files import (
    WeightFiles,
    base_names,
    check_variant,
    each_shard,
    file_names,
    find_weights,
    index_name,
    obsolete_weights,
)
from sfumato.errors import InputError
from sfumato.quantization.storage import (
    agreed,
    config_to_write,
    freeze,
    joined,
    quantize_loaded,
    split,
    take_config,
)
from sfumato.runtime.pages import Settle, settling

logger = logging.getLogger(__name__)

ModelT = TypeVar("ModelT", bound=nn.Module)

#: Written into every configuration: the version of diffusers whose layout this is.
DIFFUSERS_VERSION = "0.35.2"


def load_model(
    model_class: type[ModelT],
    path: str | PathLike[str],
    *,
    subfolder: str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    dtype: torch.dtype | str | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    device: str | torch.device = "cpu",
    check_finite: bool | None = None,
    disable_mmap: bool = False,
    offload_state_dict: bool = False,
    variant_fallback: bool = False,
    quantization: str | None = None,
    root: Path | None = None,
    **kwargs: Any,
) -> ModelT:
    """Load a network from a folder or the hub, in eval mode.

    Args:
        model_class: a subclass of `ModelMixin`.
        path: the folder, or a name on the hub.
        subfolder: a folder in it.
        torch_dtype, dtype: the type of the parameters, default float32; ``"auto"`` keeps that of
            the file. When it is the file's own, large files are mapped rather than copied.
        variant: such as ``"fp16"``, a part of the file names.
        use_safetensors: None prefers safetensors, True insists on them, False reads pickles.
        device: where the parameters go.
        check_finite: refuse NaN and infinity; None checks all but mapped files from 2 GiB on.
        disable_mmap: read large files into memory instead of mapping them. A mapped file must not
            be written to in place while the network is in use.
        offload_state_dict: let the weights wait in files: each one that is converted or read into
            memory is written to a temporary file at once, from whose pages it is used, so the
            network is never in memory as a whole. On Linux and the CPU.
        variant_fallback: take the plain files when there are none of the variant.
        quantization: ``"int8"``, ``"int8-weights"`` or ``"int4"``; see
            `sfumato.quantization.network.quantize`. The weights are quantised one by one.
        root: the folder that no link may leave; default ``path``.
        kwargs: fields of the configuration to override; and how to ask the hub, see
            `sfumato.checkpoints.hub_names.HubOptions`.

    Raises:
        ModelNotFoundError: (``OSError`` and ``ValueError``) no such folder, or no weights in it.
        HubError: (an ``OSError``) the hub cannot be reached, or refuses.
        ConfigError: (a ``ValueError``) config.json is wrong.
        CheckpointError: (an ``OSError``) a file is damaged, unsafe, or does not fit the network.
        InputError: (a ``ValueError``) arguments are wrong or contradict each other.
        UnknownKeywordError: (a ``TypeError``) a keyword that neither loading nor the network has.
    """
    wanted = chosen_dtype(torch_dtype, dtype)
    check_variant(variant)
    hub = take_hub_options(kwargs)
    overrides = _overrides(model_class, kwargs)
    needed = partial(
        network_files,
        folder=subfolder,
        bases=base_names(model_class),
        variant=variant,
        use_safetensors=use_safetensors,
        fall_back=variant_fallback,
    )
    path = local_copy(path, hub, needed)
    root = model_root(path) if root is None else root
    folder = subfolder_of(root, path, subfolder)
    values = read_config(folder, "config.json", root)
    names = [base.__name__ for base in model_class.__mro__]
    check_class(values, names, model_class.__name__, folder / "config.json")
    stored = take_config(values, shown(folder / "config.json"))
    kind = agreed(quantization, stored, shown(folder))
    config = model_class.config_class.from_dict({**values, **overrides})  # type: ignore[attr-defined]
    files = find_weights(
        folder,
        base_names(model_class),
        root=root,
        variant=variant,
        use_safetensors=use_safetensors,
        fall_back=variant_fallback,
    )
    where = shown(files.paths[0] if files.weight_map is None else folder)
    headers = {path: read_header(path) for path in files.paths} if files.safe else {}
    model = build_without_memory(model_class, config)
    if headers and stored is None:  # whether the weights fit is known before they are read
        entries = each_shard(files, lambda path: headers[path].entries)
        check_fit(model, {name: entry.shape for name, entry in entries}, where)
    place = torch.device("cpu" if kind else device)
    # What is quantised is converted, and checked, one by one later.
    options = (None, place, False) if kind else (wanted, place, check_finite)
    with settling(bool(offload_state_dict) and torch.device(device).type == "cpu") as settle:
        tensors = _read_all(files, headers, *options, disable_mmap, settle)
        final = floating_dtype(tensors.values(), wanted)
        if stored is not None:
            tensors = joined(tensors, model, stored, final, where, settle)
        elif wanted is None and kind is None:  # 'auto': one type for all, that of the first
            tensors = cast_all(tensors, final, place, settle)
        if not headers or stored is not None:
            check_fit(model, {name: tuple(t.shape) for name, t in tensors.items()}, where)
        assign(model, tensors, where)
        if stored is not None:
            freeze(model)
        elif kind is not None:
            quantize_loaded(model, kind, final, where, check_finite=check_finite, settle=settle)
    # What is no parameter of the file: buffers that the network made itself.
    return model.to(device=device, dtype=final)


def save_model(
    model: nn.Module,
    path: str | PathLike[str],
    *,
    safe_serialization: bool = True,
    variant: str | None = None,
    max_shard_size: int | str | None = "10GB",
    is_main_process: bool = True,
    push_to_hub: bool = False,
) -> None:
    """Write ``config.json`` and the weights; all files appear together, or none does.

    Older weights of the same variant in the folder are replaced; other files stay.

    Args:
        model: a `ModelMixin`.
        path: the folder; made when missing.
        safe_serialization: safetensors rather than a pickle.
        variant: put into the file names, such as ``"fp16"``.
        max_shard_size: split larger weights over several files; bytes, or as in ``"5GB"``.
        is_main_process: False writes nothing, for training on several processes.
        push_to_hub: has to stay False; sfumato uploads nothing.

    Raises:
        InputError: an argument is wrong.
        OSError: the disk refuses; the folder is as it was.
    """
    if push_to_hub:
        raise InputError(
            "`push_to_hub` has to be False: sfumato uploads nothing.",
            hint="Save to a folder and upload that with `huggingface-cli upload`.",
        )
    check_variant(variant)
    limit = shard_bytes("10GB" if max_shard_size is None else max_shard_size)
    if not is_main_process:
        return
    folder = checked_path(path)
    bases = base_names(model)
    shards = _split(split(state_to_save(model)), limit)
    names = file_names(bases[safe_serialization], safe_serialization, variant, len(shards))
    written = dict(zip(names, shards, strict=True))
    index = index_name(bases[safe_serialization], safe_serialization, variant)
    with atomic_directory(folder, obsolete=obsolete_weights) as temporary:
        for name, tensors in written.items():
            if safe_serialization:
                save_safetensors(tensors, temporary / name)
            else:
                torch.save(ready_to_write(tensors), temporary / name)
        if len(shards) > 1:
            write_json(temporary / index, _index_of(written))
        written_config = {**_config_to_write(model), **config_to_write(model)}
        write_json(temporary / "config.json", written_config)


def _overrides(model_class: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that are fields of the configuration; others are refused or without effect."""
    left = without_hub_keywords(kwargs)
    fields = set(model_class.config_class.__dataclass_fields__) - {"explicit"}
    known = set(load_model.__kwdefaults__ or ()) | fields
    reject_unknown(f"{model_class.__name__}.from_pretrained()", left, known)
    return left


def _read_all(
    files: WeightFiles,
    headers: Mapping[Path, Header],
    dtype: torch.dtype | None,
    device: torch.device,
    check_finite: bool | None,
    disable_mmap: bool,
    settle: Settle | None,
) -> dict[str, torch.Tensor]:
    options: dict[str, Any] = {
        "dtype": dtype,
        "device": device,
        "check_finite": check_finite,
        "mmap": False if disable_mmap else None,
        "settle": settle,
    }

    def read(path: Path) -> dict[str, torch.Tensor]:
        if files.safe:
            return read_safetensors(path, header=headers[path], **options)
        return read_pickle(path, **options)

    return dict(each_shard(files, read))


def state_to_save(model: nn.Module) -> dict[str, torch.Tensor]:
    """What to save: a network's own parameters and buffers, no copies for fused projections."""
    state = getattr(model, "own_state", model.state_dict)()
    return {k: v for k, v in state.items() if ".to_qkv." not in k and ".to_kv." not in k}


def _split(state: Mapping[str, torch.Tensor], limit: int) -> list[dict[str, torch.Tensor]]:
    """Tensors in their order, in groups of at most ``limit`` bytes (or of one tensor)."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _index_of(shards: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(t.nbytes for s in shards.values() for t in s.values())},
        "weight_map": {name: file for file, shard in shards.items() for name in shard},
    }


def _config_to_write(model: Any) -> dict[str, Any]:
    """The configuration with the class name where diffusers, or transformers, looks for it."""
    values = getattr(model, "own_config", model.config).to_dict()
    if hasattr(model, "weights_name"):
        return {"architectures": [type(model).__name__], **values}
    return {
        "_class_name": type(model).__name__,
        "_diffusers_version": DIFFUSERS_VERSION,
        **values,
    }
