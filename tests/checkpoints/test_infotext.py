"""The infotext beside A1111's own rules, and texts of other programs, hostile ones among them."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from PIL import Image

from sfumato.checkpoints.metadata import Recipe, parse_infotext, to_infotext
from sfumato.checkpoints.picture_files import read_recipe
from sfumato.checkpoints.png import encode_png
from tests.checkpoints.test_png import chunk, png

#: What A1111 looks for in the last line.
A1111 = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
#: The order in which A1111 writes what a recipe of ours can have.
ORDER = [
    "Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model hash", "Model",
    "Variation seed", "Variation seed strength", "Seed resize from", "Denoising strength",
    "Clip skip", "ENSD", "RNG", "Tiling", "Hires upscale", "Hires steps", "Hires upscaler",
    "Lora hashes", "Version",
]  # fmt: skip


def test_entries_stand_in_the_order_of_the_web_ui() -> None:
    recipe = Recipe(
        prompt="p", steps=2, sampler="Euler", schedule="Automatic", cfg_scale=7.5, seed=1, width=8,
        height=16, model_hash="0123456789", model="m", variation_seed=3, variation_strength=0.5,
        seed_resize_from="8x8", strength=0.7, clip_skip=2, eta_noise_seed_delta=31337, rng="CPU",
        tiling="True", hires_scale=2.0, hires_steps=9, hires_upscaler="Latent", version="v",
        extra={"Lora hashes": "a: 0123456789ab, b: ba9876543210"},
    )  # fmt: skip
    last = to_infotext(recipe).splitlines()[-1]
    assert [key for key, _ in A1111.findall(last)] == ORDER
    assert 'Lora hashes: "a: 0123456789ab, b: ba9876543210", Version: v' in last
    assert "Schedule type: Automatic, CFG scale: 7.5, Seed: 1, Size: 8x16" in last


PIECES = [
    "Mood: ", "A-b/c: ", "Mood: blue, ", ", ", ",", ":", ": ", " ", "\t", "-", "/", "a", "é", "_",
    "7", '"', "\\", "(", '"a, b: c"', '"a", ', "x y", "\r", "\x85", "猫",
]  # fmt: skip


def unquoted(value: str) -> str:
    try:
        text = json.loads(value)
    except ValueError:
        return value
    return text if isinstance(text, str) else value


def test_entries_are_those_that_the_web_ui_finds() -> None:
    rng = random.Random(0)
    several = 0
    for _ in range(3000):
        line = "".join(rng.choices(PIECES, k=rng.randint(4, 40))).strip()
        found = A1111.findall(line)
        if len(found) >= 3:
            several += 1
            expected = Recipe(
                prompt="a", prompt_syntax="a1111", clip_skip=1, eta=0.0, guidance_rescale=0.0,
                variation_strength=0.0, eta_noise_seed_delta=0,
                extra={key: unquoted(value) for key, value in found},
            )  # fmt: skip
        else:
            expected = Recipe(prompt=f"a\n{line}".rstrip("\n"))
        assert parse_infotext(f"a\n{line}") == expected
    assert several > 500


FORGE = (
    "a cat\nNegative prompt: \nSteps: 20, Sampler: Euler a, Schedule type: Automatic, "
    "CFG scale: 7, Distilled CFG Scale: 3.5, Seed: 5, Size: 512x512, Model hash: 45dee52b00, "
    "Model: v1-5, Version: f2.0.1v1.10.1-previous-659-gc055f2d4, Module 1: ae"
)
SD_CPP = (
    "ein süßes Kätzchen 猫\nNegative prompt: blurry\nSteps: 20, CFG scale: 7.000000, "
    "SLG scale: 7.000000, Skip layers: [7, 8, 9, ], Guidance: 3.500000, Eta: 0.000000, Seed: 42, "
    "Size: 512x768, Model: v1-5.safetensors, RNG: cuda, Sampler: euler_a karras, Clip skip: 2, "
    "Version: stable-diffusion.cpp"
)


def test_an_infotext_of_forge_is_understood() -> None:
    recipe = parse_infotext(FORGE)
    assert (recipe.prompt, recipe.negative_prompt, recipe.steps) == ("a cat", "", 20)
    assert recipe.extra == {"Distilled CFG Scale": "3.5", "Module 1": "ae"}
    assert recipe.version == "f2.0.1v1.10.1-previous-659-gc055f2d4"


def test_a_picture_of_stable_diffusion_cpp_is_understood(tmp_path: Path) -> None:
    """It writes UTF-8 into a chunk that is meant for Latin-1."""
    path = tmp_path / "picture.png"
    path.write_bytes(png(chunk(b"tEXt", b"parameters\0" + SD_CPP.encode())))
    recipe = read_recipe(path)
    assert recipe is not None
    assert (recipe.prompt, recipe.negative_prompt) == ("ein süßes Kätzchen 猫", "blurry")
    assert (recipe.steps, recipe.cfg_scale, recipe.eta, recipe.seed) == (20, 7, 0, 42)
    assert (recipe.width, recipe.height, recipe.clip_skip) == (512, 768, 2)
    assert (recipe.sampler, recipe.rng) == ("euler_a karras", "cuda")
    assert (recipe.model, recipe.version) == ("v1-5.safetensors", "stable-diffusion.cpp")
    assert recipe.extra["Skip layers"] == "[7"


def test_latin_letters_of_other_programs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png(chunk(b"tEXt", b"parameters\0" + "Ätna, Ã, naïf".encode("latin-1"))))
    assert read_recipe(path) == Recipe(prompt="Ätna, Ã, naïf")


@pytest.mark.parametrize("end", ["", "\n", "\r\n", " \n\t\n"])
def test_what_follows_the_entries_does_no_harm(end: str) -> None:
    recipe = parse_infotext(f"a\nSteps: 3, Seed: 4, Version: v1{end}")
    assert (recipe.prompt, recipe.steps, recipe.version) == ("a", 3, "v1")


def test_of_an_entry_that_comes_twice_the_last_counts() -> None:
    recipe = parse_infotext("a\nSteps: 3, Steps: 4, Mood: blue, Mood: red")
    assert (recipe.steps, recipe.extra) == (4, {"Mood": "red"})


@pytest.mark.parametrize("key", ["a\nSteps", "x, Seed", "a: b", "", "k", "-k", "\nNegative prompt"])
def test_an_entry_that_no_reader_would_find_is_left_to_the_exact_form(
    key: str, tmp_path: Path
) -> None:
    plain = Recipe(prompt="p", steps=2, seed=3, sampler="Euler")
    recipe = plain.replace(extra={key: "7"})
    assert to_infotext(recipe) == to_infotext(plain)
    path = tmp_path / "picture.png"
    path.write_bytes(encode_png(Image.new("RGB", (1, 1)), recipe))
    assert read_recipe(path) == recipe


LENGTH = 1_000_000


@pytest.mark.parametrize(
    "line",
    [
        "a" * LENGTH,
        " " * LENGTH + "x",
        "-" * LENGTH,
        "a-" * (LENGTH // 2),
        "ab:" + " " * LENGTH + "x",
        'ab: "' + "x" * LENGTH,
        'ab: "' + "\\" * LENGTH,
        'ab: "' * (LENGTH // 5),
        'ab: "c, ' * (LENGTH // 8),
        "\n" * LENGTH,
        "Negative prompt: x\n" * (LENGTH // 19),
    ],
    ids=lambda line: repr(line[:12]),
)
def test_a_line_of_a_megabyte_is_read(line: str) -> None:
    """Looking on from each of its letters would take hours."""
    recipe = parse_infotext(f"a cat\n{line}")
    assert recipe.prompt.startswith("a cat")


def test_many_entries_are_read() -> None:
    line = "Steps: 7, Size: 8x8, Mood: blue, CFG scale: x, " * 20_000
    recipe = parse_infotext(f"a cat\n{line}")
    assert (recipe.prompt, recipe.steps, recipe.width) == ("a cat", 7, 8)
    assert recipe.extra == {"Mood": "blue", "CFG scale": "x"}
