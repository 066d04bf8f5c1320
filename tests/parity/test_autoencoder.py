"""The autoencoder computes what diffusers' does, over random configurations and inputs."""

from __future__ import annotations

import random
from typing import Any

import diffusers
import pytest
import torch

from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.autoencoder_config import DOWN_BLOCKS, UP_BLOCKS
from sfumato.models.legacy import rename_legacy_keys
from tests.parity.networks import relative_error, shapes, share_weights

Pair = tuple[diffusers.AutoencoderKL, AutoencoderKL]


def make_pair(config: dict[str, Any], seed: int = 0) -> Pair:
    torch.manual_seed(seed)
    oracle, ours = diffusers.AutoencoderKL(**config), AutoencoderKL(**config)
    assert shapes(ours) == shapes(oracle)
    assert list(ours.state_dict()) == list(oracle.state_dict())
    share_weights(oracle, ours, seed)
    return oracle, ours


def random_config(rng: random.Random) -> dict[str, Any]:
    blocks = rng.choice([1, 2, 3, 3, 4])
    down = DOWN_BLOCKS if rng.random() < 0.4 else DOWN_BLOCKS[:1]
    up = UP_BLOCKS if rng.random() < 0.4 else UP_BLOCKS[:1]
    return {
        "in_channels": rng.choice([1, 3, 4]),
        "out_channels": rng.choice([1, 3, 4]),
        "down_block_types": tuple(rng.choice(down) for _ in range(blocks)),
        "up_block_types": tuple(rng.choice(up) for _ in range(blocks)),
        "block_out_channels": tuple(rng.choice([16, 24, 32]) for _ in range(blocks)),
        "layers_per_block": rng.choice([1, 2]),
        "act_fn": rng.choice(["silu", "gelu", "mish", "relu"]),
        "latent_channels": rng.choice([3, 4, 8]),
        # Groups of two values, at the lowest resolution, would be normalised to their signs.
        "norm_num_groups": rng.choice([2, 4]),
        "sample_size": rng.choice([1, 2]) * 2 ** max(blocks, 3),
        "use_quant_conv": rng.random() < 0.7,
        "use_post_quant_conv": rng.random() < 0.7,
        "mid_block_add_attention": rng.random() < 0.7,
    }


@pytest.mark.parametrize("seed", range(40))
@torch.no_grad()
def test_a_random_autoencoder_encodes_and_decodes_as_diffusers(seed: int) -> None:
    rng = random.Random(seed)
    config = random_config(rng)
    oracle, ours = make_pair(config, seed)
    batch, factor = rng.choice([1, 2]), 2 ** (len(config["block_out_channels"]) - 1)
    tiling, slicing, overlap = rng.random() < 0.4, rng.random() < 0.4, rng.choice([0.25, 0.5])
    for network in (oracle, ours):
        network.use_tiling, network.use_slicing = tiling, slicing
        network.tile_overlap_factor = overlap
    ours.blend_tiles = True
    # The last tile may be narrow, but has to reach the lowest resolution.
    stride = int(config["sample_size"] * (1 - overlap))
    least = max(factor, 4)
    height, width = (stride * rng.randrange(3) + rng.randint(least, stride) for _ in range(2))
    image = torch.randn(batch, config["in_channels"], height, width)

    expected, actual = oracle.encode(image).latent_dist, ours.encode(image).latent_dist
    assert relative_error(actual.parameters, expected.parameters) < 1e-5
    latents = torch.randn_like(expected.mean)
    assert relative_error(ours.decode(latents).sample, oracle.decode(latents).sample) < 1e-5
    assert relative_error(ours(image).sample, oracle(image).sample) < 1e-5


SMALL: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 8,
    "sample_size": 16,
}


