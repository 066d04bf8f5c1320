"""Recipes in JPEG and WebP: what A1111 and others write, what Pillow reads, what is damaged."""

from __future__ import annotations

import io
import logging
import random
import struct
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from sfumato.checkpoints.exif import EXIF_START, read_exif
from sfumato.checkpoints.metadata import Recipe, recipe_to_texts
from sfumato.checkpoints.picture_files import encode_picture, is_picture, read_recipe
from sfumato.errors import ConfigError, ImageError, InputError, SfumatoError
from tests.faults.hostile_files import within
from tests.fuzz.damage import flipped

RECIPE = Recipe(
    prompt="ein roter Apfel 🍎 一\0\ud800",
    steps=4,
    seed=5,
    dtype="bfloat16",
    loras={"a": "b/c.safetensors"},
)
TEXT = "a cat, 一二三, 🍎\nNegative prompt: Hund\nSteps: 20, Sampler: Euler a, Seed: 7, Size: 8x8"
SUFFIXES = (".jpg", ".webp")

Row = tuple[int, int, int, bytes]  # tag, type, count, value


def tiff(rows: list[Row], order: str = ">", first: list[Row] | None = None) -> bytes:
    """EXIF data as piexif lays it out: a table that leads to the second, which has ``rows``."""
    start = 8 + 2 + 12 * (1 + len(first or [])) + 4
    after = start + 2 + 12 * len(rows) + 4
    bodies = b""

    def table(rows: list[Row]) -> bytes:
        nonlocal bodies
        written = struct.pack(f"{order}H", len(rows))
        for tag, kind, count, value in rows:
            place = value.ljust(4, b"\0")
            if len(value) > 4:
                place = struct.pack(f"{order}I", after + len(bodies))
                bodies += value
            written += struct.pack(f"{order}HHI", tag, kind, count) + place
        return written + bytes(4)

    pointer = struct.pack(f"{order}I", start)
    tables = table([*(first or []), (0x8769, 4, 1, pointer)]) + table(rows)
    return (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}I", 8) + tables + bodies


def comment(value: bytes, kind: int = 7) -> list[Row]:
    return [(0x9286, kind, len(value), value)]


def jpeg(exif: bytes, *, before: bytes = b"", code: bytes = EXIF_START) -> bytes:
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(code) + len(exif)) + code + exif
    return b"\xff\xd8" + before + segment + b"\xff\xda\0\2pixels\xff\xd9"


