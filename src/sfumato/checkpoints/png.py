"""The text chunks of a PNG: reading them without decoding the picture, and writing both.

A picture from a stranger may claim anything, so reading is bounded: texts of a megabyte at most,
also when they are compressed, and no more chunks than a real picture has.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, BinaryIO

from sfumato.checkpoints.files import open_regular, shown
from sfumato.checkpoints.metadata import Recipe, recipe_to_texts
from sfumato.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT_BYTES = 16 << 20  # a recipe's JSON may take twelve bytes for a letter
MAX_CHUNKS = 200_000


def read_texts(path: str | os.PathLike[str], keywords: Collection[str]) -> dict[str, str]:
    """The texts with the given keywords; of two with the same keyword the first is taken.

    Raises:
        CheckpointError: when the path is not a file that can be read.
        ImageError: when it is not a PNG, or a damaged or hostile one.
    """
    with open_regular(path) as file:
        try:
            return scan_texts(file, frozenset(keywords))
        except ImageError as error:
            raise ImageError(f"{shown(path)}: {error.message}", hint=error.hint) from None


def scan_texts(file: BinaryIO, keywords: frozenset[str]) -> dict[str, str]:
    """As `read_texts`, of an open file at its start."""
    if file.read(len(SIGNATURE)) != SIGNATURE:
        raise ImageError("It is not a PNG.")
    size = os.fstat(file.fileno()).st_size
    texts: dict[str, str] = {}
    for _ in range(MAX_CHUNKS):
        header = file.read(8)
        if len(header) < 8:
            raise ImageError("The PNG ends early; it is damaged.")
        length, kind = struct.unpack(">I4s", header)
        if file.tell() + length + 4 > size:
            raise ImageError("The PNG ends early; it is damaged.")
        if kind == b"IEND":
            return texts
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            _take_text(file, kind, length, keywords, texts)
        else:
            file.seek(length + 4, os.SEEK_CUR)
    raise ImageError(f"The PNG has more than {MAX_CHUNKS} chunks.")


def _take_text(
    file: BinaryIO, kind: bytes, length: int, keywords: frozenset[str], texts: dict[str, str]
) -> None:
    """Read one text chunk into ``texts`` if its keyword is wanted, and pass over it if not."""
    start = file.tell()
    keyword = file.read(min(length, 80)).split(b"\0")[0].decode("latin-1")
    if keyword in keywords and keyword not in texts:
        if length > MAX_TEXT_BYTES:
            raise ImageError(f"Its text '{keyword}' has {length} bytes, too many for a recipe.")
        file.seek(start)
        data = file.read(length)
        if struct.pack(">I", zlib.crc32(kind + data)) != file.read(4):
            raise ImageError(f"Its text '{keyword}' is damaged (wrong checksum).")
        texts[keyword] = _decode(kind, data[len(keyword) + 1 :], keyword)
    file.seek(start + length + 4)


def _decode(kind: bytes, body: bytes, keyword: str) -> str:
    """The text of a chunk's body: what follows its keyword and the NUL."""
    if kind == b"tEXt":
        try:  # stable-diffusion.cpp writes UTF-8, which Latin-1 hardly ever looks like
            return body.decode("utf-8")
        except UnicodeDecodeError:
            return body.decode("latin-1")
    if kind == b"zTXt":
        return _inflate(body[1:], keyword).decode("latin-1")
    compressed, _, rest = body[:1], body[1:2], body[2:]
    parts = rest.split(b"\0", 2)  # language tag, translated keyword, text
    if len(parts) < 3:
        raise ImageError(f"Its text '{keyword}' is damaged.")
    data = _inflate(parts[2], keyword) if compressed == b"\1" else parts[2]
    return data.decode("utf-8", "replace")


def _inflate(data: bytes, keyword: str) -> bytes:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, MAX_TEXT_BYTES)
    except zlib.error as error:
        raise ImageError(f"Its text '{keyword}' is damaged ({error}).") from None
    if inflater.unconsumed_tail:
        raise ImageError(f"Its text '{keyword}' unpacks to more than {MAX_TEXT_BYTES} bytes.")
    return text


def encode_png(image: Image, recipe: Recipe | None = None) -> bytes:
    """The picture as a PNG file, with its recipe in both forms."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    texts: Mapping[str, str] = recipe_to_texts(recipe) if recipe is not None else {}
    for keyword, text in texts.items():
        info.add_text(keyword, text)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()
