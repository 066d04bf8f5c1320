"""One file of weights in a folder, or in a model on the hub: by its name, a usual one, or alone.

Files of adapters and of embeddings are found so. What is usual is the caller's to say.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from sfumato.checkpoints.files import checked_path, is_regular, shown
from sfumato.checkpoints.hub import HubModel, fetch_address, open_model
from sfumato.checkpoints.hub_files import joined
from sfumato.checkpoints.hub_names import HubOptions, hub_file, hub_name
from sfumato.errors import InputError, ModelNotFoundError, did_you_mean

_SAFE = ".safetensors"


@dataclass(frozen=True)
class Wanted:
    """What a caller looks for.

    Attributes:
        stems: usual names without their endings, the best first.
        pickles: endings of files that are no safetensors.
        others: parts of the names of files that are something else.
        beside: names of files that describe one of these, and are fetched with it.
    """

    stems: tuple[str, ...] = ()
    pickles: tuple[str, ...] = (".bin", ".pt", ".pth", ".ckpt")
    others: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


def find_file(
    given: str | PathLike[str],
    wanted: Wanted,
    hub: HubOptions | None = None,
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    use_safetensors: bool | None = None,
) -> Path:
    """The path of a file of weights, fetched from the hub when it is there.

    Args:
        given: the file, a folder with it, the name of a model on the hub, or the address of a file
            there.
        wanted: what to look for where nothing is said.
        hub: how to ask the hub.
        weight_name: the file's name in the folder.
        subfolder: a folder in the folder.
        use_safetensors: None prefers safetensors, True insists on them, False wants pickles; of no
            account for a file that is named.

    Raises:
        ModelNotFoundError: there is no such file, or several that could be meant.
        InputError: a name leads out of the folder.
        SfumatoError: the hub does not give it; see `sfumato.checkpoints.hub.open_model`.
    """
    hub = hub or HubOptions()
    if (address := hub_file(given)) is not None:
        return fetch_address(address, hub)
    for part in (subfolder, weight_name):
        if part is not None and not _is_inside(part):
            raise InputError(f"{shown(part)} is no name of something in {shown(given)}.")
    name = hub_name(given)
    if name is not None:
        model = open_model(name, hub)
        return _find_on_hub(model, joined(subfolder), wanted, weight_name, use_safetensors)
    path = checked_path(given)
    if is_regular(path):
        return path
    if not _is_folder(path):
        raise ModelNotFoundError(f"There is no file or folder {shown(path)} on this machine.")
    folder = path / (subfolder or "")
    files = sorted(folder.iterdir()) if _is_folder(folder) else []
    names = [file.name for file in files if is_regular(file)]
    if weight_name is None:
        return folder / _choose(names, wanted, shown(folder), use_safetensors)
    if not is_regular(folder / weight_name):
        raise ModelNotFoundError(
            f"{shown(folder)} has no file {shown(weight_name)}.{did_you_mean(weight_name, names)}"
        )
    return folder / weight_name


def _find_on_hub(
    model: HubModel,
    folder: str,
    wanted: Wanted,
    weight_name: str | None,
    use_safetensors: bool | None,
) -> Path:
    names = model.names_in(folder)
    where = repr(joined(model.name, folder))
    if weight_name is None:
        try:
            weight_name = _choose(names, wanted, where, use_safetensors)
        except ModelNotFoundError as error:
            usual = f"{wanted.stems[0]}{_SAFE}" if wanted.stems else f"*{_SAFE}"
            raise model.lacks(joined(folder, usual), error.message, error.hint) from None
    file = joined(folder, weight_name)
    beside = [joined(folder, name) for name in wanted.beside if name in names]
    return model.fetch([file, *beside]) / file


def _choose(
    names: Collection[str], wanted: Wanted, where: str, use_safetensors: bool | None
) -> str:
    """A usual name, or the only one that can be meant."""
    kinds = {None: ((_SAFE,), wanted.pickles), True: ((_SAFE,),), False: (wanted.pickles,)}
    formats = kinds[None if use_safetensors is None else bool(use_safetensors)]
    for ending in (ending for endings in formats for ending in endings):
        for stem in wanted.stems:
            if f"{stem}{ending}" in names:
                return f"{stem}{ending}"
    for endings in formats:
        there = [
            name
            for name in names
            if name.endswith(endings) and not any(word in name for word in wanted.others)
        ]
        if len(there) > 1:
            raise ModelNotFoundError(
                f"{where} has several files: {', '.join(name[:80] for name in there[:5])}.",
                hint="Say which with `weight_name`.",
            )
        if there:
            return there[0]
    endings = " or ".join(ending for endings in formats for ending in endings)
    raise ModelNotFoundError(
        f"{where} has no file that ends in {endings}.",
        hint="Say which file it is with `weight_name`.",
    )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _is_inside(part: Any) -> bool:
    """Whether a name cannot lead out of the folder that it is joined to, on any system."""
    path = checked_path(part)
    absolute = path.is_absolute() or PureWindowsPath(path).drive or str(path).startswith("/")
    return not absolute and ".." not in PurePosixPath(str(path).replace("\\", "/")).parts
