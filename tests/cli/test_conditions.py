"""The command with models that draw classes, semantic maps, layouts, or nothing in particular."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato import ClassEmbedder, LDMPipeline
from sfumato.checkpoints.metadata import parse_infotext, to_infotext
from sfumato.checkpoints.picture_files import read_recipe
from tests.command import Run, Said
from tests.pipelines import tiny_conditioned, tiny_latent

QUICK = ("--steps", 2, "--seed", 5)


def drawn(said: Said) -> str:
    assert said.code == 0, said.err
    return said.out.strip()


def pixels(path: str) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    """Folders of models by kind, and files that say what to draw."""
    for kind in ("class", "semantic", "layout"):
        tiny_conditioned.pipeline(kind).save_pretrained(tmp_path / kind)
    LDMPipeline(**tiny_latent.parts()).save_pretrained(tmp_path / "nothing")
    labels = np.arange(20 * 24).reshape(20, 24) % tiny_conditioned.LABELS
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "map.png")
    box = {"label": 3, "x": 0.1, "y": 0.2, "width": 0.5, "height": 0.6}
    (tmp_path / "boxes.json").write_text(json.dumps({"boxes": [box]}))
    return {path.name: path for path in tmp_path.iterdir()}


def test_each_kind_is_drawn_recorded_and_drawn_again(run: Run, models: dict[str, Path]) -> None:
    cases = [
        ("class", "--class-label", 2, 3.0),
        ("semantic", "--semantic-map", models["map.png"], 1.0),
        ("layout", "--boxes", models["boxes.json"], 1.0),
    ]
    for kind, option, value, scale in cases:
        path = drawn(run(option, value, "--model", models[kind], *QUICK))
        recipe: Any = read_recipe(path)
        field = option[2:].replace("-", "_")
        assert recipe[field] == str(value)
        assert recipe.cfg_scale == scale and recipe.prompt == ""
        size = (24, 20) if kind == "semantic" else (16, 16)
        assert (recipe.width, recipe.height) == size
        again = drawn(run("--from", path, "--model", models[kind]))
        assert (pixels(again) == pixels(path)).all()
        if kind == "class":
            assert parse_infotext(to_infotext(recipe)).class_label == "2"
            other = drawn(run("--from", path, "--model", models[kind], "--class-label", 0))
            assert (pixels(other) != pixels(path)).any()


def test_a_model_of_nothing_in_particular_needs_no_words(run: Run, models: dict[str, Path]) -> None:
    path = drawn(run("--model", models["nothing"], *QUICK, "--size", "24x16"))
    assert pixels(path).shape == (16, 24, 3)


def test_models_are_told_apart(run: Run, embedded: Path, models: dict[str, Path]) -> None:
    said = run("--class-label", 1, *QUICK)
    assert said.code != 0 and "does not take --class-label" in said.err
    said = run("a cat", "--model", models["class"], *QUICK)
    assert said.code != 0 and "It needs --class-label" in said.err
    said = run("--class-label", 1, "--model", models["layout"], *QUICK)
    assert said.code != 0 and "It needs --boxes" in said.err
    said = run("--class-label", 99, "--model", models["class"], *QUICK)
    assert said.code != 0 and "from 0 to 4" in said.err
    said = run("--class-label", "owl", "--model", models["class"], *QUICK)
    assert said.code != 0 and "whole number" in said.err


def test_a_class_is_drawn_by_its_name(run: Run, tmp_path: Path) -> None:
    pipe = tiny_conditioned.pipeline("class")
    names = ("cat", "dog", "owl")
    config = {**pipe.conditioner.config, "class_names": names}
    table = ClassEmbedder(config)
    table.load_state_dict(pipe.conditioner.state_dict())
    pipe.conditioner = table
    pipe.save_pretrained(tmp_path / "named")
    by_name = drawn(run("--class-label", "owl", "--model", tmp_path / "named", *QUICK))
    by_number = drawn(run("--class-label", 2, "--model", tmp_path / "named", *QUICK))
    assert (pixels(by_name) == pixels(by_number)).all()
    recipe: Any = read_recipe(by_name)
    assert recipe.class_label == "owl"


def test_options_that_exclude_each_other_are_refused_at_once(
    run: Run, models: dict[str, Path]
) -> None:
    said = run("--class-label", 1, "--boxes", models["boxes.json"])
    assert said.code != 0 and "several of --class-label, --boxes" in said.err
    said = run("--boxes", "nowhere.json", "--model", models["layout"])
    assert said.code != 0 and "nowhere.json" in said.err
    said = run("--class-label", 1, "--init-img", models["map.png"])
    assert said.code != 0 and "belong to different models" in said.err
    (models["boxes.json"]).write_text('{"boxes": 3}')
    said = run("--boxes", models["boxes.json"], "--model", models["layout"])
    assert said.code != 0 and "list of boxes" in said.err