@torch.no_grad()
def test_the_distribution_of_latents_is_that_of_diffusers() -> None:
    oracle, ours = make_pair(SMALL)
    image = torch.randn(3, 3, 16, 16)
    a, b = ours.encode(image).latent_dist, oracle.encode(image).latent_dist
    other_a, other_b = (n.encode(image.flip(0)).latent_dist for n in (ours, oracle))
    assert relative_error(a.mode(), b.mode()) < 1e-5
    assert relative_error(a.std, b.std) < 1e-5
    assert relative_error(a.kl(), b.kl()) < 1e-5
    assert relative_error(a.kl(other_a), b.kl(other_b)) < 1e-5
    latents = torch.randn_like(a.mean)
    assert relative_error(a.nll(latents), b.nll(latents)) < 1e-5
    assert relative_error(a.nll(latents, [2, 3]), b.nll(latents, [2, 3])) < 1e-5


@pytest.mark.parametrize("per_image", [False, True])
@torch.no_grad()
def test_latents_are_drawn_with_the_same_random_numbers(per_image: bool) -> None:
    from diffusers.utils.torch_utils import randn_tensor

    def generators() -> Any:
        if per_image:
            return [torch.Generator().manual_seed(i) for i in range(3)]
        return torch.Generator().manual_seed(5)

    oracle, ours = make_pair(SMALL)
    image = torch.randn(3, 3, 16, 16)
    posterior = ours.encode(image).latent_dist
    noise = randn_tensor(posterior.mean.shape, generator=generators())
    drawn = posterior.sample(generators())
    assert relative_error(drawn, posterior.mean + posterior.std * noise) < 1e-6
    if not per_image:
        expected = oracle.encode(image).latent_dist.sample(generators())
        assert relative_error(drawn, expected) < 1e-5
        result = ours(image, sample_posterior=True, generator=generators()).sample
        expected = oracle(image, sample_posterior=True, generator=generators()).sample
        assert relative_error(result, expected) < 1e-5


@torch.no_grad()
def test_the_tile_functions_are_those_of_diffusers() -> None:
    oracle, ours = make_pair(SMALL)
    ours.enable_tiling(blend=True)
    image = torch.randn(1, 3, 40, 28)
    expected = oracle.tiled_encode(image).latent_dist.mean
    assert relative_error(ours.tiled_encode(image).latent_dist.mean, expected) < 1e-5
    actual = ours.tiled_decode(expected).sample
    assert relative_error(actual, oracle.tiled_decode(expected).sample) < 1e-5
    a, b = torch.randn(2, 3, 6, 6), torch.randn(2, 3, 6, 6)
    for extent in (0, 3, 9):
        for name in ("blend_v", "blend_h"):
            expected = getattr(oracle, name)(a.clone(), b.clone(), extent)
            assert torch.equal(getattr(ours, name)(a, b, extent), expected)


@pytest.mark.parametrize("seed", range(8))
@torch.no_grad()
def test_tiles_are_nearer_to_the_whole_picture_than_those_of_diffusers(seed: int) -> None:
    rng = random.Random(seed)
    config = random_config(rng)
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    oracle, ours = make_pair({**config, "sample_size": 4 * factor}, seed)
    image = torch.randn(rng.choice([1, 2]), config["in_channels"], 7 * factor, 5 * factor)
    latents = torch.randn_like(oracle.encode(image).latent_dist.mean)
    whole = oracle.encode(image).latent_dist.parameters, oracle.decode(latents).sample
    errors = []
    for network in (ours, oracle):
        network.enable_tiling()
        tiled = network.encode(image).latent_dist.parameters, network.decode(latents).sample
        errors.append([relative_error(*pair) for pair in zip(tiled, whole, strict=True)])
    for error, error_of_diffusers in zip(*errors, strict=True):
        assert error < 1e-5
        assert error_of_diffusers > 1000 * error


@torch.no_grad()
def test_weights_with_the_names_of_old_diffusers_load() -> None:
    oracle, ours = make_pair({**SMALL, "down_block_types": ("AttnDownEncoderBlock2D",) * 2})
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, tensor in oracle.state_dict().items():
        for new, name in old_names.items():
            key = key.replace(f".{new}.", f".{name}.")
        old[key] = tensor
    assert any(".proj_attn." in key for key in old)
    fresh = AutoencoderKL(ours.config)
    fresh.load_state_dict(rename_legacy_keys(old), strict=True)
    image = torch.randn(1, 3, 16, 16)
    assert torch.equal(fresh.eval()(image).sample, ours(image).sample)
