"""Text to image beyond what diffusers does, and the hooks around the flow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sfumato.errors import InputError, NumericalError, UnknownKeywordError
from sfumato.pipelines.callbacks import (
    MultiPipelineCallbacks,
    PipelineCallback,
    SDCFGCutoffCallback,
)
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from tests.pipelines.tiny import (
    WIDTH,
    seeded,
    tiny_parts,
    tiny_pipeline,
    tiny_scheduler,
    tiny_unet,
)


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return tiny_pipeline(scheduler=tiny_scheduler("DDIMScheduler"))


def _call(pipe: Any, **arguments: Any) -> Any:
    base = {"prompt": "a boat", "num_inference_steps": 2, "generator": seeded(1)}
    return pipe(**{**base, **arguments})


def test_height_and_width_have_defaults_of_their_own(pipe: StableDiffusionPipeline) -> None:
    assert _call(pipe).images[0].size == (16, 16)
    assert _call(pipe, width=32).images[0].size == (32, 16)
    assert _call(pipe, height=24).images[0].size == (16, 24)


def test_the_default_size_may_be_two_numbers_or_missing() -> None:
    pipe = tiny_pipeline(unet=tiny_unet(sample_size=(8, 12)))
    assert _call(pipe).images[0].size == (24, 16)
    pipe = tiny_pipeline(unet=tiny_unet(sample_size=None))
    with pytest.raises(InputError, match="Pass `height` and `width`"):
        _call(pipe)
    assert _call(pipe, height=16, width=16).images


def test_a_misspelt_keyword_is_a_type_error_with_a_suggestion(
    pipe: StableDiffusionPipeline,
) -> None:
    with pytest.raises(UnknownKeywordError, match=r"Did you mean 'num_inference_steps'\?"):
        pipe("a boat", num_inference_step=3)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'seed'"):
        pipe("a boat", seed=3)


def test_the_result_is_an_object_or_a_tuple(pipe: StableDiffusionPipeline) -> None:
    output = _call(pipe, output_type="pt")
    assert output.nsfw_content_detected is None
    assert output["images"] is output.images is output[0]
    images, flags = _call(pipe, output_type="pt", return_dict=False)
    assert torch.equal(images, output.images)
    assert flags is None
    assert output.images.min() >= 0
    assert output.images.max() <= 1


def test_a_picture_does_not_depend_on_its_neighbours_with_a_generator_each(
    pipe: StableDiffusionPipeline,
) -> None:
    prompts = ["a boat", "a cat", "a sky"]
    together = _call(pipe, prompt=prompts, generator=seeded(1, 2, 3), output_type="latent").images
    for index, prompt in enumerate(prompts):
        alone = _call(pipe, prompt=prompt, generator=seeded(index + 1), output_type="latent").images
        assert torch.allclose(together[index], alone[0], atol=1e-4)


def test_an_unknown_output_type_is_an_array_with_a_warning(pipe: StableDiffusionPipeline) -> None:
    with pytest.warns(FutureWarning, match="outdated"):
        images = _call(pipe, output_type="jpeg").images
    assert images.shape == (1, 16, 16, 3)


def test_latents_may_come_in_another_precision_and_size(pipe: StableDiffusionPipeline) -> None:
    latents = torch.randn(1, 4, 12, 8, dtype=torch.float64, generator=seeded(0))
    result = _call(pipe, latents=latents, output_type="latent").images
    assert result.shape == (1, 4, 12, 8)
    assert result.dtype == torch.float32


def test_callbacks_can_be_combined(pipe: StableDiffusionPipeline) -> None:
    class Count(PipelineCallback):
        tensor_inputs = ("latents",)
        steps = 0

        def callback_fn(self, *args: Any) -> dict[str, Any]:
            assert set(args[3]) == {"latents", "prompt_embeds"}
            self.steps += 1
            return args[3]

    count, cutoff = Count(), SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    callbacks = MultiPipelineCallbacks([count, cutoff])
    _call(pipe, num_inference_steps=4, callback_on_step_end=callbacks)
    assert count.steps == 4
    assert pipe.guidance_scale == 0.0


@pytest.mark.parametrize(
    "arguments",
    [
        {"cutoff_step_ratio": None},
        {"cutoff_step_ratio": 0.5, "cutoff_step_index": 2},
        {"cutoff_step_ratio": 1},
        {"cutoff_step_ratio": 1.5},
    ],
)
def test_a_cutoff_is_a_ratio_or_a_step(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cutoff_step_ratio"):
        PipelineCallback(**arguments)


def test_a_callback_class_without_a_function_says_so() -> None:
    with pytest.raises(NotImplementedError, match="callback_fn"):
        PipelineCallback()(None, 0, 0, {})


class Checker:
    """A safety checker that objects to every second picture."""

    def __init__(self) -> None:
        self.inputs: list[torch.Tensor] = []

    def __call__(self, images: Any, clip_input: Any) -> Any:
        self.inputs.append(clip_input)
        flags = [index % 2 == 1 for index in range(len(images))]
        for index, flag in enumerate(flags):
            if flag:
                images[index] = torch.zeros_like(images[index])
        return images, flags


class Features(dict[str, Any]):
    def to(self, device: Any) -> Any:
        return SimpleNamespace(**self)


def _extract(pictures: Any, return_tensors: str) -> Any:
    assert return_tensors == "pt"
    return Features(pixel_values=torch.tensor([float(p.getpixel((0, 0))[0]) for p in pictures]))


def test_a_safety_checker_sees_every_picture_and_blackens() -> None:
    checker = Checker()
    pipe = tiny_pipeline(safety_checker=checker, feature_extractor=_extract)
    output = _call(pipe, num_images_per_prompt=2)
    assert output.nsfw_content_detected == [False, True]
    assert output.images[1].getextrema() == ((0, 0), (0, 0), (0, 0))
    assert output.images[0].getextrema() != ((0, 0), (0, 0), (0, 0))
    assert checker.inputs[0].tolist()[0] == output.images[0].getpixel((0, 0))[0]
    _call(pipe, output_type="latent")
    assert len(checker.inputs) == 1


def test_a_safety_checker_needs_a_feature_extractor() -> None:
    with pytest.raises(ValueError, match="Make sure to define a feature extractor"):
        tiny_pipeline(safety_checker=Checker())


def test_a_missing_safety_checker_is_mentioned_unless_it_is_meant(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tiny_pipeline(requires_safety_checker=False)
    assert not caplog.records
    tiny_pipeline(requires_safety_checker=True)
    assert "has no safety checker" in caplog.text


def test_nan_from_the_unet_is_an_error_that_names_the_step() -> None:
    pipe = tiny_pipeline(safety_checker=Checker(), feature_extractor=_extract)
    pipe.unet.conv_out.register_forward_hook(lambda module, args, output: output * torch.nan)
    with pytest.raises(NumericalError, match=r"step 1 of 3.*float32"):
        _call(pipe)


def test_nan_from_the_autoencoder_is_an_error_and_no_objection() -> None:
    checker = Checker()
    pipe = tiny_pipeline(safety_checker=checker, feature_extractor=_extract)
    pipe.vae.decoder.register_forward_hook(lambda module, args, output: output * torch.inf)
    with pytest.raises(NumericalError, match=r"autoencoder \(`vae`\) overflowed"):
        _call(pipe)
    assert checker.inputs == []
    assert _call(pipe, output_type="latent").images.isfinite().all()


@pytest.mark.parametrize("name", ["unet", "vae", "scheduler", "text_encoder", "tokenizer"])
def test_a_call_says_which_component_it_misses(name: str) -> None:
    pipe = StableDiffusionPipeline(**{**tiny_parts(), name: None})
    with pytest.raises(InputError, match=r"(must have `|needs a )(unet|vae|scheduler|tokenizer)"):
        _call(pipe, height=16, width=16)


def test_a_pipeline_of_the_text_half_encodes_prompts() -> None:
    parts = tiny_parts() | dict.fromkeys(["unet", "vae", "scheduler"])
    positive, negative = StableDiffusionPipeline(**parts).encode_prompt("a boat", "cpu", 2, True)
    assert positive.shape == (2, 77, WIDTH)
    assert negative is not None
    assert negative.shape == (2, 77, WIDTH)


def test_a_pipeline_without_text_half_draws_from_embeddings() -> None:
    whole = tiny_pipeline()
    with torch.no_grad():
        positive, negative = whole.encode_prompt("a boat", "cpu", 1, True)
    bare = tiny_pipeline(text_encoder=None, tokenizer=None)
    expected = _call(whole, output_type="latent").images
    embeds = {"prompt": None, "prompt_embeds": positive, "negative_prompt_embeds": negative}
    assert torch.equal(_call(bare, **embeds, output_type="latent").images, expected)
    with pytest.raises(InputError, match="Pass `prompt_embeds`"):
        _call(bare)


def test_one_negative_prompt_serves_a_batch_of_embeddings(pipe: StableDiffusionPipeline) -> None:
    embeds = torch.randn(2, 77, WIDTH, generator=seeded(0))
    arguments = {"prompt": None, "prompt_embeds": embeds, "output_type": "latent"}
    one = _call(pipe, **arguments, negative_prompt="blue").images
    two = _call(pipe, **arguments, negative_prompt=["blue", "blue"]).images
    assert torch.allclose(one, two, atol=1e-5)


def test_pictures_as_prompts_need_an_adapter(pipe: StableDiffusionPipeline) -> None:
    for argument in (
        {"ip_adapter_image": torch.zeros(1, 3, 8, 8)},
        {"ip_adapter_image_embeds": [torch.zeros(2, 1, 8)]},
    ):
        with pytest.raises(InputError, match="need an IP-Adapter, but none is loaded"):
            _call(pipe, **argument)
    with pytest.raises(InputError, match="needs an `image_encoder`"):
        pipe.encode_image(torch.zeros(1, 3, 8, 8), "cpu", 1)


def test_early_scheduler_configurations_are_mended_with_a_warning() -> None:
    scheduler = tiny_scheduler("DDIMScheduler", steps_offset=0, clip_sample=True)
    with pytest.warns(FutureWarning) as warned:
        pipe = tiny_pipeline(scheduler=scheduler)
    assert {"steps_offset", "clip_sample"} <= {str(w.message).split("`")[1] for w in warned}
    assert pipe.scheduler.config.steps_offset == 1
    assert pipe.scheduler.config.clip_sample is False
    assert pipe.scheduler is scheduler


def test_no_gradients_are_kept(pipe: StableDiffusionPipeline) -> None:
    assert not _call(pipe, output_type="latent").images.requires_grad


def test_the_global_random_state_is_left_alone(pipe: StableDiffusionPipeline) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    _call(pipe, generator=seeded(1), eta=1.0)
    assert torch.equal(before, torch.random.get_rng_state())
