"""Contact sheet and retrieval score, with a pipeline that draws coloured squares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import evaluate
import numpy as np
import pytest
import sheet
import torch
from drawing import DrawOptions, draw_all
from emoji_words import STYLES
from evaluate import Galleries, Result, prompts_for, summary, table
from PIL import Image, ImageDraw
from retrieval import Gallery

SIZE = 64


def picture(number: int) -> Image.Image:
    """A picture of its own for every number: some rectangles on white."""
    rng = np.random.default_rng(number)
    image = Image.new("RGB", (SIZE, SIZE), "white")
    for _ in range(3):
        x, y, w, h = rng.integers(4, 30, 4).tolist()
        colour = tuple(rng.integers(0, 255, 3).tolist())
        ImageDraw.Draw(image).rectangle((x, y, x + w, y + h), fill=colour)
    return image


class Painter:
    """Called like a pipeline; paints what `answers` holds for a prompt."""

    def __init__(self, answers: dict[str, Image.Image] | None = None) -> None:
        self.answers = answers
        self.calls: list[tuple[list[str], list[int]]] = []

    def __call__(
        self, prompt: list[str], *, generator: list[torch.Generator], **settings: Any
    ) -> SimpleNamespace:
        self.calls.append((prompt, [g.initial_seed() for g in generator]))
        if self.answers is None:
            return SimpleNamespace(images=[picture(len(text)) for text in prompt])
        return SimpleNamespace(images=[self.answers[text] for text in prompt])


@pytest.fixture
def gallery() -> Gallery:
    return Gallery.of([f"thing {i}" for i in range(30)], [picture(i) for i in range(30)])


def test_every_picture_has_its_own_seed_whatever_the_batch() -> None:
    prompts = [f"thing {i}" for i in range(7)]
    for batch_size in (1, 3, 7):
        painter = Painter()
        options = DrawOptions(seed=40, batch_size=batch_size)
        assert len(list(draw_all(painter, prompts, options))) == 7
        assert [text for texts, _ in painter.calls for text in texts] == prompts
        assert [seed for _, seeds in painter.calls for seed in seeds] == list(range(40, 47))


def test_a_sheet_has_every_picture_in_reading_order() -> None:
    images = [picture(i) for i in range(5)]
    made = sheet.contact_sheet(images, ["a label of some length"] * 5, columns=3)
    cell = (SIZE + sheet.GAP, SIZE + sheet.LABEL_LINES * sheet.LINE_HEIGHT + sheet.GAP)
    assert made.size == (3 * cell[0] + sheet.GAP, 2 * cell[1] + sheet.GAP)
    for index, image in enumerate(images):
        left = sheet.GAP + index % 3 * cell[0]
        top = sheet.GAP + index // 3 * cell[1]
        found = made.crop((left, top, left + SIZE, top + SIZE))
        assert found.tobytes() == image.tobytes()
        label = made.crop((left, top + SIZE, left + SIZE, top + cell[1] - sheet.GAP))
        assert np.asarray(label).min() < 128


def test_labels_are_broken_between_words_and_lose_none() -> None:
    font = sheet.ImageFont.load_default(sheet.FONT_SIZE)
    text = "a very long label about extraordinarily many things in sticker style"
    lines = sheet.wrap(text, 100, font)
    assert " ".join(lines) == text
    assert len(lines) > 1
    assert all(font.getlength(line) <= 100 or " " not in line for line in lines)


def test_the_sheet_command_draws_the_prompts_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painter = Painter()
    monkeypatch.setattr(sheet, "load_pipeline", lambda model: painter)
    (tmp_path / "prompts.txt").write_text("# a comment\na red apple\n\n  an owl \n")
    out = tmp_path / "out.png"
    sheet.main(["--prompts", str(tmp_path / "prompts.txt"), "--out", str(out), "--columns", "2"])
    assert [text for texts, _ in painter.calls for text in texts] == ["a red apple", "an owl"]
    with Image.open(out) as made:
        assert made.width == 2 * (SIZE + sheet.GAP) + sheet.GAP


def test_a_picture_is_nearest_to_itself(gallery: Gallery) -> None:
    for index, name in enumerate(gallery.names):
        assert gallery.nearest(picture(index)) == name
        assert gallery.rank(picture(index), name) == 1


def test_noise_and_a_shift_by_two_pixels_change_little(gallery: Gallery) -> None:
    rng = np.random.default_rng(0)
    for index, name in enumerate(gallery.names):
        moved = np.roll(np.asarray(picture(index)), 2, axis=(0, 1))
        noisy = np.clip(moved + rng.normal(0, 10, moved.shape), 0, 255).astype(np.uint8)
        assert gallery.rank(Image.fromarray(noisy), name) <= 2


def test_another_picture_has_the_rank_of_its_distance(gallery: Gallery) -> None:
    others = [gallery.rank(picture(0), name) for name in gallery.names]
    assert sorted(others) == list(range(1, 31))


def test_the_size_of_the_drawing_does_not_matter(gallery: Gallery) -> None:
    large = picture(4).resize((4 * SIZE, 4 * SIZE), Image.Resampling.NEAREST)
    assert gallery.nearest(large) == "thing 4"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An image folder of six things in every style."""
    rows = []
    for number in range(6):
        for offset, style in enumerate(STYLES):
            file_name = f"{number}-{style.word}.png"
            picture(10 * number + offset).save(tmp_path / file_name)
            label = f"thing {'abcdef'[number]}"
            rows.append({"file_name": file_name, "label": label, "style": style.word})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def run_evaluate(
    data: Path, monkeypatch: pytest.MonkeyPatch, pipe: object, *arguments: str
) -> dict[str, Any]:
    monkeypatch.setattr(evaluate, "load_pipeline", lambda model: pipe)
    scores = data / "scores.json"
    evaluate.main(["--data", str(data), "--json", str(scores), "--things", "6", *arguments])
    return json.loads(scores.read_text())


