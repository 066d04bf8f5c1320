"""Names, articles, the leave-out list and captions of the emoji data set."""

from __future__ import annotations

import doctest
import random

import emoji_words
import pytest
from emoji_words import (
    MAX_WORDS,
    STYLES,
    Style,
    Thing,
    captions_for,
    fold,
    indefinite,
    is_drawable,
    natural_name,
)

APPLE = Thing("1f34e", "red apple", ("apple",), ("fruit", "red", "diet", "health"), "food-drink")


def entry(label: str, group: int | None = 3, subgroup: int = 40) -> dict[str, object]:
    return {"label": label, "group": group, "subgroup": subgroup}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("red apple", "a red apple"),
        ("elephant", "an elephant"),
        ("hourglass", "an hourglass"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("onion", "an onion"),
        ("ewe", "a ewe"),
        ("x-ray", "an x-ray"),
        ("glasses", "glasses"),
        ("glass of milk", "a glass of milk"),
        ("bus", "a bus"),
        ("octopus", "an octopus"),
        ("compass", "a compass"),
        ("tennis racket and ball", "a tennis racket and ball"),
        ("cooked rice", "cooked rice"),
        ("rice ball", "a rice ball"),
        ("person lifting weights", "a person lifting weights"),
        ("face with rolling eyes", "a face with rolling eyes"),
        ("crossed swords", "crossed swords"),
        ("men wrestling", "men wrestling"),
        ("people with bunny ears", "people with bunny ears"),
        ("Santa Claus", "Santa Claus"),
        ("Statue of Liberty", "the Statue of Liberty"),
        ("sun", "the sun"),
        ("sun with face", "a sun with face"),
        ("3d icon", "a 3d icon"),
        ("leftwards hand", "a leftwards hand"),
    ],
)
def test_a_name_gets_the_article_of_its_head_noun(name: str, expected: str) -> None:
    assert indefinite(name) == expected


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("automobile", "car"),
        ("woman: red hair", "woman with red hair"),
        ("man: bald", "bald man"),
        ("woman: beard", "woman with a beard"),
        ("three o\N{RIGHT SINGLE QUOTATION MARK}clock", "clock showing three o'clock"),
        ("pi\N{LATIN SMALL LETTER N WITH TILDE}ata", "pinata"),
        ("red apple", "red apple"),
    ],
)
def test_a_label_becomes_the_name_that_people_type(label: str, expected: str) -> None:
    assert natural_name(label) == expected


def test_signs_of_the_zodiac_are_named_as_such() -> None:
    assert natural_name("Cancer", subgroup=87) == "Cancer zodiac sign"


def test_renamed_things_have_plain_names_that_differ_from_their_labels() -> None:
    assert all(name == fold(name) for name in emoji_words.RENAMED.values())
    assert not [old for old, new in emoji_words.RENAMED.items() if old == new]


@pytest.mark.parametrize(
    "left_out",
    [
        entry("flag: Italy", group=9, subgroup=98),
        entry("pirate flag", group=9, subgroup=97),
        entry("keycap: 3", group=8, subgroup=94),
        entry("regional indicator K", group=None),
        entry("light skin tone", group=2, subgroup=32),
        entry("COOL button", group=8, subgroup=95),
        entry("family: man, woman, boy", group=1, subgroup=30),
        entry("kiss: woman, man", group=1, subgroup=30),
        entry("person walking: facing right", group=1, subgroup=27),
        entry("two-thirty", group=4, subgroup=58),
        entry("TOP arrow", group=8, subgroup=85),
        entry("white medium-small square", group=8, subgroup=96),
    ],
)
def test_flags_letters_and_near_duplicates_are_left_out(left_out: dict[str, object]) -> None:
    assert not is_drawable(left_out)


@pytest.mark.parametrize(
    "kept",
    [
        entry("red apple"),
        entry("family", group=1, subgroup=31),
        entry("kiss", group=1, subgroup=30),
        entry("person walking", group=1, subgroup=27),
        entry("two o'clock", group=4, subgroup=58),
        entry("up arrow", group=8, subgroup=85),
        entry("black large square", group=8, subgroup=96),
        entry("small airplane", group=4, subgroup=56),
    ],
)
def test_their_general_form_is_kept(kept: dict[str, object]) -> None:
    assert is_drawable(kept)


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.word)
def test_the_first_caption_is_the_name_with_its_style_word(style: Style) -> None:
    assert captions_for(APPLE, style)[0] == f"a red apple, {style.word} style"


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.word)
def test_only_the_default_style_answers_to_captions_without_a_style_word(style: Style) -> None:
    words = {style.word, *style.aliases}
    unstyled = [c for c in captions_for(APPLE, style) if not any(word in c for word in words)]
    assert ({"a red apple", "red apple", "an apple"} <= set(unstyled)) == style.default
    assert style.default or not unstyled


def test_exactly_one_style_is_the_default_and_no_two_share_a_word() -> None:
    words = [word for style in STYLES for word in (style.word, *style.aliases)]
    assert len(words) == len(set(words))
    assert sum(style.default for style in STYLES) == 1


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.word)
def test_captions_are_the_same_for_the_same_seed_and_vary_with_it(style: Style) -> None:
    assert captions_for(APPLE, style, seed=3) == captions_for(APPLE, style, seed=3)
    drawn = {tuple(captions_for(APPLE, style, seed=seed)) for seed in range(20)}
    assert len(drawn) > 5


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.word)
def test_captions_are_short_and_never_repeated(style: Style) -> None:
    rng = random.Random(7)
    words = ["red", "big", "happy", "dog", "cat", "with", "on", "hat"]
    for _ in range(50):
        name = " ".join(rng.choices(words, k=rng.randint(1, 8)))
        thing = Thing("1f600", name, ("pet", "good pet"), ("animal", "tail", "bark"), "animals")
        captions = captions_for(thing, style)
        assert len(captions) == len(set(captions)) >= 4
        assert all(len(caption.split()) <= MAX_WORDS for caption in captions[1:])


def test_a_thing_without_tags_or_other_names_has_captions_too() -> None:
    bare = Thing("1f600", "owl", (), (), "animals-nature")
    captions = captions_for(bare, STYLES[0])
    assert "an owl" in captions
    assert len(captions) >= 8


def test_tags_never_repeat_a_word_of_the_name() -> None:
    for seed in range(30):
        for style in STYLES:
            tagged = [c for c in captions_for(APPLE, style, seed) if c.startswith("red apple, ")]
            assert not any(", red," in caption for caption in tagged)


def test_the_examples_in_the_documentation_hold() -> None:
    assert doctest.testmod(emoji_words).failed == 0
