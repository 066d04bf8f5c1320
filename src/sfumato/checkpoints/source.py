"""A file of weights, opened: what it holds is known before any number is read.

Safetensors, torch's pickles and GGUF files look alike from here. Only the tensors that are asked
for are read, or mapped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sfumato.checkpoints.files import open_regular, shown
from sfumato.checkpoints.gguf.header import MAGIC, GgufHeader, read_gguf_header
from sfumato.checkpoints.header import Header, read_header
from sfumato.checkpoints.pickle_machine import Opaque
from sfumato.checkpoints.torch_file import (
    ZIP_START,
    TorchFile,
    read_torch_file,
    stored_tensors,
)
from sfumato.errors import InputError

if TYPE_CHECKING:
    import torch

    from sfumato.runtime.pages import Settle

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: its dtype, in safetensors' spelling, and shape."""

    dtype: str
    shape: Shape


class Source(Protocol):
    """Tensors that can be read."""

    @property
    def where(self) -> str:
        """Names the file in messages."""
        ...

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """What there is, by name."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """Text in the file."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """Numbers and text beside the tensors, such as ``global_step``."""
        ...

    def read(
        self,
        names: Iterable[str],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        check_finite: bool | None = None,
        mmap: bool | None = None,
        settle: Settle | None = None,
    ) -> dict[str, torch.Tensor]:
        """Some of the tensors; arguments as of `sfumato.checkpoints.tensors.read_safetensors`."""
        ...


def shapes_of(source: Source) -> dict[str, Shape]:
    """The shapes of all tensors."""
    return {name: stored.shape for name, stored in source.tensors.items()}


def open_source(path: str | os.PathLike[str]) -> Source:
    """Open a file of weights, of whatever name, by what is in it.

    Raises:
        CheckpointError: it is no readable file, damaged, or unsafe.
    """
    path = Path(path)
    with open_regular(path) as file:
        start = file.read(16)
    if start.startswith(ZIP_START) or (start.startswith(b"\x80") and start[8:9] != b"{"):
        return _PickleSource(read_torch_file(path))
    if start.startswith(MAGIC) and start[8:9] != b"{":
        return _GgufSource(path, read_gguf_header(path))
    return _SafetensorsSource(path, read_header(path))


class _SafetensorsSource:
    def __init__(self, path: Path, header: Header) -> None:
        self._path, self._header = path, header
        self.where = shown(path)
        self.tensors: Mapping[str, Stored] = {
            n: Stored(e.dtype, e.shape) for n, e in header.entries.items()
        }
        self.metadata = header.metadata
        self.facts: Mapping[str, Any] = {}

    def read(self, names: Iterable[str], **options: Any) -> dict[str, torch.Tensor]:
        from sfumato.checkpoints.tensors import read_safetensors

        return read_safetensors(self._path, names=names, header=self._header, **options)


class _GgufSource:
    def __init__(self, path: Path, header: GgufHeader) -> None:
        self._path, self._header = path, header
        self.where = shown(path)
        self.tensors: Mapping[str, Stored] = {
            n: Stored(e.kind.name, e.shape) for n, e in header.entries.items()
        }
        self.metadata = header.texts
        self.facts = header.facts

    #: Its weights may stay in blocks: ``read`` takes ``keep_blocks``.
    has_blocks = True

    def read(self, names: Iterable[str], **options: Any) -> dict[str, torch.Tensor]:
        from sfumato.checkpoints.gguf.tensors import read_gguf

        return read_gguf(self._path, names=names, header=self._header, **options)


class _PickleSource:
    def __init__(self, file: TorchFile) -> None:
        self._file = file
        self._stored = stored_tensors(file)
        self.where = shown(file.path)
        self.tensors: Mapping[str, Stored] = {
            n: Stored(t.dtype, t.shape) for n, t in self._stored.items()
        }
        self.metadata: Mapping[str, str] = {}
        content = file.content.items if isinstance(file.content, Opaque) else file.content
        self.facts: Mapping[str, Any] = {
            key: value
            for key, value in content.items()
            if isinstance(key, str) and isinstance(value, int | float | str)
        }

    def read(self, names: Iterable[str], **options: Any) -> dict[str, torch.Tensor]:
        from sfumato.checkpoints.pickles import load_tensors

        chosen = {name: self._stored[name] for name in names}
        return load_tensors(self._file, chosen, **options)


@dataclass(frozen=True)
class TensorSource:
    """Tensors that the caller already has."""

    given: Mapping[str, Any]
    where: str = "The dictionary of tensors"
    metadata: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Stored] = field(init=False)

    def __post_init__(self) -> None:
        import torch

        for name, tensor in self.given.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise InputError(
                    f"A state dict maps names to tensors, but {str(name)[:80]!r} is "
                    f"{type(tensor).__name__}."
                )
        known = {n: Stored(str(t.dtype), tuple(t.shape)) for n, t in self.given.items()}
        object.__setattr__(self, "tensors", known)

    def read(
        self,
        names: Iterable[str],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        check_finite: bool | None = None,
        mmap: bool | None = None,
        settle: Settle | None = None,
    ) -> dict[str, torch.Tensor]:
        import torch

        from sfumato.checkpoints.tensors import cast, require_finite

        result = {}
        for name in names:
            result[name] = cast(self.given[name], dtype, torch.device(device))
            if check_finite is not False:
                require_finite(name, result[name], Path(self.where), before=self.given[name])
            if settle is not None and result[name] is not self.given[name]:
                settle(result[name])
        return result
