"""Seeds as arguments of a call."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
    EulerAncestralDiscreteScheduler,
)
from torch import Tensor

from sfumato.diffusion.brownian import BrownianPath
from sfumato.diffusion.philox import cuda_randn
from sfumato.diffusion.seeds import NvidiaNoise
from sfumato.errors import InputError
from tests.pipelines.tiny import SD_SCHEDULER, seeded, tiny_pipeline, tiny_scheduler
from tests.pipelines.tiny_siblings import sibling


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline(scheduler=tiny_scheduler("EulerAncestralDiscreteScheduler"))


def latents(pipe: Any, prompt: Any = "a cat", **options: Any) -> Tensor:
    return pipe(prompt, num_inference_steps=3, output_type="latent", **options).images


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and ((a - b).abs().max() / b.abs().max()).item() < 1e-4


def test_each_picture_of_a_batch_is_what_its_seed_gives_alone(pipe: Any) -> None:
    batch = latents(pipe, seeds=[3, 9, 2**64 - 1])
    for index, seed in enumerate([3, 9, 2**64 - 1]):
        assert close(batch[index : index + 1], latents(pipe, seeds=seed))
    assert torch.equal(latents(pipe, seeds=[3]), latents(pipe, generator=seeded(3)))


def test_prompts_share_the_seeds(pipe: Any) -> None:
    four = latents(pipe, ["a", "b"], seeds=[1, 2, 3, 4])
    assert close(four[2:3], latents(pipe, "b", seeds=[3]))
    assert close(four, latents(pipe, ["a", "b"], seeds=[1, 2, 3, 4], num_images_per_prompt=2))


@pytest.mark.parametrize("rng", ["nvidia", "comfyui"])
def test_other_sources_draw_all_noise_of_a_picture(pipe: Any, rng: str) -> None:
    both = latents(pipe, seeds=[3, 9], rng=rng)
    assert close(both[1:], latents(pipe, seeds=[9], rng=rng))
    assert not close(both[1:], latents(pipe, seeds=[9]))


def test_a_source_can_be_given_as_the_generator(pipe: Any) -> None:
    found = latents(pipe, generator=NvidiaNoise([9]))
    assert torch.equal(found, latents(pipe, seeds=[9], rng="NV"))
    with pytest.raises(InputError, match="seeds"):
        latents(pipe, ["a", "b"], generator=NvidiaNoise([9]))


def test_the_noise_of_a_card_is_what_is_given_as_latents() -> None:
    pipe = tiny_pipeline(scheduler=tiny_scheduler("DDIMScheduler"))
    noise = NvidiaNoise([4]).draw((1, 4, 8, 8), torch.float32, "cpu")
    assert torch.equal(latents(pipe, seeds=4, rng="nvidia"), latents(pipe, latents=noise))


def test_variations_lie_between_two_pictures(pipe: Any) -> None:
    start, end = latents(pipe, seeds=[1]), latents(pipe, seeds=[2])
    assert torch.equal(start, latents(pipe, seeds=[1], variation_seed=2, variation_strength=0))
    near = latents(pipe, seeds=[1], variation_seed=2, variation_strength=0.05)
    assert not close(near, start)
    assert (near - start).norm() < (near - end).norm()
    pair = latents(pipe, seeds=[1, 1], variation_seed=[2, 3], variation_strength=0.05)
    assert close(pair[:1], near) and not close(pair[1:], near)


def test_a_picture_of_another_size_keeps_its_noise(pipe: Any) -> None:
    wide = latents(pipe, seeds=[1], height=16, width=32)
    kept = latents(pipe, seeds=[1], height=16, width=32, seed_resize_from=(16, 16))
    assert kept.shape == wide.shape and not close(kept, wide)
    same = latents(pipe, seeds=[1], height=16, width=32, seed_resize_from=(16, 32))
    assert torch.equal(wide, same)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": [1], "generator": seeded(1)}, "either"),
        ({"seeds": [-1]}, "seed"),
        ({"seeds": "1"}, "seed"),
        ({"seeds": [1, 2, 3], "num_images_per_prompt": 2}, "3 seeds for 2"),
        ({"rng": "nvidia"}, "only with `seeds`"),
        ({"variation_strength": 0.5}, "only with `seeds`"),
        ({"seeds": [1], "variation_strength": 0.5}, "needs a `variation_seed`"),
        ({"seeds": [1], "variation_strength": 1.5, "variation_seed": 1}, "variation_strength"),
        ({"seeds": [1, 2], "variation_strength": 0.5, "variation_seed": [1, 2, 3]}, "variation"),
        ({"seeds": [1], "rng": "amd"}, "rng"),
        ({"seeds": [1], "seed_resize_from": 8}, "height and a width"),
        ({"seeds": [1], "seed_resize_from": (8, 9)}, "divisible by 8"),
    ],
)
def test_wrong_arguments_are_told(pipe: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        latents(pipe, **options)


def test_a_foreign_scheduler_takes_plain_seeds_and_refuses_other_sources() -> None:
    foreign = EulerAncestralDiscreteScheduler(**SD_SCHEDULER, steps_offset=1)
    pipe = tiny_pipeline(scheduler=foreign)
    ours = tiny_pipeline(scheduler=tiny_scheduler("EulerAncestralDiscreteScheduler"))
    assert close(latents(pipe, seeds=[1, 2]), latents(ours, seeds=[1, 2]))
    with pytest.raises(InputError, match="torch generators only"):
        latents(pipe, seeds=[1], rng="nvidia")


def test_calls_in_two_threads_draw_what_they_draw_alone(pipe: Any) -> None:
    def call(seed: int) -> Tensor:
        return latents(pipe, seeds=[seed], rng="nvidia", variation_seed=5, variation_strength=0.2)

    alone = [call(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, alone, pool.map(call, range(4))))


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_a_delta_moves_what_samplers_add_and_not_the_start(name: str) -> None:
    pipe: Any = tiny_pipeline(scheduler=tiny_scheduler(name))
    call: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent", "seeds": 4}
    drawn = [pipe("a boat", **call, eta_noise_seed_delta=delta).images for delta in (0, 31337)]
    assert torch.allclose(*drawn, atol=1e-4) is ("Ancestral" not in name)
    with pytest.raises(InputError, match="eta_noise_seed_delta"):
        pipe("a boat", **call, eta_noise_seed_delta=-1)


@pytest.mark.parametrize("rng", ["cpu", "nvidia", "comfyui"])
def test_the_noise_of_a_brownian_path_is_that_of_the_seed(rng: str) -> None:
    pipe: Any = tiny_pipeline(scheduler=tiny_scheduler("DPMSolverSDEScheduler"))
    call: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent", "rng": rng}
    both = pipe(["a boat", "a cat"], seeds=[4, 5], **call).images
    alone = pipe("a cat", seeds=5, **call).images
    assert torch.allclose(both[1:], alone, atol=1e-4)
    moved = pipe("a cat", seeds=5, eta_noise_seed_delta=3, **call) if rng != "comfyui" else None
    assert moved is None or torch.equal(moved.images, alone)  # as A1111 has it
    other = pipe("a cat", seeds=6, latents=both[1:], **call).images
    assert not torch.allclose(other, pipe("a cat", seeds=7, latents=both[1:], **call).images)


def test_paths_of_a_card_are_drawn_from_its_numbers() -> None:
    own = BrownianPath((1, 2, 3, 4), 0.1, 9.0, (7,))
    card = BrownianPath((1, 2, 3, 4), 0.1, 9.0, (7,), randn=NvidiaNoise.randn)
    assert not torch.allclose(own.noise(9.0, 1.0), card.noise(9.0, 1.0))
    drawn = card.increment(9.0, 0.1)
    top = np.random.SeedSequence(7, pool_size=24).generate_state(3)[0]
    numbers = torch.from_numpy(cuda_randn(24, int(top))).view(1, 2, 3, 4)
    assert torch.allclose(drawn, -numbers * 8.9**0.5, atol=1e-5)


@pytest.mark.parametrize("more", [{"variation_seed": 9, "variation_strength": 1.0}, {"rng": "cpu"}])
def test_an_enlarged_picture_begins_from_noise_that_varies(more: dict[str, Any]) -> None:
    """Noise on the small picture is drawn before the noise to begin with, and stays as it is."""
    pipe, call = sibling("upscale")
    started: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []
    unet = pipe.unet.forward

    def look(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        started.append(x[:1, :4])
        seen.append(x[:1, 4:])
        return unet(x, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe.unet, "forward", look)
        for options in ({}, more):
            pipe(**{**call, "num_inference_steps": 1}, seeds=3, **options)
    assert torch.equal(*seen)
    assert torch.equal(*started) == (more == {"rng": "cpu"})
