"""GGUF files byte by byte, right or wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class RawTensor:
    """A tensor's line in a header, right or wrong: sizes are as in the file, innermost first."""

    name: str | bytes
    sizes: list[int]
    kind: int = 0
    offset: int = 0


@dataclass
class RawFile:
    """A file with any header; ``tail`` follows it without padding."""

    tensors: list[RawTensor] = field(default_factory=list)
    notes: list[bytes] = field(default_factory=list)
    tail: bytes = b""
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    counts: tuple[int, int] | None = None
    order: str = "<"
    alignment: int = 32

    def content(self) -> bytes:
        count, notes = self.counts or (len(self.tensors), len(self.notes))
        head = self.magic + struct.pack(f"{self.order}IQQ", self.version, count, notes)
        head += b"".join(self.notes)
        for tensor in self.tensors:
            head += text(tensor.name) + struct.pack("<I", len(tensor.sizes))
            head += struct.pack(f"<{len(tensor.sizes)}Q", *tensor.sizes)
            head += struct.pack("<IQ", tensor.kind, tensor.offset)
        head += self.tail
        return head + bytes(-len(head) % self.alignment) + self.data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.content())
        return path


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def note(key: str, kind: int, value: bytes) -> bytes:
    """A note: its value in the file's bytes."""
    return text(key) + struct.pack("<I", kind) + value
