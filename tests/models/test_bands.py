"""The autoencoder band by band: the picture of the whole, whatever the bands, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.models import bands
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.bands import Computed, Held, convolved, cut, doubled, halved, statistics
from sfumato.pipelines.seamless import seamless

SMALL: dict[str, Any] = {
    "block_out_channels": (16, 24, 32),
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
    "norm_num_groups": 4,
    "layers_per_block": 2,
    "sample_size": 8,
}


def small_vae(**fields: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(**{**SMALL, **fields}).eval()
    with torch.no_grad():
        for parameter in vae.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return vae


def apart(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("n", "height", "width"), [(1, 9, 5), (2, 11, 12), (1, 3, 24)])
@torch.no_grad()
def test_any_bands_give_the_result_of_the_whole(
    layout: torch.memory_format, n: int, height: int, width: int
) -> None:
    vae: Any = small_vae().double()
    vae.to(memory_format=layout)
    z = torch.randn(n, 4, height, width, dtype=torch.float64)
    x = torch.randn(n, 3, 4 * height + 3, 4 * width + 1, dtype=torch.float64)
    image, moments = vae.decoder(z), vae.encoder(x)
    for pixels in (1, 100, 500, 10**6):
        assert apart(vae.decoder(z, pixels), image) < 1e-12
        assert apart(vae.encoder(x, pixels), moments) < 1e-12


@torch.no_grad()
def test_bands_in_half_precision_round_no_worse_than_the_whole() -> None:
    vae = small_vae()
    z = torch.randn(1, 4, 12, 12)
    exact = vae.decode(z).sample
    vae.to(torch.bfloat16)
    whole = vae.decode(z.bfloat16()).sample
    vae.enable_tiling()
    tiled = vae.decode(z.bfloat16()).sample
    assert tiled.dtype == torch.bfloat16
    assert apart(tiled.float(), exact) < 1.5 * apart(whole.float(), exact)


def test_gradients_go_through_bands() -> None:
    vae = small_vae().double()
    z = torch.randn(1, 4, 6, 5, dtype=torch.float64, requires_grad=True)

    def gradients() -> list[Tensor]:
        loss = vae.decode(z).sample.square().mean()
        return list(torch.autograd.grad(loss, [z, *vae.decoder.parameters()]))

    whole = gradients()
    vae.enable_tiling()
    for ours, theirs in zip(gradients(), whole, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_a_part_in_another_precision_is_kept() -> None:
    vae = small_vae()
    vae.post_quant_conv.half()  # type: ignore[union-attr]
    vae.decoder.conv_in.half()
    vae.decoder.mid_block.half()
    z = torch.randn(1, 4, 8, 8).half()
    whole = vae.decode(z).sample
    vae.enable_tiling()
    assert vae.decode(z).sample.dtype == whole.dtype == torch.float32
    assert apart(vae.decode(z).sample, whole) < 0.01


def largest(vae: AutoencoderKL, run: Callable[[], Any]) -> int:
    """Numbers in the largest tensor that goes into or comes out of a layer."""
    sizes: list[int] = []

    def note(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes.extend(t.numel() for t in (*inputs, output))

    handles = [
        m.register_forward_hook(note)
        for m in vae.modules()
        if isinstance(m, nn.Conv2d | nn.GroupNorm | nn.SiLU)
    ]
    run()
    for handle in handles:
        handle.remove()
    return max(sizes)


@torch.no_grad()
def test_layers_see_small_bands_and_one_large_map_is_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vae = small_vae(block_out_channels=(16, 16, 16))
    z, x = torch.randn(1, 4, 64, 8), torch.randn(1, 3, 256, 32)
    vae.enable_tiling()
    full = 16 * 256 * 32
    held: list[int] = []
    init = Held.__init__

    def noted(self: Held, shape: bands.Shape, parts: Any) -> None:
        init(self, shape, parts)
        alive.append(self)
        held.append(sum(band.numel() for map_ in alive for band in map_._bands))

    monkeypatch.setattr(Held, "__init__", noted)
    for run in (lambda: vae.decode(z), lambda: vae.encode(x)):
        alive: list[Held] = []
        held.clear()
        assert largest(vae, run) < full / 8
        assert full <= max(held) < 1.2 * full


def test_statistics_are_those_of_the_whole_map() -> None:
    x = 1000 + torch.randn(2, 6, 23, 5)
    mean, variance = statistics(cut(x, 1), 3)
    exact = x.double().unflatten(1, (3, 2)).flatten(2)
    assert torch.allclose(mean.double(), exact.mean(2), rtol=1e-6)
    assert torch.allclose(variance.double(), exact.var(2, correction=0), rtol=1e-3)


@pytest.mark.parametrize("height", [3, 4, 17, 18])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 50])
def test_convolutions_see_across_borders(height: int, rows: int) -> None:
    x = torch.randn(1, 2, height, 6)
    held = Held((1, 2, height, 6), list(x.split(rows, dim=2)))
    same = nn.Conv2d(2, 3, 3, padding=1)
    half = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(2, 3, 3, stride=2))
    for layer, step in ((same, convolved(same, height)), (half, halved(half, height))):
        assert torch.allclose(torch.cat(list(step(held.read())), 2), layer(x), atol=1e-6)
    large = Computed(held, doubled(20), channels=2, factor=2)
    expected = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(torch.cat(list(large.read()), 2), expected)
    assert large.shape == expected.shape


@pytest.mark.parametrize("tiling", ["x", "y", True])
@torch.no_grad()
def test_pictures_that_join_at_their_edges_still_do(
    tiling: bool | str, caplog: pytest.LogCaptureFixture
) -> None:
    vae, z = small_vae(), torch.randn(1, 4, 10, 9)
    with seamless(tiling):
        whole = vae.decode(z).sample
        vae.enable_tiling()
        assert apart(vae.decode(z).sample, whole) < 1e-5
    assert ("VAE tiling is left out" in caplog.text) == (tiling != "x")
