"""Guidance, and where noise comes from."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sfumato.diffusion.guidance import ClassifierFree, rescale_noise_cfg
from sfumato.diffusion.noise import SeededNoise, randn_tensor
from sfumato.errors import InputError


def answer(x: torch.Tensor, timestep: torch.Tensor, context: Any) -> torch.Tensor:
    return x * 0 + context


T = torch.tensor(1)
X = torch.zeros(2, 1, 2, 2)
CONTEXT = torch.tensor([1.0, 2.0, 5.0, 10.0]).view(4, 1, 1, 1)


def test_guidance_goes_from_the_negative_answer_past_the_positive_one() -> None:
    out = ClassifierFree(3.0)(answer, X, T, CONTEXT)
    assert out[:, 0, 0, 0].tolist() == [1 + 3 * 4, 2 + 3 * 8]


@pytest.mark.parametrize("scale", [1.0, 0.0, -2.0])
def test_a_scale_of_one_or_less_asks_once(scale: float) -> None:
    out = ClassifierFree(scale)(answer, X, T, CONTEXT[2:])
    assert out[:, 0, 0, 0].tolist() == [5, 10]


def test_each_picture_may_have_a_scale_of_its_own() -> None:
    out = ClassifierFree([2.0, 1.0])(answer, X, T, CONTEXT)
    assert out[:, 0, 0, 0].tolist() == [1 + 2 * 4, 10]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_scale_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="finite"):
        ClassifierFree(value)
    with pytest.raises(InputError, match="finite"):
        ClassifierFree(7.5, rescale=value)
    with pytest.raises(InputError, match="finite"):
        ClassifierFree([1.0, value])


def test_rescaling_restores_the_contrast_of_the_positive_answer() -> None:
    rng = torch.Generator().manual_seed(0)
    guided, positive = torch.randn(2, 3, 4, 5, 5, generator=rng)
    full = rescale_noise_cfg(7 * guided, positive, 1.0)
    torch.testing.assert_close(full.std(dim=(1, 2, 3)), positive.std(dim=(1, 2, 3)))
    torch.testing.assert_close(rescale_noise_cfg(guided, positive, 0.0), guided)


def test_draws_are_those_of_diffusers() -> None:
    theirs = pytest.importorskip("diffusers.utils.torch_utils").randn_tensor
    for count, batch in ((None, 3), (1, 3), (3, 3)):
        seeds = range(count or 1)
        made = [[torch.Generator().manual_seed(s) for s in seeds] for _ in range(2)]
        sources = made if count else [generators[0] for generators in made]
        for dtype in (torch.float32, torch.float16, torch.float64):
            mine = randn_tensor((batch, 4, 5, 3), sources[0], "cpu", dtype)
            other = theirs((batch, 4, 5, 3), sources[1], torch.device("cpu"), dtype)
            assert torch.equal(mine, other)


def test_without_a_generator_the_seed_of_torch_decides() -> None:
    torch.manual_seed(5)
    first = randn_tensor((1, 2, 3))
    torch.manual_seed(5)
    assert torch.equal(first, randn_tensor((1, 2, 3)))


def test_as_many_generators_as_pictures_are_needed() -> None:
    two = [torch.Generator(), torch.Generator()]
    with pytest.raises(InputError, match=r"list of generators of length 2.*batch size of 3"):
        randn_tensor((3, 4), two)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "7"])
def test_seeds_out_of_range_are_refused(seed: Any) -> None:
    with pytest.raises(InputError, match="seed has to be an integer from 0"):
        SeededNoise([seed])


def test_as_many_seeds_as_pictures_are_needed() -> None:
    with pytest.raises(InputError, match=r"3 pictures.*2 seeds"):
        SeededNoise([1, 2]).draw((3, 4), torch.float32, "cpu")


def test_a_seed_gives_the_same_numbers_in_any_precision() -> None:
    wide = SeededNoise([9]).draw((1, 4, 8, 8), torch.float32, "cpu")
    narrow = SeededNoise([9]).draw((1, 4, 8, 8), torch.bfloat16, "cpu")
    assert torch.equal(wide.to(torch.bfloat16), narrow)
