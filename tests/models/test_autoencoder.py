"""The autoencoder as a thing of its own: memory, tiles, gradients, latents."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.distributions import DiagonalGaussianDistribution
from sfumato.models.legacy import rename_legacy_keys
from sfumato.models.tiling import run_tiled

SMALL: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    "norm_num_groups": 8,
    "sample_size": 16,
}


@pytest.fixture
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(**SMALL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_trains(vae: AutoencoderKL, dtype: torch.dtype, layout: torch.memory_format) -> None:
    vae.to(dtype=dtype, memory_format=layout)
    image = torch.rand(4, 3, 16, 16, dtype=dtype).contiguous(memory_format=layout)
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    losses = []
    for _ in range(8):
        posterior = vae.encode(image).latent_dist
        decoded = vae.decode(posterior.sample(torch.Generator().manual_seed(0))).sample
        assert decoded.is_contiguous(memory_format=layout)
        loss = (decoded - image).square().mean() + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in vae.parameters())
    assert losses[-1] < 0.8 * losses[0]


def test_gradient_checkpointing_gives_the_same_gradients(vae: AutoencoderKL) -> None:
    def gradients() -> list[torch.Tensor]:
        vae.zero_grad()
        vae(torch.linspace(-1, 1, 768).view(1, 3, 16, 16)).sample.square().mean().backward()
        return [p.grad.clone() for p in vae.parameters() if p.grad is not None]

    kept = gradients()
    vae.enable_gradient_checkpointing()
    assert all(torch.equal(a, b) for a, b in zip(kept, gradients(), strict=True))


@torch.no_grad()
def test_slices_give_the_whole_result(vae: AutoencoderKL) -> None:
    image = torch.randn(3, 3, 16, 16)
    whole = vae.eval()(image).sample
    vae.enable_slicing()
    assert (vae(image).sample - whole).abs().max() < 1e-5
    vae.disable_slicing()
    assert torch.equal(vae(image).sample, whole)


@torch.no_grad()
def test_small_images_are_not_tiled_and_large_ones_are(vae: AutoencoderKL) -> None:
    vae.eval()
    small, large = torch.randn(1, 3, 16, 16), torch.randn(1, 3, 16, 17)
    whole = [vae.encode(x).latent_dist.mean for x in (small, large)]
    vae.enable_tiling(blend=True)
    tiled = [vae.encode(x).latent_dist.mean for x in (small, large)]
    assert torch.equal(tiled[0], whole[0])
    assert not torch.equal(tiled[1], whole[1])
    vae.disable_tiling()
    assert torch.equal(vae.encode(large).latent_dist.mean, whole[1])


def test_tiles_of_a_local_function_join_without_a_trace() -> None:
    x = torch.randn(2, 3, 37, 50)
    for tile, stride in ((16, 12), (16, 8), (16, 16)):
        extent = 2 * (tile - stride)
        out = run_tiled(
            lambda t: t.repeat_interleave(2, 2).repeat_interleave(2, 3) * 3 + 1,
            x,
            tile=tile,
            stride=stride,
            extent=extent,
            limit=2 * tile - extent,
        )
        expected = x.repeat_interleave(2, 2).repeat_interleave(2, 3) * 3 + 1
        assert torch.allclose(out, expected, atol=1e-5)


def test_a_tile_size_comes_from_a_size_given_as_a_pair() -> None:
    vae = AutoencoderKL(**{**SMALL, "sample_size": [32, 64]})
    assert (vae.tile_sample_min_size, vae.tile_latent_min_size) == (32, 16)


def test_the_log_variance_is_bounded() -> None:
    moments = torch.tensor([[0.0, 1000.0], [0.0, -1000.0]]).view(2, 2, 1, 1)
    posterior = DiagonalGaussianDistribution(moments)
    assert posterior.logvar.flatten().tolist() == [20.0, -30.0]
    certain = DiagonalGaussianDistribution(moments, deterministic=True)
    assert torch.equal(certain.sample(), certain.mode())
    assert certain.kl().tolist() == certain.nll(torch.ones(2, 1, 1, 1)).tolist() == [0.0]


def test_each_latent_has_its_own_generator() -> None:
    posterior = DiagonalGaussianDistribution(torch.zeros(3, 8, 4, 4))

    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    all_three = posterior.sample(generators(1, 2, 3))
    swapped = posterior.sample(generators(3, 2, 1))
    assert torch.equal(all_three.flip(0), swapped)


def test_old_names_are_renamed_and_others_left() -> None:
    old = {
        "encoder.mid_block.attentions.0.query.weight": 1,
        "decoder.up_blocks.2.attentions.1.key.bias": 2,
        "attentions.0.value.weight": 3,
        "mid_block.attentions.0.proj_attn.weight": 4,
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": 5,
        "text.key.query.weight": 6,
    }
    assert list(rename_legacy_keys(old).items()) == [
        ("encoder.mid_block.attentions.0.to_q.weight", 1),
        ("decoder.up_blocks.2.attentions.1.to_k.bias", 2),
        ("attentions.0.to_v.weight", 3),
        ("mid_block.attentions.0.to_out.0.weight", 4),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight", 5),
        ("text.key.query.weight", 6),
    ]