def webp(exif: bytes, *, before: bytes = b"VP8 \3\0\0\0abc\0") -> bytes:
    body = (
        b"WEBP" + before + b"EXIF" + struct.pack("<I", len(exif)) + exif + b"\0" * (len(exif) % 2)
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


CONTAINERS = {"jpeg": jpeg, "webp": webp}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "picture.dat"  # the name tells nothing


def recipe_of(path: Path, content: bytes) -> Recipe | None:
    path.write_bytes(content)
    return read_recipe(path)


def damaged(path: Path, content: bytes, match: str) -> None:
    with pytest.raises(ImageError, match=match) as caught:
        recipe_of(path, content)
    assert "picture.dat" in str(caught.value)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp", ".png"])
def test_a_written_picture_gives_back_its_recipe(path: Path, suffix: str) -> None:
    assert recipe_of(path, encode_picture(Image.new("RGB", (8, 8)), RECIPE, suffix)) == RECIPE
    assert is_picture(path)
    assert recipe_of(path, encode_picture(Image.new("RGB", (8, 8)), None, suffix)) is None


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_others_see_the_picture_and_the_text_where_they_look_for_it(suffix: str, mode: str) -> None:
    image = Image.radial_gradient("L").resize((64, 48)).convert(mode)
    with Image.open(io.BytesIO(encode_picture(image, RECIPE, suffix))) as read:
        found = read.getexif().get_ifd(0x8769)[0x9286]
        pairs = zip(read.convert("L").tobytes(), image.convert("L").tobytes(), strict=True)
        assert read.format == {".jpg": "JPEG", ".webp": "WEBP"}[suffix]
    text = recipe_to_texts(RECIPE)["parameters"]
    assert found == b"UNICODE\0" + text.encode("utf-16-be")  # as piexif.helper writes it
    assert max(abs(a - b) for a, b in pairs) < 12


def test_only_pictures_with_room_for_a_recipe_are_written() -> None:
    with pytest.raises(InputError, match=r"\.gif"):
        encode_picture(Image.new("RGB", (8, 8)), RECIPE, ".gif")


def kinds_of_comment() -> dict[str, bytes]:
    plain = TEXT.encode("utf-8")
    return {
        "A1111": b"UNICODE\0" + TEXT.encode("utf-16-be"),
        "little-endian": b"UNICODE\0" + TEXT.encode("utf-16-le"),
        "with a mark": b"UNICODE\0" + TEXT.encode("utf-16"),
        "padded": b"UNICODE\0" + TEXT.encode("utf-16-be") + bytes(6),
        "ascii": b"ASCII\0\0\0" + plain,
        "undefined": bytes(8) + plain + b"\0",
        "without a code": plain,
    }


@pytest.mark.parametrize("kind", list(kinds_of_comment()))
@pytest.mark.parametrize("container", list(CONTAINERS))
@pytest.mark.parametrize("order", [">", "<"])
def test_comments_in_every_code_are_read_in_data_of_either_byte_order(
    path: Path, order: str, container: str, kind: str
) -> None:
    data = tiff(comment(kinds_of_comment()[kind]), order)
    recipe = recipe_of(path, CONTAINERS[container](data))
    assert recipe is not None
    assert recipe.prompt == "a cat, 一二三, 🍎"
    assert (recipe.negative_prompt, recipe.steps, recipe.seed) == ("Hund", 20, 7)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("second", [True, False])
def test_what_pillow_writes_is_read_from_either_table(
    path: Path, suffix: str, second: bool
) -> None:
    exif = Image.Exif()
    tags = exif.get_ifd(0x8769) if second else exif  # Fooocus writes into the first
    tags[0x9286] = b"UNICODE\0" + TEXT.encode("utf-16-be") if second else TEXT.replace("🍎", "x")
    exif[0x010F] = "Maker"
    kind = {".jpg": "JPEG", ".webp": "WEBP"}[suffix]
    Image.new("RGB", (16, 16)).save(path, format=kind, exif=exif)
    recipe = read_recipe(path)
    assert recipe is not None and (recipe.steps, recipe.negative_prompt) == (20, "Hund")


def test_the_ways_of_stable_diffusion_cpp_are_read(path: Path) -> None:
    text = TEXT.replace("a cat", 'a <b> & "cat", &amp;')
    data = b"parameters\0" + text.encode() + b"\0"
    said = b"\xff\xfe" + struct.pack(">H", 2 + len(data)) + data
    other = b"\xff\xfe\0\7other"
    mine = tiff(comment(b"ASCII\0\0\0a dog\nSteps: 1, Seed: 2, Size: 8x8"))
    photo = jpeg(tiff([]), before=other + said)
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    packet = f"<x:xmpmeta><sdcpp:parameters>{escaped}</sdcpp:parameters></x:xmpmeta>".encode()
    packet += b" " * (len(packet) % 2)
    xmp = b"XMP " + struct.pack("<I", len(packet)) + packet
    for content in (photo, webp(tiff([]), before=xmp)):
        recipe = recipe_of(path, content)
        assert recipe is not None and recipe.steps == 20
        assert recipe.prompt == 'a <b> & "cat", &amp;, 一二三, 🍎'
    for content in (jpeg(mine, before=said), webp(mine, before=xmp)):
        recipe = recipe_of(path, content)
        assert recipe is not None and recipe.prompt == "a dog"
    assert recipe_of(path, webp(tiff([]), before=xmp.replace(b"</sdcpp", b"<-sdcpp"))) is None


def test_the_byte_order_is_told_by_what_makes_sense() -> None:
    r = random.Random(0)
    letters = "一刀嘀 aB:,\nöж🍎"  # the first three are Latin letters when read the wrong way
    for _ in range(300):
        text = "".join(r.choices(letters, k=r.randrange(1, 40))) + " x"
        for code in ("utf-16-be", "utf-16-le"):
            data = tiff(comment(b"UNICODE\0" + text.encode(code)), r.choice("<>"))
            assert read_exif(data)["parameters"] == text


def test_other_segments_and_padding_before_the_text_are_passed_over(path: Path) -> None:
    data = tiff(comment(b"ASCII\0\0\0" + TEXT.encode()))
    xmp = b"\xff\xe1\0\7xmp\0a"
    before = b"\xff\xe0\0\4ab" + xmp + b"\xff\x01" + b"\xff\xff\xff\xfe\0\3c"
    assert recipe_of(path, jpeg(data, before=before)) is not None
    assert recipe_of(path, webp(EXIF_START + data, before=b"ICCP\1\0\0\0a\0")) is not None


@pytest.mark.parametrize("container", list(CONTAINERS))
def test_a_picture_that_tells_of_something_else_has_no_recipe(path: Path, container: str) -> None:
    number = struct.pack(">I", 5)
    for rows in (
        [],
        comment(b"ASCII\0\0\0Holiday, by the sea"),
        comment(bytes(8) + b" " * 256),
        comment(b"UNICODE\0"),
        comment(b"JIS\0\0\0\0\0" + "海".encode("iso2022_jp")),
        comment(b"abcd"),
        [(0x9286, 4, 1, number)],  # a number
        [(0x9286, 4, 0xFFFFFFFF, number)],
        [(0x9286, 99, 1, number)],
        [(0x927C, 7, 20, b"FUJIFILM" + bytes(12))],
    ):
        assert recipe_of(path, CONTAINERS[container](tiff(rows))) is None


def test_tables_that_lead_in_circles_lead_nowhere(path: Path) -> None:
    data = b"MM\0*" + struct.pack(">I", 8)
    data += struct.pack(">H HHII I", 1, 0x8769, 4, 1, 8, 8)  # to itself, twice
    assert recipe_of(path, jpeg(data)) is None


def test_half_characters_become_the_sign_for_them(path: Path) -> None:
    text = "a \ud800cat\nSteps: 1, Seed: 2, Size: 8x8".encode("utf-16-be", "surrogatepass")
    recipe = recipe_of(path, webp(tiff(comment(b"UNICODE\0" + text + b"\0"))))
    assert recipe is not None and recipe.prompt == "a \ufffdcat" and recipe.steps == 1


def test_a_damaged_exact_recipe_leaves_the_text_for_people(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    note = b'sfumato\0{"format": 1, "steps": -3}'
    row: Row = (0x927C, 7, len(note), note)
    recipe = recipe_of(path, jpeg(tiff([row, *comment(b"ASCII\0\0\0" + TEXT.encode())])))
    assert recipe is not None and recipe.steps == 20 and "damaged" in caplog.text
    with pytest.raises(ConfigError, match="steps"):
        recipe_of(path, jpeg(tiff([row])))


GOOD = tiff(comment(b"ASCII\0\0\0" + TEXT.encode()))
BAD_EXIF = {
    "nothing": b"",
    "no header": b"MM*\0" + GOOD[4:],
    "first table outside": GOOD[:4] + b"\xff" * 4 + GOOD[8:],
    "first table in the header": GOOD[:4] + bytes(4) + GOOD[8:],
    "endless table": GOOD[:8] + b"\xff\xff" + GOOD[10:],
    "second table outside": GOOD.replace(b"\0\0\0\x1a", b"\0\xff\0\0"),
    "second table without place": GOOD.replace(b"\x87\x69\0\4", b"\x87\x69\0\2"),
    "text outside": tiff([(0x9286, 7, 0xFFFFFFF0, b"ASCII\0\0\0")]),
    "cut": GOOD[:-9],
}


@pytest.mark.parametrize("bad", list(BAD_EXIF))
@pytest.mark.parametrize("container", list(CONTAINERS))
def test_damaged_exif_data_is_an_error_that_names_the_file(
    path: Path, container: str, bad: str
) -> None:
    damaged(path, CONTAINERS[container](BAD_EXIF[bad]), "EXIF data is damaged")


def test_damaged_files_are_errors_that_name_the_file(path: Path) -> None:
    for content in (b"", b"\xff\xd8", b"GIF89a", b"RIFF\0\0\0\0WAVE", b"RIFF"):
        damaged(path, content, "not a PNG, JPEG or WebP")
    for content in (
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe1",
        b"\xff\xd8\xff\xe1\0",
        b"\xff\xd8\xff\xe1\0\1" + EXIF_START,  # a length below its own
        b"\xff\xd8\xff\xe1\xff\xff" + EXIF_START + GOOD,
        b"\xff\xd8\xff\xe0\0\5abc",
    ):
        damaged(path, content, "JPEG ends early")
    damaged(path, b"\xff\xd8\xff\xe0\0\2pixels", "marker")
    damaged(path, b"\xff\xd8\xff\0pixels", "marker")
    sound = webp(GOOD)
    damaged(path, sound[:-10], "WebP ends early")
    damaged(path, sound[:4] + b"\xff\xff\xff\xff" + sound[8:], "WebP ends early")
    damaged(path, sound.replace(b"EXIF", b"EXIF\xff\xff"), "WebP ends early")


def test_what_has_no_end_is_refused(path: Path) -> None:
    damaged(path, b"\xff\xd8" + b"\xff" * 400_000, "parts before")
    damaged(path, b"\xff\xd8" + b"\xff\xe0\0\2" * 200_001, "parts before")
    damaged(path, webp(GOOD, before=b"abcd\0\0\0\0" * 200_001), "chunks")
    for kind in (b"EXIF", b"XMP "):
        start = b"WEBP" + kind + struct.pack("<I", 33 << 20)
        with path.open("wb") as file:
            file.write(b"RIFF" + struct.pack("<I", 40 << 20) + start)
            file.truncate((40 << 20) + 8)
        with pytest.raises(ImageError, match="too many for a recipe"):
            read_recipe(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_hundreds_of_damaged_files_are_refused_or_read(path: Path, suffix: str) -> None:
    """All damage is before the pixels, which nobody reads here."""
    sound = encode_picture(Image.new("RGB", (8, 8)), RECIPE, suffix)
    start = sound.index(EXIF_START if suffix == ".jpg" else b"EXIF") - 4
    outcomes: Counter[str] = Counter()
    for seed in range(400):
        r = random.Random(seed)
        head = r.choice([start, start + 40, start + 80])  # the tables, mostly
        data = sound[:start] + flipped(r, sound[start:head]) + flipped(r, sound[head:])
        data = data[: r.randrange(len(data))] if r.random() < 0.1 else data
        with within():
            try:
                outcomes["none" if recipe_of(path, data) is None else "read"] += 1
            except SfumatoError as error:
                outcomes[type(error).__name__] += 1
    assert outcomes["none"] and outcomes["read"] and outcomes["ImageError"], outcomes


def test_every_truncation_of_a_recipe_is_an_error(path: Path) -> None:
    for content in (jpeg(GOOD), webp(GOOD)):
        for length in range(0, content.index(GOOD) + len(GOOD), 3):
            with pytest.raises(ImageError):
                recipe_of(path, content[:length])


@pytest.mark.parametrize(
    ("letters", "kept", "said"),
    [
        (20_000, "all", None),
        (30_000, "exact", "its text for other programs is left out"),
        (30_001, "common", "its exact form is left out"),
        (70_000, "none", "all of it is left out"),
    ],
)
def test_a_recipe_that_a_jpeg_has_no_room_for_is_said_to_be_left_out(
    path: Path, caplog: pytest.LogCaptureFixture, letters: int, kept: str, said: str | None
) -> None:
    letter = "ж" if kept == "common" else "a"  # of six bytes in the exact form, two in the other
    recipe = Recipe(prompt=letter * letters, steps=4, seed=5, width=8, height=8, dtype="float32")
    image = Image.new("RGB", (8, 8))
    with caplog.at_level(logging.WARNING):
        found = recipe_of(path, encode_picture(image, recipe, ".jpg"))
    if kept == "none":
        assert found is None
    else:
        assert found is not None and found.prompt == recipe.prompt
        assert found.dtype == (None if kept == "common" else "float32")
    assert (said is None) == (caplog.text == "")
    assert said is None or (said in caplog.text and ".png or .webp" in caplog.text)
    caplog.clear()
    assert recipe_of(path, encode_picture(image, recipe, ".webp")) == recipe
    assert caplog.text == ""
