"""DPM adaptive in calls: steps that nobody counts beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

import sfumato
from sfumato import DPMAdaptiveScheduler
from sfumato.errors import InputError
from tests.pipelines.tiny import tiny_pipeline

PICTURE = Image.new("RGB", (16, 16), (120, 60, 30))


def adaptive(pipe: Any, **settings: Any) -> Any:
    pipe.scheduler = DPMAdaptiveScheduler.from_config(pipe.scheduler.config, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, **options: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    call = {"num_inference_steps": 5, "output_type": "latent", "generator": generator, **options}
    return pipe("a cat", **call).images


def test_the_number_of_steps_does_not_matter() -> None:
    pipe = adaptive(tiny_pipeline())
    assert torch.equal(drawn(pipe), drawn(pipe, num_inference_steps=30))


def test_callbacks_count_calls_and_see_the_number_grow() -> None:
    pipe, seen = adaptive(tiny_pipeline()), []

    def note(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> None:
        assert tensors["denoised"].isfinite().all()
        seen.append((step, pipe.num_timesteps, float(timestep)))

    drawn(pipe, callback_on_step_end=note, callback_on_step_end_tensor_inputs=("denoised",))
    assert [step for step, _, _ in seen] == list(range(len(seen)))
    assert all(total == step + 2 for step, total, _ in seen[:-1])
    assert seen[-1][1] == len(seen) == pipe.num_timesteps
    assert seen[0][2] > 998 and seen[-1][2] < 100


def test_an_interrupt_ends_the_run() -> None:
    pipe, seen = adaptive(tiny_pipeline()), []

    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> None:
        seen.append(step)
        pipe._interrupt = step == 3

    drawn(pipe, callback_on_step_end=stop)
    assert seen == [0, 1, 2, 3]


def test_the_bar_has_no_end_and_counts_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, bars = adaptive(tiny_pipeline()), []
    make = pipe.progress_bar

    def kept(*args: Any, **kwargs: Any) -> Any:
        bars.append(make(*args, **kwargs))
        return bars[-1]

    monkeypatch.setattr(pipe, "progress_bar", kept)
    pipe.set_progress_bar_config(disable=False)
    drawn(pipe)
    assert bars[0].total is None
    assert bars[0].n == pipe.num_timesteps


def test_a_given_picture_is_drawn_anew_from_its_level_on() -> None:
    pipe = adaptive(sfumato.StableDiffusionImg2ImgPipeline.from_pipe(tiny_pipeline()))
    pipe.set_progress_bar_config(disable=True)
    calls = []
    for strength in (0.2, 0.9):
        drawn(pipe, image=PICTURE, strength=strength, num_inference_steps=20)
        calls.append(pipe.num_timesteps)
    assert 0 < calls[0] < calls[1]


def test_the_noise_of_an_eta_comes_from_the_calls_generator() -> None:
    pipe = adaptive(tiny_pipeline(), eta=1.0)
    assert torch.equal(drawn(pipe), drawn(pipe))
    assert not torch.equal(drawn(pipe), drawn(adaptive(tiny_pipeline())))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"guidance": sfumato.IntervalGuidance(0.1, 0.9)}, "parts of a guidance"),
        ({"savings": sfumato.DeepCache(2)}, "savings"),
        ({"prompt_syntax": "a1111"}, "prompts that change"),
    ],
)
def test_what_has_to_know_the_steps_is_refused(options: dict[str, Any], what: str) -> None:
    pipe = adaptive(tiny_pipeline())
    with pytest.raises(InputError, match=what):
        pipe("a [cat:dog:2]", num_inference_steps=5, **options)


def with_mask() -> Any:
    pipe = sfumato.StableDiffusionInpaintPipeline.from_pipe(tiny_pipeline())
    return adaptive(pipe)("a cat", image=PICTURE, mask_image=Image.new("L", (16, 16), 255))


def wide() -> Any:
    return adaptive(sfumato.StableDiffusionPanoramaPipeline.from_pipe(tiny_pipeline()))("a cat")


@pytest.mark.parametrize(("draw", "what"), [(with_mask, "masks"), (wide, "panoramas")])
def test_pipelines_that_have_to_know_the_steps_refuse_it(
    draw: Callable[[], Any], what: str
) -> None:
    with pytest.raises(InputError, match=what):
        draw()
