"""Random numbers of NVIDIA cards, and noise by seed."""

from __future__ import annotations

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.diffusion.noise import SeededNoise, randn_tensor
from sfumato.diffusion.philox import cuda_randn, philox4x32
from sfumato.diffusion.rng import find_rng
from sfumato.diffusion.seeds import (
    FirstThen,
    NvidiaNoise,
    Variation,
    paste_in_middle,
    read_seeds,
    seeded_noise,
    slerp,
)
from sfumato.errors import InputError

SHAPE = (1, 4, 6, 8)


def draw(source: object, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return source.draw(shape, torch.float32, "cpu")  # pyright: ignore[reportAttributeAccessIssue]


# The published vectors of Random123 for ten rounds: counter, key, words.
@pytest.mark.parametrize(
    "vector",
    [
        "00000000 00000000 00000000 00000000  00000000 00000000"
        "  6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        "ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff"
        "  408f276d 41c83b0e a20bc7c6 6d5451fd",
        "243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0"
        "  d16cfe09 94fdcceb 5001e420 24126ea1",
    ],
)
def test_philox_gives_the_published_words(vector: str) -> None:
    c0, c1, c2, c3, k0, k1, *words = (int(word, 16) for word in vector.split())
    assert [int(word) for word in philox4x32((c0, c1, c2, c3), (k0, k1))] == words


# What torch printed on NVIDIA cards: (seed, draw, place of the first number, numbers).
@pytest.mark.parametrize(
    ("seed", "draws", "first", "numbers"),
    [
        (0, 0, 0, "-0.9247 -0.4253 -2.6438 0.1452 -0.1209 -0.5797 -0.6229 -0.3284"),
        (0, 0, 8, "-1.0745 -0.3631 -1.6711 2.2655 0.3117 -0.1842 1.2866 1.1820"),
        (0, 0, 32, "-0.5965 -0.3283 -0.9086 -0.8059 -0.7407 -0.0504 0.5435 1.5150"),
        (42, 0, 0, "0.1940 2.1614 -0.1721 0.8491 -1.9244 0.6530 -0.6494 -0.8175 0.5280 -1.2753"),
        (42, 0, 778, "-0.8353 -1.6443 0.1315 -0.1797 0.9744 -2.0136"),
        (42, 0, 7029, "-0.2987 0.1946 1.1640"),
        (42, 1, 0, "0.1391 -0.1082 -0.7174 0.7566"),
        (42, 2, 0, "-0.5187 1.2268 0.6255 -0.9117"),
        (42, 3, 0, "-0.6974 -1.8688 -0.8832 -1.6627"),
        (42, 4, 0, "-1.2682 -0.0383 -0.1029 1.4400"),
        (42, 5, 0, "1.4640 -0.3238 0.7740 1.5892"),
    ],
)
def test_the_numbers_are_those_of_the_card(seed: int, draws: int, first: int, numbers: str) -> None:
    wanted = [float(number) for number in numbers.split()]
    found = cuda_randn(8000, seed, draws)[first : first + len(wanted)]
    assert np.abs(found - wanted).max() <= 0.5001e-4


def test_the_numbers_are_those_of_a1111() -> None:
    wanted = """-0.92466259 -0.42534415 -2.6438457 0.14518388 -0.12086647 -0.57972564 -0.62285122
        -0.32838709 -1.07454231 -0.36314407 -1.67105067 2.26550497"""
    assert np.allclose(cuda_randn(12, 0), [float(n) for n in wanted.split()], atol=1e-6)


def test_the_numbers_are_normal_and_finite() -> None:
    found = np.concatenate([cuda_randn(50_000, seed) for seed in (3, 2**32, 2**64 - 1)])
    assert np.isfinite(found).all() and found.dtype == np.float32
    assert abs(found.mean()) < 0.01 and abs(found.std() - 1) < 0.01
    assert abs(np.mean(np.abs(found) < 1) - math.erf(math.sqrt(0.5))) < 0.005
    assert len({hashlib.sha256(cuda_randn(9, s).tobytes()).digest() for s in (1, 2**32 + 1)}) == 2


def test_a_picture_has_the_noise_of_its_seed_whatever_is_beside_it() -> None:
    for rng in ("cpu", "nvidia", "comfyui"):
        both, alone = seeded_noise([5, 7], rng), seeded_noise([7], rng)
        for _ in range(3):
            assert torch.equal(draw(both, (2, 4, 6, 8))[1:], draw(alone))


def test_sources_draw_where_the_programs_draw() -> None:
    cpu, card, comfy = (seeded_noise([5], rng) for rng in ("cpu", "NV", "comfyui"))
    expected = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    assert torch.equal(draw(cpu), expected)
    first = torch.from_numpy(cuda_randn(192, 5)).view(SHAPE)
    assert torch.equal(draw(card), first)
    assert torch.equal(draw(card), torch.from_numpy(cuda_randn(192, 5, 1)).view(SHAPE))
    assert torch.equal(draw(comfy), expected) and torch.equal(draw(comfy), first)


def test_a_source_serves_wherever_a_generator_does() -> None:
    half = randn_tensor(SHAPE, NvidiaNoise([1]), dtype=torch.float16)
    assert torch.equal(half, draw(NvidiaNoise([1])).half())
    with pytest.raises(InputError, match="1 seeds"):
        randn_tensor((2, 4, 8, 8), NvidiaNoise([1]))


def test_variations_go_from_one_noise_to_the_other() -> None:
    start, end = draw(SeededNoise([1])), draw(SeededNoise([2]))
    for strength, wanted in ((0.0, start), (1.0, end)):
        found = draw(seeded_noise([1], "cpu", Variation(seeds=[2], strength=strength)))
        torch.testing.assert_close(found, wanted)
    between = draw(seeded_noise([1], "cpu", Variation(seeds=[2], strength=0.3)))
    assert 0.9 < between.std() < 1.1
    assert (between - start).norm() < (between - end).norm()


def test_interpolation_turns_each_column() -> None:
    torch.manual_seed(0)
    start, end = torch.randn(2, 4, 6, 8)
    found = slerp(start, end, 0.3)
    for channel, column in ((0, 0), (3, 7)):
        a, b = (t[channel, :, column].double() for t in (start, end))
        angle = torch.arccos((a / a.norm()) @ (b / b.norm()))
        wanted = (torch.sin(0.7 * angle) * a + torch.sin(0.3 * angle) * b) / torch.sin(angle)
        torch.testing.assert_close(found[channel, :, column].double(), wanted, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(slerp(start[:, :1], -start[:, :1], 0.5)).all()
    torch.testing.assert_close(slerp(start, start, 0.4), start)


def test_later_noise_is_that_of_the_seed() -> None:
    varied = seeded_noise([1], "nvidia", Variation(seeds=[2], strength=0.5))
    plain = NvidiaNoise([1])
    assert not torch.equal(draw(varied), draw(plain))
    assert torch.equal(draw(varied), draw(plain))


def test_resized_noise_has_the_other_size_in_its_middle() -> None:
    small = draw(SeededNoise([1]), (1, 4, 4, 4))
    whole = draw(SeededNoise([1]))
    found = draw(seeded_noise([1], "cpu", Variation(resize_from=(4, 4))))
    assert torch.equal(found[..., 1:5, 2:6], small)
    assert torch.equal(found[..., :1, :], whole[..., :1, :])
    assert torch.equal(found[..., 5:, :], whole[..., 5:, :])


@pytest.mark.parametrize(
    ("patch", "places", "parts"),
    [
        ((2, 2), (slice(2, 4), slice(3, 5)), (slice(None), slice(None))),
        ((10, 12), (slice(0, 6), slice(0, 8)), (slice(2, 8), slice(2, 10))),
        ((3, 8), (slice(1, 4), slice(0, 8)), (slice(None), slice(None))),
        ((7, 8), (slice(0, 5), slice(0, 8)), (slice(1, 6), slice(None))),
    ],
)
def test_a_patch_is_centred_as_in_a1111(
    patch: tuple[int, int], places: tuple[slice, slice], parts: tuple[slice, slice]
) -> None:
    ground, piece = torch.zeros(1, 6, 8), torch.rand(1, *patch) + 1
    found = paste_in_middle(ground, piece)
    assert torch.equal(found[:, places[0], places[1]], piece[:, parts[0], parts[1]])
    assert (found > 0).sum() == found[:, places[0], places[1]].numel()


def test_wrong_seeds_and_names_are_told() -> None:
    assert find_rng("NV") == find_rng("cuda") == "nvidia"
    assert read_seeds("seeds", 5) == [5] and read_seeds("seeds", (1, 2)) == [1, 2]
    for value in (-1, 2**64, True, 1.5, "5", [], [None], {"a": 1}):
        with pytest.raises(InputError, match="seed"):
            read_seeds("seeds", value)
    with pytest.raises(InputError, match="cpu, nvidia, comfyui"):
        find_rng("amd")
    with pytest.raises(InputError, match="variation seeds"):
        seeded_noise([1, 2], "cpu", Variation(seeds=[3], strength=0.1))


def test_sources_of_two_threads_do_not_meet() -> None:
    def twice(seed: int) -> Tensor:
        source = FirstThen(SeededNoise([seed]), NvidiaNoise([seed]))
        return torch.cat([draw(source), draw(source)])

    alone = [twice(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, alone, pool.map(twice, range(8))))


@pytest.mark.parametrize("rng", ["cpu", "nvidia"])
def test_a_delta_gives_later_noise_that_begins_anew_at_another_seed(rng: str) -> None:
    """As A1111's ENSD: what samplers add is the first noise of the seed and the delta."""
    shape = (2, 4, 8, 8)
    source = seeded_noise([5, 2**64 - 1], rng, None, 31337)
    plain, moved = seeded_noise([5, 2**64 - 1], rng), seeded_noise([5 + 31337, 31336], rng)
    drawn = [s.draw(shape, torch.float32, "cpu") for s in (source, plain)]
    assert torch.equal(*drawn)
    for _ in range(2):
        drawn = [s.draw(shape, torch.float32, "cpu") for s in (source, moved)]
        assert torch.equal(*drawn)
    with pytest.raises(InputError, match="ComfyUI"):
        seeded_noise([1], "comfyui", None, 1)
