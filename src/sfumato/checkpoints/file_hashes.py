"""The hashes by which people and web sites know files of weights."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from sfumato.checkpoints.files import open_regular
from sfumato.checkpoints.header import MAX_HEADER_BYTES

_BLOCK = 1 << 20

#: A1111 used to hash 64 kB from this position on; one of our blocks begins there.
_OLD_START, _OLD_LENGTH = 0x100000, 0x10000


@dataclass(frozen=True, kw_only=True)
class Hashes:
    """Hashes of a file, as hexadecimal digits.

    Attributes:
        sha256: of the whole file.
        short: its first ten digits, which A1111 writes into pictures ("Model hash", AutoV2).
        old: eight digits, which A1111 wrote before 2023 (AutoV1).
        weights: of a safetensors file without its header, twelve digits: unchanged when the
            metadata is edited (AutoV3, and kohya's ``sshs_model_hash``).
    """

    sha256: str
    short: str
    old: str
    weights: str | None


def hash_file(path: str | os.PathLike[str]) -> Hashes:
    """Read a file once and compute its hashes.

    Raises:
        CheckpointError: when the path is no readable file.
    """
    whole, weights, old = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    with open_regular(Path(path)) as file:
        begin = file.read(9)
        length = int.from_bytes(begin[:8], "little")
        safetensors = begin[8:9] == b"{" and length <= MAX_HEADER_BYTES
        file.seek(0)
        position = 0
        while block := file.read(_BLOCK):
            whole.update(block)
            if safetensors:
                weights.update(block[max(0, 8 + length - position) :])
            if position == _OLD_START:
                old.update(block[:_OLD_LENGTH])
            position += len(block)
    digits = whole.hexdigest()
    return Hashes(
        sha256=digits,
        short=digits[:10],
        old=old.hexdigest()[:8],
        weights=weights.hexdigest()[:12] if safetensors else None,
    )
