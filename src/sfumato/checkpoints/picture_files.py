"""Pictures with their recipe: PNG, JPEG and WebP, told apart by their content.

Reading decodes no picture and is bounded: what may be a text is read up to a limit, all else is
passed over. Texts of a PNG are chunks of it, see `sfumato.checkpoints.png`; those of a JPEG and a
WebP are EXIF data, see `sfumato.checkpoints.exif`. stable-diffusion.cpp has ways of its own, which
are read: a comment in a JPEG, and XMP, which is XML, in a WebP.
"""

from __future__ import annotations

import html
import io
import logging
import os
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO

from sfumato.checkpoints.exif import EXIF_START, read_exif, write_exif
from sfumato.checkpoints.files import open_regular, shown
from sfumato.checkpoints.metadata import (
    INFOTEXT_KEYWORD,
    JSON_KEYWORD,
    Recipe,
    recipe_from_texts,
    recipe_to_texts,
)
from sfumato.checkpoints.png import MAX_CHUNKS, MAX_TEXT_BYTES, SIGNATURE, encode_png, scan_texts
from sfumato.errors import ImageError, InputError

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

#: Endings of the names of pictures that can be written, and the formats that they stand for.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
#: Of JPEG and WebP, out of 100; colours are kept in full resolution, which small pictures need.
QUALITY = 95

_LONGEST_START = 12  # bytes that tell what a file is
_MAX_EXIF = 2 * MAX_TEXT_BYTES  # both texts
_MAX_SEGMENT = 65_533  # bytes in one segment of a JPEG, which holds all its EXIF data

_EXIF_SEGMENT = b"\xe1"
_COMMENT_SEGMENT = b"\xfe"
_COMMENT_START = b"parameters\0"
_XMP_START, _XMP_END = b"<sdcpp:parameters>", b"</sdcpp:parameters>"
_STANDALONE = b"\x01\xd0\xd1\xd2\xd3\xd4\xd5\xd6\xd7"  # markers without a length
_PIXELS_OR_END = b"\xda\xd9"


def read_recipe(path: str | os.PathLike[str]) -> Recipe | None:
    """The recipe that a picture carries, or None when it carries none.

    A comment in EXIF data may be anybody's; it counts when it tells steps or a seed.

    Raises:
        CheckpointError: when the path is not a file that can be read.
        ImageError: when it is not a PNG, JPEG or WebP, or a damaged or hostile one.
        ConfigError: when the recipe is there but cannot be read.
    """
    with open_regular(path) as file:
        try:
            kind, texts = _scan(file)
        except ImageError as error:
            raise ImageError(f"{shown(path)}: {error.message}", hint=error.hint) from None
    recipe = recipe_from_texts(texts)
    if recipe is None or kind == "PNG" or JSON_KEYWORD in texts:
        return recipe
    return None if recipe.steps is None and recipe.seed is None else recipe


def format_of(start: bytes) -> str | None:
    """``"PNG"``, ``"JPEG"`` or ``"WEBP"`` for a file that begins like one."""
    if start.startswith(SIGNATURE):
        return "PNG"
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    return "WEBP" if start[:4] == b"RIFF" and start[8:12] == b"WEBP" else None


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a picture does that may carry a recipe.

    Raises:
        CheckpointError: when the path is not a file that can be read.
    """
    with open_regular(path) as file:
        return format_of(file.read(_LONGEST_START)) is not None


def _scan(file: BinaryIO) -> tuple[str, dict[str, str]]:
    """The format of a picture, and the texts of its recipe."""
    kind = format_of(file.read(_LONGEST_START))
    if kind is None:
        raise ImageError("It is not a PNG, JPEG or WebP.")
    if kind == "PNG":
        file.seek(0)
        return kind, scan_texts(file, frozenset((JSON_KEYWORD, INFOTEXT_KEYWORD)))
    size = os.fstat(file.fileno()).st_size
    exif, text = _scan_jpeg(file, size) if kind == "JPEG" else _scan_webp(file, size)
    texts = {} if text is None else {INFOTEXT_KEYWORD: text}
    return kind, texts if exif is None else texts | read_exif(exif)


def _scan_jpeg(file: BinaryIO, size: int) -> tuple[bytes | None, str | None]:
    """The first EXIF data before the pixels, and stable-diffusion.cpp's comment."""
    file.seek(2)
    exif = text = None
    for _ in range(MAX_CHUNKS):
        start, marker = file.read(1), file.read(1)
        if not marker:
            raise ImageError("The JPEG ends early; it is damaged.")
        if start != b"\xff" or marker == b"\0":
            raise ImageError("The JPEG is damaged: a part does not begin with a marker.")
        if marker == b"\xff":  # any number of these may come before
            file.seek(-1, os.SEEK_CUR)
            continue
        if marker in _PIXELS_OR_END:
            return exif, text
        if marker in _STANDALONE:
            continue
        length = int.from_bytes(file.read(2), "big") - 2
        if length < 0 or file.tell() + length > size:
            raise ImageError("The JPEG ends early; it is damaged.")
        if marker not in (_EXIF_SEGMENT, _COMMENT_SEGMENT):
            file.seek(length, os.SEEK_CUR)
            continue
        data = file.read(length)
        if exif is None and marker == _EXIF_SEGMENT and data.startswith(EXIF_START):
            exif = data
        if text is None and marker == _COMMENT_SEGMENT and data.startswith(_COMMENT_START):
            text = data.removeprefix(_COMMENT_START).rstrip(b"\0").decode("utf-8", "replace")
    raise ImageError(f"The JPEG has more than {MAX_CHUNKS} parts before its pixels.")