def right_answers(data: Path, asked: Sequence[str]) -> dict[str, Image.Image]:
    galleries = Galleries.read(data)
    labels = sorted({label for label, _ in galleries.rows})
    answers = {}
    for prompt, label, word in prompts_for(labels, asked):
        style = evaluate.DEFAULT_STYLE if word == evaluate.PLAIN else word
        with Image.open(galleries.rows[label, style]) as image:
            answers[prompt] = image.convert("RGB")
    return answers


def test_a_model_that_draws_the_true_pictures_scores_everything(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*(style.word for style in STYLES), evaluate.PLAIN]
    painter = Painter(right_answers(data, asked))
    report = run_evaluate(data, monkeypatch, painter)
    assert list(report["scores"]) == [*asked, "all"]
    for scores in report["scores"].values():
        assert (scores["top1"], scores["top5"], scores["style"]) == (1, 1, 1)
        assert scores["median_rank"] == 1
    assert len(report["results"]) == 6 * 5
    assert capsys.readouterr().out.count("100.0%") == 3 * 6


def test_a_model_that_always_draws_one_picture_scores_only_that_one(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = right_answers(data, ["flat"])
    same = answers["a thing c, flat style"]
    report = run_evaluate(
        data, monkeypatch, Painter(dict.fromkeys(answers, same)), "--styles", "flat"
    )
    assert report["scores"]["flat"]["top1"] == pytest.approx(1 / 6, abs=1e-3)
    assert report["scores"]["flat"]["style"] == 1


def test_the_right_thing_in_the_wrong_style_is_told_apart(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = right_answers(data, ["flat"])
    wrong = {prompt.replace("flat", "3d"): image for prompt, image in flat.items()}
    report = run_evaluate(data, monkeypatch, Painter(wrong), "--styles", "3d")
    assert report["scores"]["3d"]["style"] == 0


def test_copies_of_a_lossless_autoencoder_score_everything(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = SimpleNamespace(
        dtype=torch.float32,
        encode=lambda x: SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: x)),
        decode=lambda z: SimpleNamespace(sample=z),
    )
    processor = SimpleNamespace(
        preprocess=lambda images: torch.stack([torch.tensor(np.array(i)) for i in images]),
        postprocess=lambda x, output_type: [Image.fromarray(a.byte().numpy()) for a in x],
    )
    pipe = SimpleNamespace(vae=identity, image_processor=processor)
    report = run_evaluate(data, monkeypatch, pipe, "--reconstructions")
    assert report["scores"]["all"]["top1"] == 1
    assert report["scores"]["all"]["pictures"] == 24


def test_the_summary_counts_ranks_and_styles() -> None:
    ranks = [1, 1, 4, 9]
    results = [Result("p", "l", "flat", rank, "n", "flat" if rank < 5 else "3d") for rank in ranks]
    scores = summary(results)["flat"]
    assert scores == {"pictures": 4, "top1": 0.5, "top5": 0.75, "median_rank": 2.5, "style": 0.75}
    assert table(summary(results)).splitlines()[1].split() == [
        "flat", "4", "50.0%", "75.0%", "2", "75.0%",
    ]  # fmt: skip
