"""Reading hostile files under watch: what every reader of torch's files has to refuse."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from sfumato.checkpoints.inspection import inspect_file
from sfumato.checkpoints.pickles import read_pickle, read_pickled
from sfumato.checkpoints.source import open_source
from sfumato.errors import CheckpointError
from tests.faults import hostile_pickles as corpus
from tests.faults.audit import Audit
from tests.faults.hostile_files import in_legacy_torch, in_torch_zip, torch_bytes, within

_AUDIT = Audit()
READERS: tuple[Callable[[Path], Any], ...] = (read_pickle, read_pickled, open_source, inspect_file)
CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "zip": in_torch_zip,
    "legacy": in_legacy_torch,
    "bare": bytes,
}
#: Members of a sound archive without numbers.
SOUND = [("archive/data.pkl", corpus.sound_table()), ("archive/byteorder", b"little")]


@cache
def _warm() -> None:
    """Have whatever is imported at the first use imported before the watch begins."""
    sound = torch_bytes({"a": torch.zeros(2)})
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.ckpt"
        for content in (
            sound,
            in_torch_zip(b"\x80\x04N."),
            in_legacy_torch(b"\x80\x02}."),
            b"\x80N.",
        ):
            path.write_bytes(content)
            for read in READERS:
                with suppress(CheckpointError):
                    read(path)


def nothing_runs() -> Any:
    """Fail when the block imports, compiles, runs or writes anything; see `Audit.nothing_runs`."""
    _warm()
    return _AUDIT.nothing_runs()


def refused(path: Path, content: bytes) -> str:
    """Write a file and return the message with which every reader refuses it."""
    path.write_bytes(content)
    messages = []
    for read in READERS:
        with within(), nothing_runs(), pytest.raises(CheckpointError) as caught:
            read(path)
        messages.append(str(caught.value))
    assert path.name in messages[0]
    return messages[0]


def refused_or_harmless(path: Path, content: bytes) -> list[Any]:
    """Write a file, and return what those readers made of it that did not refuse it."""
    path.write_bytes(content)
    results = []
    for read in READERS:
        with within(), nothing_runs(), suppress(CheckpointError):
            results.append(read(path))
    return results


def archive(members: list[tuple[str, bytes]], **options: Any) -> bytes:
    """A zip archive of these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as file:
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()
