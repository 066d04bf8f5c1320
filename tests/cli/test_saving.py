"""The options that save memory draw the same picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato.cli.saving import Saving
from sfumato.errors import InputError
from tests.command import Run
from tests.pipelines.tiny import tiny_pipeline


@pytest.mark.parametrize(
    "options", [("--vae-tiling",), ("--attention-slicing",), ("--low-memory", "--vae-tiling")]
)
def test_a_picture_is_the_same_with_less_memory(
    options: tuple[str, ...], run: Run, embedded: Path
) -> None:
    words = ("a boat", "--steps", 2, "--seed", 3, "--size", "32x24")
    drawn = [run(*words), run(*words, *options)]
    pixels = []
    for said in drawn:
        assert said.code == 0, said.err
        with Image.open(said.out.strip()) as image:
            pixels.append(torch.tensor(list(image.convert("RGB").tobytes())))
    assert (pixels[0] - pixels[1]).abs().max() <= 1


def test_each_option_sets_its_switch() -> None:
    pipe = tiny_pipeline()
    Saving().place(pipe, torch.device("cpu"))
    assert not pipe.vae.use_tiling
    assert pipe._offload is None
    Saving(vae_tiling=True, attention_slicing=True).place(pipe, torch.device("meta"))
    assert pipe.vae.use_tiling
    assert pipe.device.type == "meta"
    names = {type(p).__name__ for p in pipe.unet.attn_processors.values()}
    assert names == {"SlicedAttnProcessor"}


def test_on_an_accelerator_whole_networks_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipeline()
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    Saving(low_memory=True).place(pipe, torch.device("cuda"))
    assert pipe.vae.use_tiling
    assert type(pipe._offload).__name__ == "ModelOffload"
    assert pipe._execution_device == torch.device("cuda", 0)
    pipe.remove_all_hooks()


@pytest.mark.parametrize("option", ["--quantization", "--type"])
def test_smaller_weights_draw_nearly_the_same_picture(
    option: str, run: Run, embedded: Path
) -> None:
    words = ("a boat", "--steps", 2, "--seed", 3, "--size", "32x24", "--backend", "torch")
    pixels = []
    for more in ((), (option, "int8")):
        said = run(*words, *more)
        assert said.code == 0, said.err
        with Image.open(said.out.strip()) as image:
            pixels.append(torch.tensor(list(image.convert("RGB").tobytes())).float())
    difference = (pixels[0] - pixels[1]).abs()
    assert 0 < difference.mean() < 8


def test_unknown_quantizations_are_refused_at_once(run: Run) -> None:
    said = run("a boat", "--quantization", "int9")
    assert said.code != 0
    assert "no quantization 'int9'; it is one of int8, int8-weights, int4, stored" in said.err
    assert "Did you mean 'int8'" in said.err


@pytest.mark.parametrize(
    "options",
    [
        ("--low-memory",),
        ("--vae-tiling", "--attention-slicing"),
        ("--quantization", "int8"),
        ("--quantization", "int4", "--low-memory"),
    ],
)
def test_a_picture_says_how_it_was_drawn_with_less_and_comes_again_to_the_bit(
    options: tuple[str, ...], run: Run, embedded: Path
) -> None:
    words = ("a boat", "--steps", 2, "--seed", 3, "--size", "32x24", *options)
    first = run(*words, "--json")
    assert first.code == 0, first.err
    recipe = json.loads(first.out)
    again = run("--from", recipe["path"], "--json")
    assert again.code == 0, again.err
    other = json.loads(again.out)
    with Image.open(recipe["path"]) as a, Image.open(other["path"]) as b:
        assert a.tobytes() == b.tobytes()
    different = {name for name in recipe if recipe[name] != other.get(name)}
    assert different <= {"path", "seconds"}
    switches = [name[2:] for name in options if name.startswith("--") and "quant" not in name]
    assert recipe.get("memory", "") == " + ".join(switches)
    assert recipe.get("quantization") == next((o for o in options if o.startswith("int")), None)


def test_switches_that_there_are_not_are_refused_in_a_recipe() -> None:
    assert Saving.of(Saving(low_memory=True, quantization="int4").fields()) == Saving(
        low_memory=True, quantization="int4"
    )
    with pytest.raises(InputError, match=r"no switch 'more'.*vae-tiling"):
        Saving.of({"memory": "low-memory + more"})
