"""The two texts of a recipe in EXIF data, which is how a JPEG and a WebP carry them.

    ``parameters``   the tag UserComment, where A1111 and its relatives put it and galleries look
    ``sfumato``      the tag MakerNote, which the standard leaves to the maker; it wins

EXIF data is a small TIFF: a header, a table of tags, and a second table that one of them leads
to. Only these two tables are looked at, once each, so whatever leads in circles leads nowhere.
Everything here is a pure function of bytes; `sfumato.checkpoints.picture_files` opens the files.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from sfumato.checkpoints.metadata import INFOTEXT_KEYWORD, JSON_KEYWORD
from sfumato.errors import ImageError

#: What stands before the TIFF in a JPEG, and now and then in a WebP.
EXIF_START = b"Exif\0\0"

_EXIF_TABLE = 0x8769
_MAKER_NOTE = 0x927C
_USER_COMMENT = 0x9286
_LONG, _TABLE = 4, 13  # types of a place
_UNDEFINED = 7
_BYTES = frozenset((1, 2, 6, _UNDEFINED, 129))  # types of one byte; 129 is UTF-8
_NOTE_START = b"sfumato\0"
_UNICODE, _JIS = b"UNICODE\0", b"JIS\0\0\0\0\0"
_BYTE_CODES = (b"ASCII\0\0\0", bytes(8))


def read_exif(data: bytes) -> dict[str, str]:
    """The texts in EXIF data, by the keywords that they have in a PNG.

    A comment is taken in the codes that occur: UTF-16 in either byte order, and bytes that are
    UTF-8 or else Latin-1. Fooocus writes the comment into the first table; it is found there too.

    Raises:
        ImageError: the data is damaged.
    """
    data = data.removeprefix(EXIF_START)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None or len(data) < 8:
        raise _damaged("no TIFF header")
    first = _read_table(data, order, struct.unpack_from(f"{order}I", data, 4)[0])
    tags = first
    if _EXIF_TABLE in first:
        kind, count, field = first[_EXIF_TABLE]
        if kind not in (_LONG, _TABLE) or count != 1:
            raise _damaged("its second table has no place")
        tags = first | _read_table(data, order, struct.unpack(f"{order}I", field)[0])
    texts = {}
    note = _value(data, order, tags, _MAKER_NOTE)
    if note.startswith(_NOTE_START):
        texts[JSON_KEYWORD] = note.removeprefix(_NOTE_START).decode("utf-8", "replace")
    comment = _decode_comment(_value(data, order, tags, _USER_COMMENT))
    if comment.strip("\0 \n"):
        texts[INFOTEXT_KEYWORD] = comment.rstrip("\0")
    return texts


_Table = dict[int, tuple[int, int, bytes]]


def _read_table(data: bytes, order: str, start: int) -> _Table:
    """Tag to (type, count, value or its place); of two with the same tag the first is taken."""
    if start < 8 or start + 2 > len(data):
        raise _damaged("a table lies outside of it")
    (count,) = struct.unpack_from(f"{order}H", data, start)
    rows = data[start + 2 : start + 2 + 12 * count]
    if len(rows) < 12 * count:
        raise _damaged("a table is longer than the data")
    table: _Table = {}
    for tag, kind, length, field in struct.iter_unpack(f"{order}HHI4s", rows):
        table.setdefault(tag, (kind, length, field))
    return table


def _value(data: bytes, order: str, table: _Table, tag: int) -> bytes:
    """A tag's bytes; none when it is not there or holds numbers."""
    kind, count, field = table.get(tag, (_UNDEFINED, 0, b""))
    if kind not in _BYTES:
        return b""
    if count <= 4:
        return field[:count]
    (start,) = struct.unpack(f"{order}I", field)
    if start + count > len(data):
        raise _damaged("a text lies outside of it")
    return data[start : start + count]


def _damaged(why: str) -> ImageError:
    return ImageError(f"Its EXIF data is damaged: {why}.")


def _decode_comment(value: bytes) -> str:
    """The text of a UserComment, which begins with eight bytes that name its code, or should.

    >>> _decode_comment(b"UNICODE\\0\\0c\\0a\\0t"), _decode_comment(b"UNICODE\\0c\\0a\\0t\\0")
    ('cat', 'cat')
    >>> _decode_comment(b"ASCII\\0\\0\\0cat"), _decode_comment(bytes(8) + b"cat")
    ('cat', 'cat')
    """
    code, body = value[:8], value[8:]
    if code == _UNICODE:
        return _decode_utf16(body)
    if code == _JIS:
        return body.decode("iso2022_jp", "replace")
    text = body if code in _BYTE_CODES else value
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _decode_utf16(body: bytes) -> str:
    """UTF-16 in the byte order that makes sense; what is no character becomes U+FFFD.

    A1111 writes big-endian into data of either order, others follow that of the data, so it tells
    nothing. Of the two readings the one with more spaces and line breaks is right: read the wrong
    way these are U+2000, which nobody writes, and U+0A00, which is no character.
    """
    if body[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return body.decode("utf-16", "replace")
    readings = (body.decode("utf-16-be", "replace"), body.decode("utf-16-le", "replace"))

    def sense(text: str) -> tuple[int, int]:
        return text.count(" ") + text.count("\n"), sum(map(str.isascii, text))

    return max(readings, key=sense)  # of equals the first, as A1111 writes


def write_exif(texts: Mapping[str, str]) -> bytes:
    """EXIF data with the texts, as A1111 lays it out: big-endian, the comment as UTF-16.

    Args:
        texts: as `sfumato.checkpoints.metadata.recipe_to_texts` makes them, or some of them.
    """
    values = {}  # in the order of the tags, which the standard asks for
    if JSON_KEYWORD in texts:
        values[_MAKER_NOTE] = _NOTE_START + texts[JSON_KEYWORD].encode("utf-8")
    if INFOTEXT_KEYWORD in texts:
        values[_USER_COMMENT] = _UNICODE + texts[INFOTEXT_KEYWORD].encode("utf-16-be")
    first = struct.pack(">H HHII I", 1, _EXIF_TABLE, _LONG, 1, 26, 0)
    rows, bodies = b"", b""
    after = 26 + 2 + 12 * len(values) + 4
    for tag, value in values.items():
        rows += struct.pack(">HHII", tag, _UNDEFINED, len(value), after + len(bodies))
        bodies += value + bytes(len(value) % 2)  # places are even
    second = struct.pack(">H", len(values)) + rows + bytes(4)
    return EXIF_START + b"MM\0*" + struct.pack(">I", 8) + first + second + bodies
