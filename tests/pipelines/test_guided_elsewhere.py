"""Parts of a guidance in the pipelines with guidance of their own: editing, and panoramas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sfumato import (
    CFGPlusPlus,
    DynamicThresholding,
    IntervalGuidance,
    KDiffusionScheduler,
    PerturbedAttentionGuidance,
    RescaleGuidance,
    SelfAttentionGuidance,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPanoramaPipeline,
)
from sfumato.diffusion.steering import GuidancePart, Question
from sfumato.errors import InputError
from sfumato.pipelines.instruct_pix2pix import EditGuidance
from tests.pipelines.tiny import tiny_parts, tiny_pipeline

PICTURE = Image.effect_noise((16, 16), 60).convert("RGB")


class Keep(GuidancePart):
    """Looks at each question and changes nothing."""

    def __init__(self) -> None:
        self.seen: list[Question] = []

    def change(self, guided: Tensor, question: Question) -> Tensor:
        self.seen.append(question)
        return guided


def edited(guidance: Any = None, *, sampler: str = "dpmpp_2m", **options: Any) -> Tensor:
    pipe = StableDiffusionInstructPix2PixPipeline(**tiny_parts(unet={"in_channels": 8}))
    pipe.scheduler = KDiffusionScheduler.from_config(pipe.scheduler.config, sampler=sampler)
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"num_inference_steps": 4, "output_type": "latent", **options}
    generator = torch.Generator().manual_seed(2)
    result: Any = pipe("make it red", PICTURE, guidance=guidance, generator=generator, **call)
    return result.images


def near(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "part",
    [
        IntervalGuidance(),
        RescaleGuidance(0.0),
        DynamicThresholding(mimic_scale=7.5),
        PerturbedAttentionGuidance(0.0),
        SelfAttentionGuidance(0.0),
    ],
    ids=lambda part: type(part).__name__,
)
def test_a_part_that_shall_change_nothing_leaves_an_edit_as_it_is(part: GuidancePart) -> None:
    assert near(edited(part), edited())


@pytest.mark.parametrize(
    "parts",
    [
        [RescaleGuidance(0.7)],
        [DynamicThresholding(3.0)],
        [PerturbedAttentionGuidance(2.0)],
        [SelfAttentionGuidance(1.0)],
        [PerturbedAttentionGuidance(2.0), IntervalGuidance(0.0, 0.6), RescaleGuidance(0.5)],
    ],
    ids=lambda parts: " ".join(type(part).__name__ for part in parts),
)
def test_other_parts_change_an_edit(parts: Sequence[GuidancePart]) -> None:
    got = edited(parts)
    assert np.isfinite(got.numpy()).all()
    assert not near(got, edited())


def test_outside_of_an_interval_an_edit_is_not_guided() -> None:
    assert near(edited(IntervalGuidance(0.0, 0.0)), edited(guidance_scale=1.0))


def test_an_answer_is_taken_apart_by_text_and_picture() -> None:
    both, image, neither = torch.randn(3, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    guidance = EditGuidance(5.0, image=1.7)
    wanted = neither + 5 * (both - image) + 1.7 * (image - neither)

    def network(x: Tensor, timestep: Tensor, context: Any) -> Tensor:
        assert len(x) == 6
        return torch.cat([both, image, neither])

    got = guidance(network, torch.zeros(2, 4, 3, 3), torch.tensor(1.0), None)
    torch.testing.assert_close(got, wanted)


def test_what_is_perturbed_in_an_edit_is_the_answer_to_the_instruction() -> None:
    keep = Keep()
    edited([keep])
    question = keep.seen[0]
    torch.testing.assert_close(question.ask_positive(), question.answer.positive)
    torch.testing.assert_close(question.ask_weaker(question.x), question.answer.negative)


def test_samplers_of_cfg_plus_plus_edit_with_the_noise_of_neither() -> None:
    keep = Keep()
    ends: list[Tensor] = []
    got = edited(
        [keep],
        sampler="euler_cfg_pp",
        guidance_scale=1.4,
        image_guidance_scale=1.1,
        num_inference_steps=1,
        callback_on_step_end=lambda pipe, i, t, tensors: ends.append(tensors["latents"]),
    )
    (question,) = keep.seen
    guided = question.base.guided(question.answer, 1.4)
    scheduler = KDiffusionScheduler()
    scheduler.set_timesteps(1)
    sigma = float(scheduler.sigmas[0])
    x = question.x * (sigma**2 + 1) ** 0.5
    torch.testing.assert_close(got, x - sigma * guided, atol=1e-3, rtol=1e-3)


def test_what_makes_no_sense_in_an_edit_is_refused() -> None:
    with pytest.raises(InputError, match="of which this pipeline has two"):
        edited(CFGPlusPlus())
    pipe = StableDiffusionInstructPix2PixPipeline(**tiny_parts(unet={"in_channels": 8}))
    with pytest.raises(InputError, match="takes no prompts with AND"):
        pipe("red AND blue", PICTURE, prompt_syntax="a1111", num_inference_steps=1)


def panorama(guidance: Any = None, *, prompt: Any = "a boat", **options: Any) -> Tensor:
    pipe = StableDiffusionPanoramaPipeline.from_pipe(tiny_pipeline())
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"height": 16, "width": 160, "num_inference_steps": 2, **options}
    call |= {"output_type": "latent", "view_batch_size": 2, "guidance": guidance}
    result: Any = pipe(prompt, **{"generator": torch.Generator().manual_seed(1), **call})
    return result.images


PARTS: list[list[GuidancePart]] = [
    [CFGPlusPlus(0.7)],
    [IntervalGuidance(0.4, 1.0)],
    [RescaleGuidance(0.7)],
    [DynamicThresholding(3.0)],
    [PerturbedAttentionGuidance(2.0), IntervalGuidance(0.0, 0.6)],
]


def named(parts: list[GuidancePart]) -> str:
    return " ".join(type(part).__name__ for part in parts)


@pytest.mark.parametrize("parts", PARTS, ids=named)
def test_a_panorama_of_one_window_is_guided_as_a_picture(parts: list[GuidancePart]) -> None:
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    call: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", "guidance": parts}
    alone: Any = pipe("a boat", height=16, width=16, generator=generator, **call)
    assert near(panorama(parts, width=16), alone.images)


@pytest.mark.parametrize("parts", PARTS, ids=named)
def test_a_panorama_of_several_windows_takes_parts(parts: list[GuidancePart]) -> None:
    got = panorama(parts)
    assert np.isfinite(got.numpy()).all()
    assert not near(got, panorama())


def test_prompts_of_several_parts_draw_panoramas_as_they_do_alone() -> None:
    prompts = ["a boat AND a cat :0.5", "a red AND blue :1.2"]
    together = panorama(
        prompt=prompts,
        prompt_syntax="a1111",
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
    )
    for index, prompt in enumerate(prompts):
        own = torch.Generator().manual_seed(index + 1)
        alone = panorama(prompt=prompt, prompt_syntax="a1111", generator=own)
        assert near(together[index : index + 1], alone)


def test_self_attention_guidance_is_refused_for_panoramas() -> None:
    with pytest.raises(InputError, match="sees only windows"):
        panorama(SelfAttentionGuidance())
