"""The first stage with a codebook computes what diffusers' does, over random configurations."""

from __future__ import annotations

import random
from typing import Any

import diffusers
import pytest
import torch

from sfumato.errors import ConfigError, InputError
from sfumato.models.autoencoder_config import DOWN_BLOCKS, UP_BLOCKS
from sfumato.models.vq_autoencoder import VectorQuantizer, VQModel
from tests.parity.networks import relative_error, shapes, share_weights

Pair = tuple[diffusers.VQModel, VQModel]


def make_pair(config: dict[str, Any], seed: int = 0) -> Pair:
    torch.manual_seed(seed)
    oracle, ours = diffusers.VQModel(**config), VQModel(**config)
    assert shapes(ours) == shapes(oracle)
    assert list(ours.state_dict()) == list(oracle.state_dict())
    share_weights(oracle, ours, seed)
    return oracle, ours


def random_config(rng: random.Random) -> dict[str, Any]:
    blocks = rng.choice([1, 2, 3, 3, 4])
    return {
        "in_channels": rng.choice([1, 3, 4]),
        "out_channels": rng.choice([1, 3, 4]),
        "down_block_types": tuple(rng.choice(DOWN_BLOCKS) for _ in range(blocks)),
        "up_block_types": tuple(rng.choice(UP_BLOCKS) for _ in range(blocks)),
        "block_out_channels": tuple(rng.choice([16, 24, 32]) for _ in range(blocks)),
        "layers_per_block": rng.choice([1, 2]),
        "act_fn": rng.choice(["silu", "gelu", "mish", "relu"]),
        "latent_channels": rng.choice([2, 3, 4, 8]),
        "norm_num_groups": rng.choice([2, 4]),
        "sample_size": 8 * 2**blocks,
        "num_vq_embeddings": rng.choice([1, 16, 256, 1000]),
        "vq_embed_dim": rng.choice([None, 2, 4, 6]),
        "mid_block_add_attention": rng.random() < 0.7,
        "force_upcast": rng.random() < 0.5,
    }


@pytest.mark.parametrize("seed", range(20))
@torch.no_grad()
def test_a_random_vq_autoencoder_encodes_and_decodes_as_diffusers(seed: int) -> None:
    rng = random.Random(seed)
    config = random_config(rng)
    oracle, ours = make_pair(config, seed)
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    image = torch.randn(rng.choice([1, 2]), config["in_channels"], 4 * factor, 5 * factor)
    latents = oracle.encode(image).latents
    assert relative_error(ours.encode(image).latents, latents) < 1e-5
    expected, actual = oracle.decode(latents), ours.decode(latents)
    assert relative_error(actual.sample, expected.sample) < 1e-5
    assert actual.commit_loss is not None
    assert relative_error(actual.commit_loss, expected.commit_loss) < 1e-5
    plain = oracle.decode(latents, force_not_quantize=True)
    actual = ours.decode(latents, force_not_quantize=True)
    assert relative_error(actual.sample, plain.sample) < 1e-5
    assert torch.equal(torch.as_tensor(actual.commit_loss), plain.commit_loss)


SMALL: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    "norm_num_groups": 8,
    "sample_size": 16,
    "num_vq_embeddings": 40,
}


@torch.no_grad()
def test_vectors_are_looked_up_by_number_as_in_diffusers() -> None:
    oracle, ours = make_pair({**SMALL, "lookup_from_codebook": True})
    numbers = torch.randint(0, 40, (2, 4, 6))
    keywords: dict[str, Any] = {"force_not_quantize": True, "shape": (2, 4, 6, 3)}
    expected = oracle.decode(numbers, **keywords).sample
    assert relative_error(ours.decode(numbers, **keywords).sample, expected) < 1e-5


def test_the_quantiser_trains_encoder_and_codebook_as_that_of_diffusers() -> None:
    oracle, ours = make_pair(SMALL)
    image = torch.randn(2, 3, 16, 16)
    for network in (oracle, ours):
        output = network(image)
        (output.sample.square().mean() + output.commit_loss).backward()
    expected = dict(oracle.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("legacy", [True, False])
def test_each_half_of_the_loss_has_the_weight_that_it_has_in_diffusers(legacy: bool) -> None:
    from diffusers.models.autoencoders.vae import VectorQuantizer as Oracle

    ours, oracle = VectorQuantizer(20, 3, 0.4, legacy=legacy), Oracle(20, 3, 0.4, legacy=legacy)
    oracle.load_state_dict(ours.state_dict())
    grads = []
    for quantizer in (ours, oracle):
        z = torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4).requires_grad_()
        quantizer(z)[1].backward()
        grads.append((z.grad, quantizer.embedding.weight.grad))
    for own, expected in zip(*grads, strict=True):
        assert relative_error(own, expected) < 1e-6


@torch.no_grad()
def test_the_numbers_of_the_quantiser_are_those_of_the_nearest_vectors() -> None:
    quantizer = VectorQuantizer(50, 4)
    torch.nn.init.normal_(quantizer.embedding.weight)
    z = torch.randn(2, 4, 7, 5)
    found = quantizer(z)
    distances = (z.movedim(1, -1)[..., None, :] - quantizer.embedding.weight).norm(dim=-1)
    assert torch.equal(found.indices, distances.argmin(-1))
    looked_up = quantizer.get_codebook_entry(found.indices, (2, 7, 5, 4))
    assert torch.allclose(found.latents, looked_up, atol=1e-6)


@torch.no_grad()
def test_many_latents_are_quantised_in_pieces_without_a_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quantizer, z = VectorQuantizer(64, 3), torch.randn(2, 3, 9, 9)
    whole = quantizer(z).indices
    monkeypatch.setattr("sfumato.models.vq_autoencoder.MOST_DISTANCES", 64 * 10)
    assert torch.equal(quantizer(z).indices, whole)


@torch.no_grad()
def test_slices_and_parts_give_the_result_of_the_whole() -> None:
    _, ours = make_pair(SMALL)
    image = torch.randn(2, 3, 56, 40)
    latents = ours.encode(image).latents
    picture = ours.decode(latents).sample
    ours.enable_tiling()
    ours.enable_slicing()
    assert relative_error(ours.encode(image).latents, latents) < 1e-5
    assert relative_error(ours.decode(latents).sample, picture) < 1e-5


@torch.no_grad()
def test_sixteen_bit_latents_find_the_vectors_of_float32() -> None:
    _, ours = make_pair(SMALL)
    torch.nn.init.normal_(ours.quantize.embedding.weight)
    wide = ours.quantize.bfloat16().float()
    z = torch.randn(1, 3, 8, 8).bfloat16()
    expected = wide(z.float()).indices
    assert torch.equal(ours.quantize.bfloat16()(z).indices, expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_vq_embeddings", 0),
        ("num_vq_embeddings", 10**12),
        ("vq_embed_dim", 0),
        ("norm_type", "spatial"),
        ("norm_type", "batch"),
        ("lookup_from_codebook", "yes"),
        ("block_out_channels", [16, 30]),
        ("scaling_factor", 0),
    ],
)
def test_a_wrong_configuration_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        VQModel(**{**SMALL, field: value})


def test_latents_of_another_width_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(N, 3, h, w\)"):
        VQModel(**SMALL).decode(torch.zeros(1, 4, 8, 8))
