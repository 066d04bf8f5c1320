"""Names of LoRAs in prompts, and strengths beside them: looked up in a list, never on the disk."""

from __future__ import annotations

import builtins
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sfumato.adapters.state import adapters_of
from sfumato.cli.prompting import check_tags, lora_files
from sfumato.errors import InputError
from tests.adapters.files_like import kohya_file
from tests.pipelines.tiny import seeded, tiny_pipeline, tiny_scheduler


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = tiny_pipeline(scheduler=tiny_scheduler("DDIMScheduler"))
    for number, name in enumerate(("ink", "oil")):
        networks = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
        pipe.load_lora_weights(kohya_file(networks, "lora", number), adapter_name=name)
    pipe.disable_lora()
    return pipe


@pytest.fixture
def loras(pipe: Any, tmp_path: Path) -> Path:
    """A folder with one LoRA, and another LoRA beside the folder, where no tag may reach."""
    folder = tmp_path / "loras"
    folder.mkdir()
    tensors = kohya_file({"unet": pipe.unet}, "lora", 7)
    save_file(tensors, folder / "wax.safetensors")
    save_file(tensors, tmp_path / "secret.safetensors")
    return folder


def draw(pipe: Any, prompt: str, **options: Any) -> Tensor:
    options = {"prompt_syntax": "a1111", "num_inference_steps": 2, **options}
    return pipe(prompt, generator=seeded(1), output_type="latent", **options).images


# 27: names that are paths

PATHS = [
    "../secret", "../secret.safetensors", "..", ".", "", "/etc/passwd", "../../etc/passwd",
    "\\\\host\\share", "..\\secret", "%2e%2e%2fsecret", "..%2fsecret", "wax\0", "wax.safetensors",
    "\u2024\u2024/secret", "\uff0e\uff0e/secret", "..\u2215secret", "wax/", "./wax", "WAX", "~",
    "con", "x" * 10_000, "\n\x1b[2Jwax",
]  # fmt: skip


@pytest.mark.parametrize("name", PATHS, ids=lambda name: ascii(name)[:20])
def test_a_name_is_looked_up_and_never_joined_with_a_folder(
    pipe: Any, loras: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = lora_files(loras)
    assert set(files) == {"wax"}
    opened: list[Any] = []
    for module, function in ((builtins, "open"), (os, "open"), (os, "stat")):
        original = getattr(module, function)

        def watched(path: Any, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            opened.append(path)
            return original(path, *args, **kwargs)

        monkeypatch.setattr(module, function, watched)
    for refuse in (
        lambda: check_tags([f"a <lora:{name}:1>"], files, "a1111"),
        lambda: draw(pipe, f"a <lora:{name}:1>", loras=files),
    ):
        with pytest.raises(InputError, match=r"There is no LoRA .*wax") as caught:
            refuse()
        assert len(str(caught.value)) < 1000
    assert [path for path in opened if "secret" in str(path) or "etc" in str(path)] == []
    assert adapters_of(pipe.unet).keys() == {"ink", "oil"}


def test_a_drive_in_front_of_a_name_is_no_strength_either(pipe: Any) -> None:
    with pytest.raises(InputError, match="where a number should be"):
        draw(pipe, "a <lora:C:\\secret:1>")


# 28: names that are not there


def test_a_name_that_is_not_there_is_answered_with_the_closest(pipe: Any) -> None:
    with pytest.raises(InputError, match=r"'inc'.*there are: ink, oil.*Did you mean 'ink'"):
        draw(pipe, "a <lora:inc:1>")


# 29: strengths


@pytest.mark.parametrize(
    "strength",
    ["nan", "inf", "-inf", "1e999", "--", "", "0x1", "1,5", "1:nan", "te=inf", "\u0661e"],
)
def test_a_strength_that_is_no_finite_number_is_refused(pipe: Any, strength: str) -> None:
    with pytest.raises(InputError, match="where a number should be") as caught:
        draw(pipe, f"a <lora:ink:{strength}>")
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("strength", ["1e308", "-1e300"])
def test_a_strength_beyond_all_reason_is_refused_or_found_in_the_numbers(
    pipe: Any, strength: str
) -> None:
    with pytest.raises((InputError, RuntimeError)):
        draw(pipe, f"a <lora:ink:{strength}>")


def test_strength_zero_draws_as_without_and_a_negative_one_is_allowed(pipe: Any) -> None:
    plain = draw(pipe, "a cat")
    assert torch.equal(draw(pipe, "a cat<lora:ink:0>"), plain)
    assert torch.equal(draw(pipe, "a cat<lora:ink:-0>"), plain)
    negative = draw(pipe, "a cat<lora:ink:-0.5>")
    assert negative.isfinite().all() and not torch.equal(negative, plain)


# 31: many


def test_the_same_lora_twice_counts_twice(pipe: Any) -> None:
    twice = draw(pipe, "a cat<lora:ink:0.3><lora:ink:0.4>")
    assert (twice - draw(pipe, "a cat<lora:ink:0.7>")).abs().max() < 1e-5


def test_fifty_loras_are_summed_and_leave_nothing() -> None:
    pipe = tiny_pipeline(scheduler=tiny_scheduler("DDIMScheduler"))
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    plain = draw(pipe, "a cat")
    tensors = kohya_file({"unet": pipe.unet}, "lora", 3)
    tensors = {name: tensor for name, tensor in tensors.items() if "mid_block" in name}
    names = [f"number {number}" for number in range(50)]
    for name in names:
        pipe.load_lora_weights(tensors, adapter_name=name)
    pipe.set_adapters(names, [0.02] * 50)
    together = draw(pipe, "a cat")
    pipe.set_adapters(names[0], 1.0)
    assert (together - draw(pipe, "a cat")).abs().max() < 1e-4
    assert not torch.equal(together, plain)
    pipe.unload_lora_weights()
    assert all(torch.equal(t, before[name]) for name, t in pipe.unet.state_dict().items())
    assert torch.equal(draw(pipe, "a cat"), plain)
