"""What a call of every pipeline takes and keeps, whatever it draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sfumato import IntervalGuidance, PreviewCallback, SDCFGCutoffCallback
from sfumato.errors import InputError
from sfumato.pipelines.pixels import DDIMPipeline, DDPMPipeline
from sfumato.schedulers import DDIMScheduler
from tests.pipelines import tiny_conditioned
from tests.pipelines.tiny import tiny_pipeline
from tests.pipelines.tiny_latent import tiny_unet_2d
from tests.pipelines.tiny_siblings import KINDS, TEXTLESS, sibling

#: Those without a scale, or whose callbacks see no prompts.
UNGUIDED = ("ldm", "super-resolution", "ldm inpainting")
CUT = tuple(kind for kind in KINDS if kind not in (*TEXTLESS, "latent upscale"))


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-4 * float(b.abs().max()))


class Rows:
    """Counts the rows that a network sees in each call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, unet: Any) -> None:
        self.seen: list[int] = []
        forward = unet.forward

        def counted(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.seen.append(len(x))
            return forward(x, *args, **kwargs)

        monkeypatch.setattr(unet, "forward", counted)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_shown_to_callbacks_and_can_be_the_last(kind: str) -> None:
    pipe, call = sibling(kind)
    shown: list[tuple[int, int]] = []

    def show(pictures: Any, done: int, total: int) -> None:
        shown.append((done, total))

    pipe(**call, seeds=1, callback_on_step_end=PreviewCallback(show))
    assert shown == [(1, 3), (2, 3), (3, 3)]
    seen: list[set[str]] = []

    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> None:
        seen.append(set(tensors))
        pipe._interrupt = step == 1

    names = ["latents", "denoised"]
    pipe(**call, seeds=1, callback_on_step_end=stop, callback_on_step_end_tensor_inputs=names)
    assert seen == [set(names)] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_there_is_not_is_refused_by_name(kind: str) -> None:
    pipe, call = sibling(kind)
    with pytest.raises(InputError, match=r"tensor_inputs.*'colours'"):
        pipe(
            **call,
            callback_on_step_end=lambda *given: None,
            callback_on_step_end_tensor_inputs=["colours"],
        )


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_and_parts_of_a_guidance_are_taken(kind: str) -> None:
    pipe, call = sibling(kind)
    alone = pipe(**call, seeds=5).images
    both = pipe(**call, seeds=[4, 5], guidance=[]).images
    assert both.shape[0] == 2
    assert _alike(both[1:], alone)


@pytest.mark.parametrize("kind", UNGUIDED)
def test_a_model_without_a_condition_is_asked_once_for_each_step(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, call = sibling(kind)
    rows = Rows(monkeypatch, pipe.unet)
    pipe(**call, seeds=1)
    assert rows.seen == [1, 1, 1]


@pytest.mark.parametrize("cls", [DDPMPipeline, DDIMPipeline])
def test_a_model_of_pixels_is_asked_once_for_each_step(
    cls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = cls(tiny_unet_2d(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    rows = Rows(monkeypatch, pipe.unet)
    pipe(num_inference_steps=2, seeds=1)
    assert rows.seen == [1, 1]


@pytest.mark.parametrize("pictures", [1, 2])
@pytest.mark.parametrize("kind", CUT)
def test_ending_guidance_leaves_the_prompt_alone(
    kind: str, pictures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an interval of guidance does, in which the network is told the prompt as well."""
    pipe, call = sibling(kind)
    call = {**call, "prompt": ["a boat", "a cat"], "num_images_per_prompt": pictures}
    seeds = list(range(2 * pictures))
    expected = pipe(**call, seeds=seeds, guidance=IntervalGuidance(0.0, 0.2)).images
    rows = Rows(monkeypatch, pipe.unet)
    drawn = pipe(**call, seeds=seeds, callback_on_step_end=SDCFGCutoffCallback(None, 0)).images
    assert _alike(drawn, expected)
    assert rows.seen[0] > rows.seen[-1]


@pytest.mark.parametrize("kind", ["class", "semantic", "layout"])
def test_ending_guidance_leaves_the_condition_alone(kind: str) -> None:
    pipe, call = sibling(kind)
    other = torch.zeros(16, 16, dtype=torch.long) if kind == "semantic" else None
    call = {**call, "guidance_scale": 3.0, "negative_condition": other, "seeds": 1}

    def end(pipe: Any, *given: Any) -> None:
        pipe._guidance_scale = 1.0

    expected = pipe(**call, guidance=IntervalGuidance(0.0, 0.2)).images
    assert _alike(pipe(**call, callback_on_step_end=end).images, expected)


def test_prompts_go_on_changing_when_guidance_has_ended() -> None:
    pipe, call = sibling("text")
    call = {**call, "prompt": "a [boat:cat:0.5]", "prompt_syntax": "a1111", "seeds": 1}
    expected = pipe(**call, guidance=IntervalGuidance(0.0, 0.2)).images
    cut = pipe(**call, callback_on_step_end=SDCFGCutoffCallback(None, 0)).images
    assert _alike(cut, expected)


def test_what_needs_guidance_says_so_when_a_callback_changes_it() -> None:
    pipe = tiny_pipeline()
    cutoff = SDCFGCutoffCallback(None, 0)
    call: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent"}
    with pytest.raises(InputError, match="AND needs guidance"):
        pipe("a cat AND a dog", prompt_syntax="a1111", callback_on_step_end=cutoff, **call)

    def begin(pipe: Any, *given: Any) -> None:
        pipe._guidance_scale = 5.0

    with pytest.raises(InputError, match="cannot begin on the way"):
        pipe("a cat", guidance_scale=1.0, callback_on_step_end=begin, **call)
    classes = tiny_conditioned.pipeline("class")
    with pytest.raises(InputError, match="cannot begin on the way"):
        classes(3, callback_on_step_end=begin, **call)
