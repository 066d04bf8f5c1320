"""Reading and writing the texts of a PNG, sound, damaged and hostile ones."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sfumato.checkpoints.metadata import Recipe, parse_infotext
from sfumato.checkpoints.picture_files import read_recipe
from sfumato.checkpoints.png import SIGNATURE, encode_png, read_texts
from sfumato.errors import CheckpointError, ImageError, SfumatoError

RECIPE = Recipe(prompt="ein roter Apfel 🍎\0\ud800", steps=4, seed=5, sampler="Euler a")


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(*chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0"))
    return SIGNATURE + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "picture.png"


def test_a_written_picture_gives_back_pixels_and_recipe(path: Path) -> None:
    image = Image.radial_gradient("L").convert("RGB")
    path.write_bytes(encode_png(image, RECIPE))
    assert read_recipe(path) == RECIPE
    with Image.open(path) as read:
        assert read.tobytes() == image.tobytes()
        shown = read.info["parameters"]  # what other programs see
    assert parse_infotext(shown).prompt == "ein roter Apfel 🍎��"


def test_the_same_picture_and_recipe_make_the_same_file() -> None:
    image = Image.new("RGB", (8, 8), "red")
    assert encode_png(image, RECIPE) == encode_png(image, RECIPE)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("text", ["a cat\nSteps: 1, Seed: 2", "猫\nSteps: 1"])
def test_every_kind_of_text_chunk_is_read(path: Path, text: str, compressed: bool) -> None:
    info = PngInfo()
    info.add_text("parameters", text, zip=compressed)
    info.add_itxt("Comment", "x", zip=compressed)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    assert read_texts(path, ["parameters", "Comment"]) == {"parameters": text, "Comment": "x"}


def test_a_text_behind_the_pixels_is_read(path: Path) -> None:
    end = chunk(b"tEXt", b"parameters\0late") + chunk(b"IEND", b"")
    path.write_bytes(png().removesuffix(chunk(b"IEND", b"")) + end)
    assert read_texts(path, ["parameters"]) == {"parameters": "late"}


def test_a_picture_without_recipe_gives_none(path: Path) -> None:
    path.write_bytes(png(chunk(b"tEXt", b"Title\0x")))
    assert read_recipe(path) is None


def test_a_text_that_unpacks_without_end_is_refused(path: Path) -> None:
    bomb = zlib.compress(bytes(64 << 20), 9)
    path.write_bytes(png(chunk(b"zTXt", b"parameters\0\0" + bomb)))
    with pytest.raises(ImageError, match="unpacks to more"):
        read_recipe(path)
    path.write_bytes(png(chunk(b"iTXt", b"sfumato\0\1\0\0\0" + bomb)))
    with pytest.raises(ImageError, match="unpacks to more"):
        read_recipe(path)


def test_a_huge_text_and_endless_chunks_are_refused(path: Path) -> None:
    path.write_bytes(png(chunk(b"tEXt", b"parameters\0" + b"a" * (17 << 20))))
    with pytest.raises(ImageError, match="too many"):
        read_recipe(path)
    path.write_bytes(png(chunk(b"tEXt", b"a\0b") * 200_001))
    with pytest.raises(ImageError, match="chunks"):
        read_recipe(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GIF89a",
        b"version https://git-lfs",
        SIGNATURE,
        SIGNATURE + b"\xff\xff\xff\xfftEXt",
        png()[:-20],
        png(chunk(b"tEXt", b"parameters\0x")).replace(b"\0x", b"\0y"),
        png(chunk(b"zTXt", b"parameters\0\0junk")),
        png(chunk(b"iTXt", b"parameters\0\0\0en")),
    ],
)
def test_a_damaged_picture_is_an_error_that_names_the_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"picture\.png"):
        read_recipe(path)


def test_only_a_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "missing.png", "a\0b"):
        with pytest.raises(CheckpointError):
            read_recipe(tmp_path / name)


def test_every_truncation_is_an_error_and_never_another_exception(path: Path) -> None:
    buffer = io.BytesIO(encode_png(Image.new("RGB", (2, 2)), RECIPE)).getvalue()
    for length in range(0, len(buffer) - 1, 3):
        path.write_bytes(buffer[:length])
        with pytest.raises(SfumatoError):
            read_recipe(path)