def _scan_webp(file: BinaryIO, size: int) -> tuple[bytes | None, str | None]:
    """The first EXIF data, and stable-diffusion.cpp's text in XMP."""
    file.seek(4)
    end = 8 + int.from_bytes(file.read(4), "little")
    if end > size:
        raise ImageError("The WebP ends early; it is damaged.")
    file.seek(12)
    found: dict[bytes, bytes] = {}
    for _ in range(MAX_CHUNKS):
        if file.tell() >= end:  # behind a padding that is counted or is not
            return found.get(b"EXIF"), _text_in_xmp(found.get(b"XMP ", b""))
        header = file.read(8)
        if len(header) < 8:
            raise ImageError("The WebP ends early; it is damaged.")
        kind, length = struct.unpack("<4sI", header)
        if file.tell() + length > end:
            raise ImageError("The WebP ends early; it is damaged.")
        if kind in (b"EXIF", b"XMP ") and kind not in found:
            if length > _MAX_EXIF:
                name = kind.decode().strip()
                raise ImageError(f"Its {name} data has {length} bytes, too many for a recipe.")
            found[kind] = file.read(length)
            length %= 2
        else:
            length += length % 2
        file.seek(length, os.SEEK_CUR)
    raise ImageError(f"The WebP has more than {MAX_CHUNKS} chunks.")


def _text_in_xmp(data: bytes) -> str | None:
    _, start, rest = data.partition(_XMP_START)
    text, end, _ = rest.partition(_XMP_END)
    return html.unescape(text.decode("utf-8", "replace")) if start and end else None


def encode_picture(image: Image, recipe: Recipe | None = None, suffix: str = ".png") -> bytes:
    """The picture as a file of the format that ``suffix`` stands for, with its recipe.

    A recipe that a JPEG has no room for is left out in part or whole, with a warning that says so.

    Raises:
        InputError: there is no such format.
    """
    kind = FORMATS.get(suffix.lower())
    if kind is None:
        raise InputError(
            f"There is no picture format {suffix[:20]!r}.", hint=f"Known: {', '.join(FORMATS)}."
        )
    if kind == "PNG":
        return encode_png(image, recipe)
    texts = {} if recipe is None else recipe_to_texts(recipe)
    exif = _exif_that_fits(texts) if kind == "JPEG" else write_exif(texts)
    options = {"subsampling": 0} if kind == "JPEG" else {}
    if kind == "JPEG" and image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, format=kind, quality=QUALITY, exif=exif if texts else b"", **options)
    return buffer.getvalue()


def _exif_that_fits(texts: Mapping[str, str]) -> bytes:
    """EXIF data with as much of a recipe as a JPEG has room for; empty when nothing fits."""
    exif = write_exif(texts)
    if len(exif) <= _MAX_SEGMENT:
        return exif
    exact, common = (
        write_exif({key: text for key, text in texts.items() if key == keyword})
        for keyword in (JSON_KEYWORD, INFOTEXT_KEYWORD)
    )
    if len(exact) <= _MAX_SEGMENT:
        exif, left_out = exact, "its text for other programs"
    elif len(common) <= _MAX_SEGMENT:
        exif, left_out = common, "its exact form"
    else:
        exif, left_out = b"", "all of it"
    logger.warning(
        "The recipe is longer than the 64 KiB that a JPEG has for it: %s is left out."
        " Save as .png or .webp to keep the whole recipe.",
        left_out,
    )
    return exif
