"""The JAX pipeline draws what the torch pipeline draws from the same latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato.schedulers
from sfumato import KDiffusionScheduler, StableDiffusionPipeline
from sfumato.diffusion.samplers.named import NAMED
from sfumato.errors import InputError
from tests.jax.small import small_pipeline
from tests.pipelines.tiny import SD_SCHEDULER

jax = pytest.importorskip("jax")

from sfumato.jax.pipeline import FlaxStableDiffusionPipeline  # noqa: E402
from sfumato.jax.schedulers import functional  # noqa: E402
from tests.jax.noise import Bank  # noqa: E402

KEY = jax.random.PRNGKey(0)
#: Samplers of every kind: with and without noise of their own, of one and of several calls.
SAMPLERS = [
    "PNDMScheduler", "DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler",
    "LMSDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    small_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def both(folder: Path) -> tuple[Any, Any, Any]:
    pipeline, params = FlaxStableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    torch_pipe = StableDiffusionPipeline.from_pretrained(folder)
    torch_pipe.set_progress_bar_config(disable=True)
    return pipeline, params, torch_pipe


def latents(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 4, 8, 8)).astype(np.float32)


def torch_images(pipe: Any, prompts: list[str], noise: np.ndarray, **options: Any) -> np.ndarray:
    return pipe(prompts, latents=torch.from_numpy(noise), output_type="np", **options).images


def scheduler(name: str, **options: Any) -> Any:
    cls = getattr(sfumato.schedulers, name)
    known = set(cls.config_class.__dataclass_fields__)
    wanted = {"skip_prk_steps": True, "steps_offset": 1, "clip_sample": False, **SD_SCHEDULER}
    return cls(**{k: v for k, v in {**wanted, **options}.items() if k in known})


def use_scheduler(
    both: Any, scheduler: Any, steps: int, monkeypatch: pytest.MonkeyPatch, eta: float = 0.0
) -> Bank | None:
    """Give both pipelines a scheduler, and torch the noise that JAX draws of `KEY`, if any."""
    pipeline, _, torch_pipe = both
    monkeypatch.setattr(pipeline, "scheduler", scheduler)
    torch_pipe.scheduler = scheduler
    plan = functional(type(scheduler)).from_config(scheduler.config).plan(steps, eta=eta)
    return Bank(KEY, plan, (1, 4, 8, 8)) if plan.draws.any() else None


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_that_is_a_table_draws_as_in_torch(
    name: str, both: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, params, torch_pipe = both
    noise, steps = latents(1), 5
    drawn = use_scheduler(both, scheduler(name), steps, monkeypatch)
    ids = pipeline.prepare_inputs(["a cat"])
    found = pipeline(ids, params, KEY, steps, latents=noise, jit=False).images
    expected = torch_images(
        torch_pipe, ["a cat"], noise, num_inference_steps=steps, generator=drawn
    )
    assert np.abs(np.asarray(found) - expected).max() < 1e-4


@pytest.mark.parametrize(("name", "named"), sorted(NAMED.items()))
def test_every_sampler_of_k_diffusion_and_comfyui_draws_as_in_torch(
    name: str, named: Any, both: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, params, torch_pipe = both
    noise, steps, scale = latents(1), 5, 0.8 if named.wants_negative else 5.0
    k_scheduler = KDiffusionScheduler(**SD_SCHEDULER, sampler=name)
    drawn = use_scheduler(both, k_scheduler, steps, monkeypatch)
    ids = pipeline.prepare_inputs(["a cat", "a dog"])
    options: dict[str, Any] = {"guidance_scale": scale, "latents": noise}
    images = pipeline(ids[:1], params, KEY, steps, neg_prompt_ids=ids[1:], **options).images
    expected = torch_images(
        torch_pipe, ["a cat"], noise, negative_prompt=["a dog"], num_inference_steps=steps,
        guidance_scale=scale, generator=drawn,
    )  # fmt: skip
    assert np.abs(np.asarray(images) - expected).max() < 1e-4


@pytest.mark.parametrize(("name", "eta"), [("DDIMScheduler", 0.6), ("TCDScheduler", 0.3)])
@pytest.mark.parametrize("jit", [True, False])
def test_a_share_of_fresh_noise_is_that_of_torch(
    name: str, eta: float, jit: bool, both: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, params, torch_pipe = both
    noise, ids = latents(1), pipeline.prepare_inputs("a cat")
    images = []
    for share in (0.0, eta):
        drawn = use_scheduler(both, scheduler(name), 4, monkeypatch, share)
        found = pipeline(ids, params, KEY, 4, latents=noise, jit=jit, eta=share).images
        expected = torch_images(
            torch_pipe, ["a cat"], noise, num_inference_steps=4, eta=share, generator=drawn
        )
        assert np.abs(np.asarray(found) - expected).max() < 1e-4
        images.append(expected)
    assert np.abs(images[0] - images[1]).max() > 1e-2


@pytest.mark.parametrize("jit", [True, False])
def test_samplers_of_cfg_plus_plus_are_compiled_and_take_any_scale(both: Any, jit: bool) -> None:
    pipeline, params, torch_pipe = both
    noise = latents(3)
    before = pipeline.scheduler
    pipeline.scheduler = KDiffusionScheduler(**SD_SCHEDULER, sampler="dpmpp_2m_cfg_pp")
    torch_pipe.scheduler = pipeline.scheduler
    ids, key = pipeline.prepare_inputs(["a cat"] * 3), jax.random.PRNGKey(0)
    scales = np.array([0.6, 1.0, 1.4], np.float32)
    found = pipeline(ids, params, key, 4, guidance_scale=scales, latents=noise, jit=jit).images
    alone = pipeline(ids, params, key, 4, guidance_scale=0, latents=noise, jit=jit).images
    pipeline.scheduler = before
    for i, scale in enumerate([0.6, 1.0, 1.4]):
        expected = torch_images(
            torch_pipe, ["a cat"], noise[i : i + 1], num_inference_steps=4, guidance_scale=scale
        )
        assert np.abs(np.asarray(found[i]) - expected[0]).max() < 1e-4
    expected = torch_images(
        torch_pipe, ["a cat"] * 3, noise, num_inference_steps=4, guidance_scale=0.0
    )
    assert np.abs(np.asarray(alone) - expected).max() < 1e-4


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize(("batch", "scale"), [(1, 5), (5, 7.5), (5, [1.0, 2.0, 7.5, 3.0, 0.5])])
def test_batches_and_scales_of_all_kinds_agree_with_torch(
    both: Any, jit: bool, batch: int, scale: Any
) -> None:
    pipeline, params, torch_pipe = both
    torch_pipe.scheduler = scheduler("PNDMScheduler")
    noise = latents(batch)
    prompts = ["a cat", "an owl", "", "a red apple on a table", "x"][:batch]
    given = np.asarray(scale, np.float32) if isinstance(scale, list) else scale
    found = pipeline(
        pipeline.prepare_inputs(prompts), params, jax.random.PRNGKey(0), 4,
        guidance_scale=given, latents=noise, jit=jit,
    )  # fmt: skip
    scales = scale if isinstance(scale, list) else [scale] * batch
    for i, prompt in enumerate(prompts):
        expected = torch_images(
            torch_pipe, [prompt], noise[i : i + 1], num_inference_steps=4, guidance_scale=scales[i]
        )
        assert np.abs(np.asarray(found.images[i]) - expected[0]).max() < 1e-4, i
    assert found.nsfw_content_detected == [False] * batch


def test_negative_prompts_and_sizes_agree_with_torch(both: Any) -> None:
    pipeline, params, torch_pipe = both
    torch_pipe.scheduler = scheduler("PNDMScheduler")
    noise = np.random.default_rng(0).standard_normal((1, 4, 12, 16)).astype(np.float32)
    found, flags = pipeline(
        pipeline.prepare_inputs("a cat"), params, jax.random.PRNGKey(0), 3, 24, 32,
        neg_prompt_ids=pipeline.prepare_inputs("a dog"), latents=noise, return_dict=False,
        jit=True,
    )  # fmt: skip
    expected = torch_images(
        torch_pipe, ["a cat"], noise, negative_prompt=["a dog"], num_inference_steps=3,
        height=24, width=32,
    )  # fmt: skip
    assert flags == [False]
    assert np.abs(np.asarray(found) - expected).max() < 1e-4


def test_a_seed_draws_one_picture_with_and_without_jit(both: Any) -> None:
    pipeline, params, _ = both
    ids, key = pipeline.prepare_inputs(["a cat"] * 2), jax.random.PRNGKey(3)
    drawn = [np.asarray(pipeline(ids, params, key, 3, jit=jit).images) for jit in (True, False)]
    assert np.abs(drawn[0] - drawn[1]).max() < 1e-5
    other = np.asarray(pipeline(ids, params, jax.random.PRNGKey(4), 3, jit=True).images)
    assert np.abs(drawn[0] - other).max() > 1e-2


def test_what_is_saved_is_read_by_torch_and_jax_alike(both: Any, tmp_path: Path) -> None:
    pipeline, params, torch_pipe = both
    pipeline.save_pretrained(tmp_path / "saved", params)
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    for name in ("unet", "vae", "text_encoder"):
        expected = getattr(torch_pipe, name).state_dict()
        found = getattr(again, name).state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    _, reread = FlaxStableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), params, reread)
    assert jax.tree.all(same)


def test_bfloat16_stays_near_float32(folder: Path, both: Any) -> None:
    pipeline, params, _ = both
    half, halved = FlaxStableDiffusionPipeline.from_pretrained(folder, dtype=jax.numpy.bfloat16)
    halved = {**halved, "unet": half.unet.to_bf16(halved["unet"])}
    ids, key = pipeline.prepare_inputs(["a cat"]), jax.random.PRNGKey(0)
    exact = np.asarray(pipeline(ids, params, key, 3, jit=True).images)
    rough = np.asarray(half(ids, halved, key, 3, jit=True).images)
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).max() < 0.1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_inference_steps": 0}, "`num_inference_steps` has to be an integer from 1"),
        ({"height": 20}, "have to be divisible by 8"),
        ({"guidance_scale": float("nan")}, "`guidance_scale` has to be a finite number"),
        ({"guidance_scale": np.ones(3)}, "`guidance_scale` has 3 numbers for a batch of 2"),
        ({"latents": np.zeros((1, 4, 8, 8), np.float32)}, "Unexpected latents shape"),
        ({"latents": np.full((2, 4, 8, 8), np.nan, np.float32)}, "NaN or infinity"),
        ({"prng_seed": 7}, "`prng_seed` has to be a key"),
        ({"prompt_ids": ["a cat"]}, "`prompt_ids` has to be integers"),
        ({"prompt_ids": np.full((2, 77), 10**6)}, "`prompt_ids` has ids outside of"),
        ({"neg_prompt_ids": np.zeros((1, 77), int)}, "have to be of one shape"),
        ({"params": {}}, "`params` lacks text_encoder, unet, vae"),
    ],
)
def test_bad_arguments_are_refused(both: Any, changes: dict[str, Any], said: str) -> None:
    pipeline, params, _ = both
    good = {
        "prompt_ids": pipeline.prepare_inputs(["a cat"] * 2),
        "params": params,
        "prng_seed": jax.random.PRNGKey(0),
        "num_inference_steps": 2,
    }
    with pytest.raises(InputError, match=said):
        pipeline(**{**good, **changes})


def test_a_prompt_has_to_be_text(both: Any) -> None:
    with pytest.raises(InputError, match="`prompt` has to be of type"):
        both[0].prepare_inputs(7)
