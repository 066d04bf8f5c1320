"""Small pictures of a drawing on its way."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import ConfigError, InputError
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.pipelines import previews, stages
from sfumato.pipelines.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback
from sfumato.pipelines.img2img import StableDiffusionImg2ImgPipeline
from sfumato.pipelines.previews import PreviewCallback, colours_of, fit_colours
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from tests.pipelines.tiny import seeded, tiny_pipeline, tiny_scheduler, tiny_vae

CALL: dict[str, Any] = {"prompt": "a boat", "num_inference_steps": 4, "output_type": "latent"}
SCHEDULERS = (
    "PNDMScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
    "KDiffusionScheduler",
)


class Shown:
    """Remembers what is shown."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Image.Image], int, int]] = []

    def __call__(self, pictures: list[Image.Image], done: int, total: int) -> None:
        self.calls.append((pictures, done, total))


def test_every_step_shows_one_pixel_for_each_latent_of_each_picture() -> None:
    pipe: Any = tiny_pipeline()
    shown = Shown()
    pipe.scheduler = tiny_scheduler("EulerDiscreteScheduler")
    call = {**CALL, "height": 16, "width": 24, "num_images_per_prompt": 2}
    drawn = pipe(**call, seeds=[1, 2], callback_on_step_end=PreviewCallback(shown)).images
    assert [(done, total) for _, done, total in shown.calls] == [(i, 4) for i in (1, 2, 3, 4)]
    assert all(len(pictures) == 2 for pictures, _, _ in shown.calls)
    last = shown.calls[-1][0][0]
    assert last.size == (drawn.shape[3], drawn.shape[2]) == (12, 8)
    assert torch.equal(drawn, pipe(**call, seeds=[1, 2]).images)
    assert last.tobytes() == colours_of(pipe.vae)(drawn)[0].tobytes()


def test_some_steps_are_shown_and_always_the_last() -> None:
    pipe, shown = tiny_pipeline(), Shown()
    pipe.scheduler = tiny_scheduler("DDIMScheduler")
    call = {**CALL, "num_inference_steps": 7}
    pipe(**call, callback_on_step_end=PreviewCallback(shown, every=3))
    assert [done for _, done, _ in shown.calls] == [3, 6, 7]
    with pytest.raises(InputError, match="every"):
        PreviewCallback(shown, every=0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_is_shown_is_what_the_network_takes_the_end_to_be(name: str) -> None:
    """Whatever the sampler: noise in the latents' own scale would be far from any colour."""
    pipe: Any = tiny_pipeline()
    pipe.scheduler = tiny_scheduler(name)
    seen: list[torch.Tensor] = []

    def watch(p: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> None:
        seen.append(tensors["denoised"])

    drawn = pipe(
        **CALL,
        generator=seeded(1),
        callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=["denoised"],
    ).images
    assert all(tensor.shape == drawn.shape for tensor in seen)
    own = colours_of(pipe.vae)(seen[-1])
    assert len(own) == 1
    torch.testing.assert_close(seen[-1], drawn, atol=0.5, rtol=0.1)


def test_a_map_is_found_for_any_autoencoder() -> None:
    """One that encodes colours linearly is understood to the last bit."""

    class Linear(torch.nn.Module):
        config = tiny_vae().config
        dtype, device = torch.float32, torch.device("cpu")
        mixing = torch.randn(3, 4, generator=seeded(0))

        def encode(self, picture: torch.Tensor) -> Any:
            pooled = torch.nn.functional.avg_pool2d(picture, 2)
            latents = (pooled.movedim(1, -1) @ self.mixing + 0.3).movedim(-1, 1)
            return type("Encoded", (), {"latents": latents})

    vae: Any = Linear()
    picture = torch.rand(1, 3, 8, 8, generator=seeded(2)) * 2 - 1
    small = torch.nn.functional.avg_pool2d(picture, 2)[0].movedim(0, -1).numpy()
    latents = stages.most_likely(vae, picture, torch.float32) * vae.config.scaling_factor
    shown = np.asarray(fit_colours(vae)(latents)[0])
    np.testing.assert_allclose(shown, np.clip(small / 2 + 0.5, 0, 1) * 255, atol=1)


def test_the_map_of_stable_diffusion_is_known_and_others_are_fitted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), **_four_levels())
    weights = colours_of(vae).weights
    assert weights.tolist() == [pytest.approx(row) for row in previews.STABLE_DIFFUSION]
    tiny = tiny_vae()
    first = colours_of(tiny)
    monkeypatch.setattr(previews, "fit_colours", None)
    assert colours_of(tiny) is first


def _four_levels() -> dict[str, Any]:
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    return {"down_block_types": down, "up_block_types": up}


def test_the_embedded_model_shows_its_picture_before_it_is_done() -> None:
    from sfumato.assets import embedded_model_path

    pipe: Any = StableDiffusionPipeline.from_pretrained(embedded_model_path())
    shown = Shown()
    pipe.set_progress_bar_config(disable=True)
    image = pipe(
        "a red apple",
        seeds=1,
        num_inference_steps=6,
        callback_on_step_end=PreviewCallback(shown),
    ).images[0]
    errors = []
    for pictures, _, _ in shown.calls:
        small = image.resize(pictures[0].size, Image.Resampling.BOX)
        difference = np.asarray(pictures[0], dtype=float) - np.asarray(small, dtype=float)
        errors.append(np.abs(difference).mean())
    assert errors[-1] < 25
    assert errors[-1] < errors[0] - 10


def test_previews_go_with_other_callbacks_and_pipelines() -> None:
    pipe, shown = StableDiffusionImg2ImgPipeline.from_pipe(tiny_pipeline()), Shown()
    callbacks: Any = [PreviewCallback(shown), SDCFGCutoffCallback(cutoff_step_ratio=0.5)]
    image = Image.new("RGB", (16, 16), "red")
    pipe(**CALL, image=image, callback_on_step_end=MultiPipelineCallbacks(callbacks))
    assert shown.calls


def test_two_threads_see_previews_of_their_own_drawings() -> None:
    pipe = tiny_pipeline()
    shown = [Shown(), Shown()]

    def run(index: int) -> None:
        pipe(**CALL, seeds=index, callback_on_step_end=PreviewCallback(shown[index]))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        alone = Shown()
        pipe(**CALL, seeds=index, callback_on_step_end=PreviewCallback(alone))
        for mine, again in zip(shown[index].calls, alone.calls, strict=True):
            assert mine[0][0].tobytes() == again[0][0].tobytes()


def test_wrong_latents_and_a_missing_autoencoder_are_refused() -> None:
    colours = colours_of(tiny_vae())
    with pytest.raises(InputError, match="channels"):
        colours(torch.zeros(1, 5, 2, 2))
    with pytest.raises(InputError, match="vae"):
        colours_of(None)
    with pytest.raises(ConfigError):
        SDCFGCutoffCallback(cutoff_step_ratio=2.0)
