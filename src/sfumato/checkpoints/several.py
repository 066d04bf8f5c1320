"""Networks that are saved together: one folder each, beside each other.

controlnet/   controlnet_1/   controlnet_2/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from sfumato.checkpoints.files import checked_path
from sfumato.checkpoints.folders import load_model

SeveralT = TypeVar("SeveralT")

#: No more are looked for.
MAX_NETWORKS = 64

_CONFIG = "config.json"


def folder_name(name: str, index: int) -> str:
    """The folder of the network with this number."""
    return f"{name}_{index}" if index else name


def folder_names(name: str, has: Callable[[str], bool]) -> list[str]:
    """The folders that there are, at least the first.

    Args:
        name: of the first.
        has: whether there is a file of that path.
    """
    names = [name]
    while len(names) < MAX_NETWORKS and has(f"{folder_name(name, len(names))}/{_CONFIG}"):
        names.append(folder_name(name, len(names)))
    return names


def save_several(networks: Any, path: str | PathLike[str], **options: Any) -> None:
    """Write networks into ``path``, ``path_1`` and so on; see `SeveralNetworks.save_pretrained`."""
    folder = checked_path(path)
    for index, network in enumerate(networks.members):
        network.save_pretrained(folder.with_name(folder_name(folder.name, index)), **options)
    for file in surplus(folder, len(networks.members)):
        file.unlink()


def load_several(
    cls: type[SeveralT],
    path: str | PathLike[str],
    *,
    subfolder: str | None = None,
    **options: Any,
) -> SeveralT:
    """Load what `save_several` wrote; ``options`` are those of `load_model`."""
    several_class: Any = cls
    folder = checked_path(path)
    parent, first = (folder.parent, folder.name) if subfolder is None else (folder, subfolder)
    names = folder_names(first, lambda file: (parent / file).is_file())
    member_class = several_class.member_class
    return several_class(
        [load_model(member_class, parent, subfolder=name, **options) for name in names]
    )


def surplus(folder: Path, count: int) -> Iterator[Path]:
    """The configurations of networks beyond ``count`` that lie beside a folder."""
    names = folder_names(folder.name, lambda file: (folder.parent / file).is_file())
    yield from (folder.with_name(name) / _CONFIG for name in names[count:])
