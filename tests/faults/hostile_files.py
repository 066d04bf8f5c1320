"""Builders of files that no honest program writes, and a clock that ends a hang."""

from __future__ import annotations

import io
import json
import pickle
import signal
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def within(seconds: float = 60) -> Iterator[None]:
    """Fail with `TimeoutError` when the block takes longer; for code that must not hang.

    The time is generous, since a hang has no end and a busy machine may be slow.
    """

    def stop(*_: object) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def safetensors_bytes(header: dict[str, Any] | str | bytes, data: bytes = b"") -> bytes:
    """A safetensors file with any header, right or wrong."""
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw + data


def entry(
    start: int, stop: int, shape: list[Any] | None = None, dtype: str = "F32"
) -> dict[str, Any]:
    """A tensor's line in a header; by default one row of float32 numbers."""
    shape = [(stop - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def call_pickle(module: str, name: str, arguments: tuple[Any, ...]) -> bytes:
    """A pickle that calls ``module.name(*arguments)`` when it is loaded carelessly."""
    body = pickle.dumps(arguments, protocol=2)[2:-1]
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + body + b"R."


def in_torch_zip(pickled: bytes, **options: Any) -> bytes:
    """The pickle inside the archive that `torch.save` writes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def in_legacy_torch(pickled: bytes) -> bytes:
    """The pickle in the sequence of pickles that torch wrote before version 1.6."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    protocol = pickle.dumps(1001, protocol=2)
    info = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    return magic + protocol + pickle.dumps(info, protocol=2) + pickled + pickle.dumps([], 2)


def torch_bytes(content: Any, **options: Any) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def change(path: Path, **entries: Any) -> None:
    """Change entries of a JSON file, without this package's checks."""
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **entries}))
