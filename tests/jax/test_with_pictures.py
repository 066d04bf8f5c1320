"""Image to image and inpainting in JAX draw what the torch pipelines draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from sfumato.errors import ImageError, InputError
from sfumato.pipelines import start
from tests.jax.small import small_pipeline, small_unet
from tests.jax.test_pipeline import scheduler

jax = pytest.importorskip("jax")

from sfumato.jax.pictures import as_masks, as_pictures  # noqa: E402
from sfumato.jax.with_pictures import (  # noqa: E402
    FlaxStableDiffusionImg2ImgPipeline,
    FlaxStableDiffusionInpaintPipeline,
)

KEY = jax.random.PRNGKey(0)


def pair(flax: Any, torch_class: Any, folder: Path, pipe: Any) -> tuple[Any, Any, Any]:
    pipe.save_pretrained(folder)
    mine, params = flax.from_pretrained(folder)
    theirs = torch_class.from_pretrained(folder)
    for one in (mine, theirs):
        one.set_progress_bar_config(disable=True)
    return mine, params, theirs


@pytest.fixture(scope="module")
def img2img(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pair(
        FlaxStableDiffusionImg2ImgPipeline,
        sfumato.StableDiffusionImg2ImgPipeline,
        tmp_path_factory.mktemp("img2img"),
        small_pipeline(),
    )


def noise(batch: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 4, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerDiscreteScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_image_to_image_agrees_with_torch(
    img2img: Any, name: str, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, params, theirs = img2img
    mine.scheduler = theirs.scheduler = scheduler(name)
    known, drawn = noise(seed=1), noise(seed=2)
    found = mine(
        mine.prepare_inputs("a cat"), known, params, KEY, strength=strength,
        num_inference_steps=5, noise=drawn,
    ).images  # fmt: skip
    monkeypatch.setattr(start, "randn_tensor", lambda *_, **__: torch.from_numpy(drawn))
    expected = theirs(
        "a cat", image=torch.from_numpy(known), strength=strength, num_inference_steps=5,
        output_type="np",
    ).images  # fmt: skip
    assert np.abs(np.asarray(found) - expected).max() < 1e-4


def test_pictures_are_encoded_and_no_strength_gives_them_back(img2img: Any) -> None:
    mine, params, theirs = img2img
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (19, 16, 3), np.uint8))
    ids, image = mine.prepare_inputs(["a cat"], picture)
    assert image.shape == (1, 3, 18, 16) and -1 <= image.min() < image.max() <= 1
    image = image[:, :, :16]
    mine.scheduler = scheduler("DDIMScheduler")  # PNDM has a call more than steps
    found = np.asarray(mine(ids, image, params, KEY, strength=0.0).images)
    with torch.no_grad():
        mode = theirs.vae.encode(torch.from_numpy(image)).latent_dist
        expected = theirs.vae.decode(mode.mode()).sample / 2 + 0.5
    spread = float(mode.std.mean())
    assert np.abs(found - expected.clamp(0, 1).permute(0, 2, 3, 1).numpy()).mean() < spread


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pair(
        FlaxStableDiffusionInpaintPipeline,
        sfumato.StableDiffusionInpaintPipeline,
        tmp_path_factory.mktemp("plain"),
        small_pipeline(),
    )


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pair(
        FlaxStableDiffusionInpaintPipeline,
        sfumato.StableDiffusionInpaintPipeline,
        tmp_path_factory.mktemp("nine"),
        small_pipeline(unet=small_unet(in_channels=9)),
    )


@pytest.mark.parametrize("kind", ["plain", "nine"])
@pytest.mark.parametrize("jit", [True, False])
def test_inpainting_agrees_with_torch(kind: str, jit: bool, request: pytest.FixtureRequest) -> None:
    mine, params, theirs = request.getfixturevalue(kind)
    mine.scheduler = theirs.scheduler = scheduler("DDIMScheduler")
    known, drawn = noise(seed=1), noise(seed=2)
    mask = np.zeros((1, 1, 16, 16), np.float32)
    mask[:, :, 4:12, 6:] = 1
    found = mine(
        mine.prepare_inputs("a cat"), mask, known, params, KEY, num_inference_steps=4,
        latents=drawn, jit=jit,
    ).images  # fmt: skip
    expected = theirs(
        "a cat", image=torch.from_numpy(known), mask_image=torch.from_numpy(mask),
        masked_image_latents=torch.from_numpy(known), latents=torch.from_numpy(drawn),
        height=16, width=16, num_inference_steps=4, strength=1.0, output_type="np",
    ).images  # fmt: skip
    assert np.abs(np.asarray(found) - expected).max() < 1e-4


def test_pictures_come_in_many_forms_and_masks_are_made_of_zeros_and_ones() -> None:
    array = np.random.default_rng(0).random((17, 16, 3)).astype(np.float32)
    pil = Image.fromarray(np.uint8(np.round(array * 255)))
    found = [as_pictures(form, 1) for form in (array, [array], array[None], pil, [pil, pil])]
    assert [len(pictures) for pictures in found] == [1, 1, 1, 1, 2]
    assert all(np.abs(pictures[0] - found[0][0]).max() < 0.005 for pictures in found)
    assert as_pictures(array, 8).shape == (1, 3, 16, 16)
    masks = as_masks([Image.new("L", (4, 4), 128), np.zeros((8, 8))], 6, 5)
    assert masks.shape == (2, 1, 6, 5)
    assert masks[0].min() == 1 and masks[1].max() == 0


def test_bad_pictures_are_refused(img2img: Any, plain: Any) -> None:
    mine, params, _ = img2img
    ids = mine.prepare_inputs("a cat")
    with pytest.raises(ImageError, match="too small"):
        as_pictures(Image.new("RGB", (7, 9)), 8)
    with pytest.raises(InputError, match="differ in size"):
        as_pictures([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))], 8)
    for wrong in ("cat.png", 7, None, [], [None], np.array(["a"])):
        for read in (lambda form: as_pictures(form, 8), lambda form: as_masks(form, 8, 8)):
            with pytest.raises(ImageError, match="Input is in incorrect format"):
                read(wrong)
    with pytest.raises(InputError, match=r"an array \(H, W, 3\) in 0..1 but is an array \(8, 8\)"):
        as_pictures(np.zeros((8, 8)), 8)
    with pytest.raises(InputError, match=r"an array \(H, W\) in 0..1 but is an array \(8, 8, 3\)"):
        as_masks(np.zeros((1, 8, 8, 3)), 8, 8)
    with pytest.raises(InputError, match="strength"):
        mine(ids, noise(), params, KEY, strength=1.5)
    with pytest.raises(InputError, match="`height` is 64, but the picture's is 16"):
        mine(ids, noise(), params, KEY, height=64)
    with pytest.raises(InputError, match="Cannot duplicate `image` of batch size 2 to 1 text"):
        mine(ids, noise(2), params, KEY)
    with pytest.raises(InputError, match="NaN or infinity"):
        mine(ids, np.full((1, 4, 8, 8), np.nan, np.float32), params, KEY)
    mask = np.ones((1, 1, 16, 16), np.float32)
    with pytest.raises(InputError, match="`height` is 64, but the picture's is 16"):
        plain[0](ids, mask, noise(), plain[1], KEY, height=64)
    with pytest.raises(InputError, match="`mask` has to be an array"):
        plain[0](ids, mask.repeat(2, 1), noise(), plain[1], KEY)
    with pytest.raises(InputError, match="value of strength should"):
        mine(ids, noise(), params, KEY, strength=float("nan"))


def test_pictures_of_other_libraries_and_of_sizes_that_are_no_multiples_of_eight(
    img2img: Any,
) -> None:
    mine, params, _ = img2img
    array = np.random.default_rng(0).random((1, 3, 10, 14)).astype(np.float32)
    for form in (jax.numpy.asarray(array), torch.from_numpy(array)):
        assert np.array_equal(as_pictures(form, 2), array)
    assert as_masks(torch.ones(1, 1, 4, 4), 4, 4).min() == 1
    ids = mine.prepare_inputs("a cat")
    assert mine(ids, array, params, KEY, num_inference_steps=2).images.shape == (1, 10, 14, 3)
    with pytest.raises(InputError, match="The sides of a picture have to be divisible by 2"):
        mine(ids, array[:, :, :9], params, KEY)
