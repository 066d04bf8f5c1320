"""The halves of an autoencoder in little memory: the same bits, and nobody's map is overwritten."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.frugal import run
from sfumato.models.layers import ResnetBlock2D
from sfumato.runtime import kernels

SMALL: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    "norm_num_groups": 8,
    "sample_size": 16,
}


def small_vae(**fields: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(**{**SMALL, **fields}).eval()
    for parameter in vae.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return vae


def plainly(network: nn.Module, x: Tensor) -> Tensor:
    """What a half's layers give when each is called as it is."""
    half: Any = network
    x = half.conv_in(x)
    blocks = [half.mid_block, *half.up_blocks] if hasattr(half, "up_blocks") else None
    for block in blocks or [*half.down_blocks, half.mid_block]:
        x = block(x)
    return half.conv_out(half.conv_act(half.conv_norm_out(x)))


@pytest.mark.parametrize("with_kernels", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_both_halves_give_what_their_layers_give(with_kernels: bool, dtype: torch.dtype) -> None:
    vae = small_vae().to(dtype)
    z, x = torch.randn(2, 4, 16, 16).to(dtype), torch.randn(2, 3, 32, 32).to(dtype)
    with kernels.using(with_kernels), kernels.active():
        for half, given in ((vae.decoder, z), (vae.encoder, x)):
            before, expected = given.clone(), plainly(half, given)
            assert torch.allclose(half(given), expected, rtol=1e-2, atol=1e-2)
            if dtype is torch.float32:
                assert torch.allclose(half(given), expected, rtol=1e-5, atol=1e-5)
            assert torch.equal(given, before)


@torch.no_grad()
def test_maps_that_somebody_watches_stay_as_they_are() -> None:
    vae = small_vae()
    seen: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        maps = (t for t in (*inputs, output) if isinstance(t, Tensor))
        seen.extend((t, t.clone()) for t in maps)

    z = torch.randn(1, 4, 16, 16)
    expected = vae.decode(z).sample
    for module in vae.decoder.modules():
        handle = module.register_forward_hook(note)
        assert torch.allclose(vae.decode(z).sample, expected, atol=1e-5)
        handle.remove()
    assert len(seen) > 100
    assert all(torch.equal(now, then) for now, then in seen)


def test_gradients_are_those_of_the_layers() -> None:
    vae = small_vae()
    z = torch.randn(1, 4, 8, 8)
    results = []
    for call in (vae.decoder, lambda z: plainly(vae.decoder, z)):
        call(z).square().mean().backward()
        results.append([p.grad.clone() for p in vae.decoder.parameters() if p.grad is not None])
        vae.zero_grad()
    assert all(torch.allclose(a, b) for a, b in zip(*results, strict=True))


@torch.no_grad()
def test_a_map_is_gone_before_the_next_layer_but_one() -> None:
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Maker(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            alive.append(sum(ref() is not None for ref in made))
            y = x + 1
            made.append(weakref.ref(y))
            return y

    run([Maker() for _ in range(4)], torch.zeros(1))
    assert alive == [0, 1, 1, 1]


@torch.no_grad()
def test_blocks_that_divide_their_sum_still_do() -> None:
    torch.manual_seed(0)
    blocks = [
        ResnetBlock2D(8, 8, temb_channels=None, groups=4, output_scale_factor=2.0) for _ in range(3)
    ]
    x = torch.randn(1, 8, 6, 6)
    assert torch.allclose(run(blocks, x), blocks[2](blocks[1](blocks[0](x))), atol=1e-6)
