"""The options that save memory draw the same picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato.cli.saving import Saving
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
