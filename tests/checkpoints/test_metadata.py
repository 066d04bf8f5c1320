"""The two texts of a recipe: both read back what was written, whatever a prompt holds."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.checkpoints.metadata import (
    MAX_SEED,
    Recipe,
    from_json,
    parse_infotext,
    recipe_from_texts,
    recipe_to_texts,
    to_infotext,
    to_json,
)
from sfumato.errors import ConfigError

SPOOF = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: x, Seed: 1, Size: 1x1"

any_text = st.text(st.characters(codec=None, categories=None), max_size=60) | st.sampled_from(
    [
        SPOOF,
        'say "hi", now: "\\"',
        "\0",
        "\ud800",
        "👩‍👩‍👧 مرحبا",
        "Steps: 1, Seed: 2, CFG scale: 3",
        "\r\n\n",
    ]
)
names = st.text(max_size=20) | st.sampled_from(['a, "b": c', "a\nb", '"q"', " x ", "Automatic"])
fractions = st.floats(0, 1)


def recipes(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Recipe]:
    def maybe(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
        return st.none() | strategy

    return st.builds(
        Recipe,
        prompt=texts,
        negative_prompt=texts,
        steps=maybe(st.integers(1, 1000)),
        sampler=maybe(names),
        schedule=maybe(names),
        cfg_scale=maybe(st.floats(-1e6, 1e6)),
        seed=maybe(st.integers(0, MAX_SEED)),
        width=maybe(st.integers(1, 4096)),
        height=maybe(st.integers(1, 4096)),
        model_hash=maybe(st.text("0123456789abcdef", min_size=10, max_size=10)),
        model=maybe(names),
        clip_skip=maybe(st.integers(1, 12)),
        eta=maybe(fractions),
        guidance_rescale=maybe(fractions),
        dtype=maybe(st.sampled_from(["float32", "bfloat16"])),
        rng=maybe(st.just("CPU")),
        prompt_syntax=maybe(st.sampled_from(["a1111", "comfyui", "literal"])),
        variation_seed=maybe(st.integers(0, MAX_SEED)),
        variation_strength=maybe(fractions),
        seed_resize_from=maybe(st.just("512x768")),
        version=maybe(st.just("sfumato 0.1.0")),
    )


@given(recipes(any_text))
def test_the_json_reads_back_what_was_written(recipe: Recipe) -> None:
    text = to_json(recipe)
    assert text.isascii() and "\n" not in text
    assert from_json(text) == recipe


@given(recipes(any_text))
def test_a_picture_reads_back_its_recipe_even_when_the_prompt_imitates_one(recipe: Recipe) -> None:
    texts = recipe_to_texts(recipe)
    texts["parameters"].encode("utf-8")  # a PNG can hold it
    assert recipe_from_texts(texts) == recipe


plain_line = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=40).filter(
    lambda line: not line.startswith("Negative prompt:")
)
plain_text = st.lists(plain_line, min_size=1, max_size=3).map("\n".join)


@given(recipes(plain_text))
def test_the_infotext_reads_back_what_was_written(recipe: Recipe) -> None:
    recipe = recipe.replace(
        dtype=None,  # not part of an infotext
        steps=recipe.steps or 20,  # a line needs three entries to be told from a prompt
        cfg_scale=recipe.cfg_scale or 7.0,
        seed=recipe.seed or 0,
        sampler=recipe.sampler or "Euler",
        model=recipe.model or "m",
        clip_skip=recipe.clip_skip or 1,  # absent means this
        eta=recipe.eta or 0.0,
        guidance_rescale=recipe.guidance_rescale or 0.0,
        variation_strength=recipe.variation_strength or 0.0,
        eta_noise_seed_delta=0,
        prompt_syntax=recipe.prompt_syntax or "a1111",
        width=recipe.width if recipe.height else None,
        height=recipe.height if recipe.width else None,
        negative_prompt=recipe.negative_prompt.removeprefix(" "),
    )
    assert parse_infotext(to_infotext(recipe)) == recipe


def test_an_infotext_of_the_web_ui_is_understood_to_the_last_entry() -> None:
    recipe = parse_infotext(
        "a (cat:1.2), <lora:x:0.8>\nsecond line\nNegative prompt: bad,\nworse\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 965400086, "
        "Size: 512x768, Model hash: 45dee52b00, Model: v1-5, Clip skip: 2, ENSD: 31337, "
        'Lora hashes: "x: 0123456789ab, y: \\"q\\"", Version: v1.10.1\n'
    )
    assert recipe.prompt == "a (cat:1.2), <lora:x:0.8>\nsecond line"
    assert recipe.negative_prompt == "bad,\nworse"
    assert (recipe.steps, recipe.sampler, recipe.schedule) == (20, "DPM++ 2M", "Karras")
    assert (recipe.cfg_scale, recipe.seed) == (7.5, 965400086)
    assert (recipe.width, recipe.height, recipe.clip_skip) == (512, 768, 2)
    assert (recipe.model_hash, recipe.model) == ("45dee52b00", "v1-5")
    assert recipe.eta_noise_seed_delta == 31337
    assert recipe.extra == {"Lora hashes": 'x: 0123456789ab, y: "q"'}
    assert recipe.version == "v1.10.1"


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("a cat", "a cat"),
        ("", ""),
        ("Steps: 20, Seed: 1", "Steps: 20, Seed: 1"),  # two entries are not a recipe
        ("\nSteps: 20, Seed: 1, Size: 8x8", ""),
    ],
)
def test_a_text_without_parameters_is_a_prompt(text: str, prompt: str) -> None:
    assert parse_infotext(text).prompt == prompt


def test_an_entry_that_cannot_be_true_is_kept_as_text() -> None:
    recipe = parse_infotext("x\nSteps: many, Seed: -1, Size: 0x9, CFG scale: nan, Eta: 7")
    assert recipe.steps is recipe.seed is recipe.width is recipe.cfg_scale is None
    assert recipe.eta == 0
    assert recipe.extra == {
        "Steps": "many", "Seed": "-1", "Size": "0x9", "CFG scale": "nan", "Eta": "7",
    }  # fmt: skip


def test_values_are_quoted_as_the_web_ui_quotes_them() -> None:
    text = to_infotext(Recipe(prompt="p", steps=2, sampler="a, b: ü\n", version="plain words"))
    assert 'Sampler: "a, b: ü\\n"' in text
    assert text.endswith("Version: plain words")


def test_code_in_a_text_stays_text() -> None:
    text = "__import__('os').system('touch owned')"
    recipe = recipe_from_texts({"sfumato": text, "parameters": text})
    assert recipe == Recipe(prompt=text)


def test_a_damaged_json_gives_way_to_the_infotext() -> None:
    good = recipe_to_texts(Recipe(prompt="a cat", steps=3, seed=4, sampler="Euler"))
    assert recipe_from_texts({**good, "sfumato": '{"steps": '}) == parse_infotext(
        good["parameters"]
    )
    assert recipe_from_texts({"Title": "x"}) is None


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        '{"steps": "4"}',
        '{"steps": true}',
        '{"steps": 0}',
        '{"seed": -1}',
        '{"seed": 18446744073709551616}',
        '{"cfg_scale": NaN}',
        '{"cfg_scale": 1e400}',
        '{"prompt": null}',
        '{"prompt": ["a"]}',
        '{"extra": {"a": 1}}',
        '{"extra": []}',
        '{"prompt": "a", "prompt": "b"}',
        '{"seed": ' + "9" * 5000 + "}",
        "[" * 100_000,
    ],
)
def test_a_json_that_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        recipe_from_texts({"sfumato": text})


def test_a_key_of_a_later_version_is_ignored() -> None:
    assert from_json('{"format": 9, "prompt": "a", "mood": "blue"}') == Recipe(prompt="a")


def test_a_text_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="letters"):
        parse_infotext("a" * (2 << 20))
    with pytest.raises(ConfigError, match="too long"):
        from_json(json.dumps("a" * (13 << 20)))
