"""Pictures to tensors and back, against diffusers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor as OracleImageProcessor
from PIL import Image

from sfumato.pipelines.image_processor import VaeImageProcessor


def _picture(rng: np.random.Generator, mode: str = "RGB") -> Image.Image:
    height, width = (int(n) for n in rng.integers(9, 70, 2))
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze())


def _both(**options: Any) -> list[Any]:
    return [cls(**options) for cls in (VaeImageProcessor, OracleImageProcessor)]


def _assert_same(options: dict[str, Any], image: Any, *arguments: Any, **more: Any) -> None:
    ours, oracle = (p.preprocess(image, *arguments, **more) for p in _both(**options))
    assert ours.dtype == oracle.dtype
    assert torch.equal(ours, oracle), f"{options} {arguments} {more}"


@pytest.mark.parametrize("seed", range(25))
def test_pil_pictures_become_the_same_tensor(seed: int) -> None:
    rng, choose = np.random.default_rng(seed), random.Random(seed)
    mode = choose.choice(["RGB", "RGB", "L"])
    options: dict[str, Any] = {
        "vae_scale_factor": choose.choice([1, 2, 8]),
        "resample": choose.choice(["lanczos", "bilinear", "bicubic", "nearest"]),
        "do_normalize": choose.random() < 0.7,
        "do_binarize": choose.random() < 0.2,
        "do_convert_rgb": choose.random() < 0.5,
    }
    if not options["do_convert_rgb"]:
        options["do_convert_grayscale"] = choose.random() < 0.5
    if options["do_binarize"]:
        options["do_normalize"] = False
    size = choose.choice([(None, None), (24, 40), (40, 24), (32, 32), (None, 16)])
    picture = _picture(rng, mode)
    _assert_same(options, choose.choice([picture, [picture, picture]]), *size)


@pytest.mark.parametrize("resize_mode", ["default", "fill", "crop"])
@pytest.mark.parametrize("size", [(24, 40), (40, 24), (32, 32), (64, 8)])
def test_every_way_to_fit_a_picture_is_the_same(resize_mode: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(7)
    for _ in range(4):
        _assert_same({}, _picture(rng), *size, resize_mode=resize_mode)
    crop = (2, 3, 8, 9)
    _assert_same({}, _picture(rng), *size, resize_mode=resize_mode, crops_coords=crop)


@pytest.mark.parametrize("seed", range(12))
def test_arrays_and_tensors_become_the_same_tensor(seed: int) -> None:
    rng, choose = np.random.default_rng(seed), random.Random(seed)
    array = rng.random((choose.choice([1, 2]), 20, 28, 3), dtype=np.float32)
    tensor = torch.from_numpy(array.transpose(0, 3, 1, 2).copy())
    options = {"vae_scale_factor": choose.choice([2, 8]), "do_resize": choose.random() < 0.8}
    size = choose.choice([(None, None), (16, 24)])
    for image in (array, array[0], list(array), tensor, tensor[0], list(tensor)):
        _assert_same(options, image, *size)


@pytest.mark.parametrize(
    "image",
    [
        np.full((2, 16, 16), 0.3, np.float32),
        np.full((16, 16, 1), 0.3, np.float32),
        torch.full((2, 16, 16), 0.3),
        torch.full((1, 16, 16), 0.3),
    ],
    ids=["arrays", "array", "tensors", "tensor"],
)
def test_gray_pictures_get_their_missing_axis(image: Any) -> None:
    _assert_same({"do_convert_grayscale": True}, image)


def test_latents_pass_untouched() -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    _assert_same({}, latents)


def test_a_range_from_minus_one_is_taken_as_it_is_with_a_warning() -> None:
    image = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    results = []
    for processor in _both():
        with pytest.warns(FutureWarning, match=r"value range \[-1\.0,1\.0\]"):
            results.append(processor.preprocess(image))
    assert torch.equal(*results)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("flags", [None, [True, True, True], [True, False, True]])
@pytest.mark.parametrize("channels", [1, 3])
def test_tensors_become_the_same_pictures(
    output_type: str, flags: list[bool] | None, channels: int
) -> None:
    batch = 1.5 * torch.randn(3, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    if flags is not None:
        batch[~torch.tensor(flags)] = 0
    ours, oracle = (p.postprocess(batch, output_type, flags) for p in _both())
    assert type(ours) is type(oracle)
    for one, other in zip(ours, oracle, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))


def test_an_outdated_output_type_is_an_array_with_a_warning() -> None:
    batch = torch.zeros(1, 3, 8, 8)
    results = []
    for processor in _both():
        with pytest.warns(FutureWarning, match="output_type numpy is outdated"):
            results.append(processor.postprocess(batch, "numpy"))
    assert np.array_equal(*results)


@pytest.mark.parametrize(
    ("image", "arguments"),
    [
        ("a path.png", {}),
        (["a path.png"], {}),
        (None, {}),
        (Image.new("RGB", (8, 8)), {"resize_mode": "zoom", "height": 8, "width": 8}),
    ],
)
def test_what_is_no_picture_is_a_value_error_in_both(image: Any, arguments: Any) -> None:
    for processor in _both():
        with pytest.raises(ValueError, match=r"incorrect format|resize_mode"):
            processor.preprocess(image, **arguments)


def test_contradicting_conversions_are_a_value_error_in_both() -> None:
    for cls in (VaeImageProcessor, OracleImageProcessor):
        with pytest.raises(ValueError, match="can not both be set to `True`"):
            cls(do_convert_rgb=True, do_convert_grayscale=True)
