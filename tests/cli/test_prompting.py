"""Prompts, LoRAs and seeds of the command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from sfumato import StableDiffusionPipeline
from sfumato.checkpoints.file_hashes import hash_file
from sfumato.checkpoints.metadata import Recipe, parse_infotext, to_infotext
from sfumato.checkpoints.picture_files import read_recipe
from sfumato.checkpoints.png import encode_png, read_texts
from tests.adapters.files_like import kohya_file
from tests.command import Run, Said

QUICK = ("--steps", 2, "--cfg-scale", 4)


def text_of(path: str) -> str:
    """The text of a picture that is for people."""
    return read_texts(path, ["parameters"])["parameters"]


def picture_of_another_program(text: str) -> str:
    """The path of a picture that carries this text and no more."""
    info = PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save("foreign.png", pnginfo=info)
    return "foreign.png"


def drawn(said: Said) -> list[str]:
    assert said.code == 0, said.err
    return said.out.splitlines()


def pixels(path: str | Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


@pytest.fixture(scope="module")
def pipe(model: Path) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def expected(pipe: Any, prompt: str, seed: int = 5, **options: Any) -> bytes:
    given = {"num_inference_steps": 2, "guidance_scale": 4.0, "seeds": seed, **options}
    return pipe(prompt, **given).images[0].tobytes()


@pytest.fixture
def folder(pipe: Any, tmp_path: Path) -> Path:
    """A folder with the LoRA "ink", two levels down."""
    place = tmp_path / "loras" / "of mine"
    place.mkdir(parents=True)
    networks = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    save_file(kohya_file(networks, "lora", 5), place / "ink.safetensors")
    return tmp_path / "loras"


def test_the_command_reads_prompts_as_a1111_does(run: Run, model: Path, pipe: Any) -> None:
    prompt = "a (red:1.4) [cat:dog:1] AND [fe|]male :0.5"
    (path,) = drawn(run(prompt, "-m", model, "-s", 5, *QUICK))
    assert pixels(path) == expected(pipe, prompt, prompt_syntax="a1111")
    for syntax in ("literal", "comfyui", "a1111-no-norm"):
        (other,) = drawn(run(prompt, "-m", model, "-s", 5, *QUICK, "--prompt-syntax", syntax))
        assert pixels(other) == expected(pipe, prompt, prompt_syntax=syntax)
        assert parse_infotext(text_of(other)).prompt_syntax == syntax
    assert "Prompt syntax" not in text_of(path)


def test_a_picture_carries_what_drew_it_and_draws_it_again(
    run: Run, model: Path, folder: Path
) -> None:
    prompt = 'a (cat:1.2), "[x|y]": \\(z\\) BREAK <lora:ink:0.8> <lora:ink:te=0:unet=-0.1>'
    options = ("--variation-seed", 7, "--variation-strength", 0.25, "--rng", "nvidia")
    sizes = ("--seed-resize-from", "16x8", "--negative-prompt", "[a|b] (c)")
    where = ("-m", model, "--lora-dir", folder)
    (path,) = drawn(run(prompt, "-s", 5, *where, *QUICK, *options, *sizes))
    text = text_of(path)
    recipe = read_recipe(path)
    assert recipe is not None and recipe.prompt == prompt == parse_infotext(text).prompt
    digits = hash_file(next(folder.rglob("*.safetensors"))).weights
    for entry in (
        "Seed: 5, ",
        "Variation seed: 7, Variation seed strength: 0.25, Seed resize from: 16x8, ",
        "RNG: NV, ",
        f'Lora hashes: "ink: {digits}", ',
    ):
        assert entry in text
    again = drawn(run("--from", path, *where))[0]
    assert Path(again).read_bytes() == Path(path).read_bytes()

    told = parse_infotext(text)  # the text for people alone draws it as well
    assert told.variation_seed == 7 and told.rng == "NV"
    assert pixels(drawn(run("--from", picture_of_another_program(text), *where))[0]) == pixels(path)


def test_a_picture_of_a1111_is_drawn_with_the_noise_of_a_card(
    run: Run, model: Path, pipe: Any
) -> None:
    text = to_infotext(
        Recipe(
            prompt="a (cat)", steps=2, cfg_scale=4.0, seed=9, sampler="DDIM", width=16, height=16
        )
    )
    (path,) = drawn(run("--from", picture_of_another_program(text), "-m", model))
    recipe = read_recipe(path)
    assert recipe is not None and (recipe.rng, recipe.prompt_syntax) == ("NV", "a1111")


def test_an_early_picture_of_ours_is_drawn_literally(run: Run, model: Path, pipe: Any) -> None:
    recipe = Recipe(prompt="a (cat)", steps=2, cfg_scale=4.0, seed=5, rng="CPU")
    Path("early.png").write_bytes(encode_png(Image.new("RGB", (8, 8)), recipe))
    (path,) = drawn(run("--from", "early.png", "-m", model))
    assert pixels(path) == expected(pipe, "a (cat)")


def test_loras_are_named_by_tag_by_name_or_by_path(run: Run, model: Path, folder: Path) -> None:
    file = next(folder.rglob("*.safetensors"))
    given = ("-m", model, "-s", 5, *QUICK)
    (plain,) = drawn(run("a cat", *given))
    paths = [
        drawn(run("a cat<lora:ink:0.5>", *given, "--lora-dir", folder))[0],
        drawn(run("a cat", *given, "--lora-dir", folder, "--lora", "ink:0.5"))[0],
        drawn(run("a cat", *given, "--lora", f"{file}:0.5"))[0],
    ]
    assert len({pixels(path) for path in paths}) == 1
    assert pixels(plain) != pixels(paths[0])
    recipe = read_recipe(paths[2])
    assert recipe is not None and recipe.prompt == "a cat<lora:ink:0.5>"
    assert recipe.loras == {"ink": str(file)}
    (again,) = drawn(run("--from", paths[2], "-m", model))
    assert pixels(again) == pixels(paths[2])
    (other,) = drawn(run("--from", paths[2], "-m", model, "-p", "a cat"))
    assert pixels(other) == pixels(plain)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a<lora:inc:1>",), "no LoRA 'inc'.*there are: ink.*mean 'ink'.*--lora-dir"),
        (("a<lora:ink:x>",), "'x' where a number"),
        (("a", "--lora", "oil"), "neither a file nor a name.*there are: ink"),
        (("a", "--lora", "ink", "--prompt-syntax", "comfyui"), "--prompt-syntax a1111"),
        (("a", "--prompt-syntax", "a111"), "mean 'a1111'"),
        (("a", "--lora-dir", "nowhere"), "'nowhere' is no folder"),
        (("a", "--rng", "amd"), "cpu, nvidia, comfyui"),
        (("a", "--seed-resize-from", "big"), "looks like 512x768"),
        (("a", "--variation-strength", "2"), "less than or equal to 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(
    run: Run, folder: Path, model: Path, words: tuple[str, ...], message: str
) -> None:
    where = () if "--lora-dir" in words else ("--lora-dir", folder)
    said = run(*words, "-m", model, *where)
    assert said.code in (1, 2) and not said.out
    assert re.search(message, " ".join(said.err.split())), said.err


def test_variations_count_up_instead_of_seeds(run: Run, model: Path, pipe: Any) -> None:
    options = ("--subseed", 7, "--subseed-strength", 0.3)
    paths = drawn(run("a", "-m", model, "-s", 5, *QUICK, "-b", 2, *options))
    recipes = [read_recipe(path) for path in paths]
    assert [(r.seed, r.variation_seed) for r in recipes if r] == [(5, 7), (5, 8)]
    varied = {"variation_seed": 8, "variation_strength": 0.3}
    assert pixels(paths[1]) == expected(pipe, "a", **varied)
    (random,) = drawn(run("a", "-m", model, "-s", 5, *QUICK, "--variation-strength", 0.3))
    recipe = read_recipe(random)
    assert recipe is not None and recipe.variation_seed is not None
    (none,) = drawn(run("a", "-m", model, "-s", 5, *QUICK, "--variation-seed", -1))
    recipe = read_recipe(none)
    assert recipe is not None and recipe.variation_seed is None


def test_noise_of_other_programs_is_drawn(run: Run, model: Path, pipe: Any) -> None:
    for rng in ("nv", "comfyui"):
        (path,) = drawn(run("a", "-m", model, "-s", 5, *QUICK, "--rng", rng))
        assert pixels(path) == expected(pipe, "a", rng=rng)
