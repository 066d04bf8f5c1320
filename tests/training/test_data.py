"""Reading training pictures and drawing batches from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sfumato.errors import DatasetError
from sfumato.training.data import batch_indices, load_picture, read_folder, step_generator


def write(root: Path, lines: list[object]) -> None:
    text = "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)
    (root / "metadata.jsonl").write_text(text)


def picture(root: Path, name: str, size: tuple[int, int] = (4, 4), mode: str = "RGB") -> None:
    Image.new(mode, size).save(root / name)


@given(
    count=st.integers(1, 40),
    batch=st.integers(1, 60),
    step=st.integers(0, 10**6),
    seed=st.integers(0, 2**40),
)
def test_a_batch_depends_on_seed_and_step_alone(
    count: int, batch: int, step: int, seed: int
) -> None:
    first = batch_indices(count, batch, step, seed)
    assert first.shape == (batch,)
    assert (first == batch_indices(count, batch, step, seed)).all()


@given(count=st.integers(1, 30), batch=st.integers(1, 30), seed=st.integers(0, 99))
def test_every_epoch_sees_every_picture_once(count: int, batch: int, seed: int) -> None:
    steps = -(-2 * count // batch)
    drawn = np.concatenate([batch_indices(count, batch, k, seed) for k in range(steps)])
    assert sorted(drawn[:count]) == sorted(drawn[count : 2 * count]) == list(range(count))


def test_epochs_differ_in_order() -> None:
    first, second = (batch_indices(50, 50, k, seed=0) for k in (0, 1))
    assert (first != second).any()


def test_step_generators_are_reproducible_and_distinct() -> None:
    a, b, c = (torch.rand(3, generator=step_generator(1, k)) for k in (5, 5, 6))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_captions_come_from_text_or_captions(tmp_path: Path) -> None:
    picture(tmp_path, "a.png")
    picture(tmp_path, "b.png")
    write(
        tmp_path,
        [
            {"file_name": "a.png", "text": "one"},
            {"file_name": "b.png", "captions": ["two", "three"]},
        ],
    )
    assert [e.captions for e in read_folder(tmp_path)] == [("one",), ("two", "three")]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("not json", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ("[" * 200_000, "not a JSON object"),
        ({"text": "no name"}, "file_name"),
        ({"file_name": "../outside.png", "text": "x"}, "leaves the folder"),
        ({"file_name": "/etc/passwd", "text": "x"}, "leaves the folder"),
        ({"file_name": "a.png", "captions": "one string"}, "list of strings"),
    ],
)
def test_a_malformed_line_is_an_error_that_names_it(
    tmp_path: Path, line: object, says: str
) -> None:
    write(tmp_path, [line])
    with pytest.raises(DatasetError, match=r"line 1.*" + says):
        read_folder(tmp_path)


def test_a_folder_without_metadata_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"Write one line per picture"):
        read_folder(tmp_path)


def test_few_bad_pictures_are_skipped_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[object] = []
    for i in range(120):
        picture(tmp_path, f"{i}.png")
        lines.append({"file_name": f"{i}.png", "text": "x"})
    (tmp_path / "7.png").write_bytes(b"not a picture")
    write(tmp_path, lines)
    assert len(read_folder(tmp_path)) == 119
    assert "1 of 120 pictures skipped" in caplog.text


@pytest.mark.parametrize("fault", ["missing", "corrupt", "caption", "duplicate"])
def test_many_bad_pictures_are_an_error(tmp_path: Path, fault: str) -> None:
    picture(tmp_path, "good.png")
    bad = {"file_name": "bad.png", "text": "x"}
    if fault == "corrupt":
        (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    elif fault == "caption":
        picture(tmp_path, "bad.png")
        bad["text"] = "  "
    elif fault == "duplicate":
        bad["file_name"] = "good.png"
    write(tmp_path, [{"file_name": "good.png", "text": "x"}, bad])
    with pytest.raises(DatasetError, match=r"1 of 2 pictures cannot be used"):
        read_folder(tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1"])
def test_pictures_of_any_mode_and_shape_become_squares(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    picture(tmp_path, f"a.{suffix}", (13, 7), mode)
    loaded = load_picture(tmp_path / f"a.{suffix}", 16)
    assert loaded.shape == (3, 16, 16)
    assert loaded.dtype == torch.float32
    assert loaded.min() >= -1
    assert loaded.max() <= 1


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert (load_picture(tmp_path / "a.png", 4) == 1).all()
