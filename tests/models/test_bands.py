"""The autoencoder band by band: the picture of the whole, whatever the bands, in less memory."""

from __future__ import annotations

import itertools
import logging
import tempfile
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.models import vae_in_bands
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.bands import Map, convolved, cut, doubled, halved, moments, teed
from sfumato.pipelines.seamless import seamless
from sfumato.runtime import kernels
from sfumato.runtime.spill import Room
from tests.memory import peak

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


def needs(vae: AutoencoderKL, run: Callable[[], Any]) -> tuple[int, int]:
    """Numbers in the largest tensor that a layer takes or gives, and the peak of memory."""
    sizes: list[int] = []

    def note(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes.extend(t.numel() for t in (*inputs, output))

    handles = [
        m.register_forward_hook(note)
        for m in vae.modules()
        if isinstance(m, nn.Conv2d | nn.GroupNorm | nn.SiLU)
    ]
    most = peak(run)
    for handle in handles:
        handle.remove()
    return max(sizes), most


@contextmanager
def in_memory(size: int) -> Iterator[None]:
    """Bands beyond so many bytes wait in a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae_in_bands, "IN_MEMORY", size)
        yield


@pytest.mark.parametrize("with_kernels", [False, True])
@torch.no_grad()
def test_layers_see_small_bands_and_no_large_map_is_in_memory(with_kernels: bool) -> None:
    vae = small_vae(block_out_channels=(16, 16, 16))
    z, x = torch.randn(1, 4, 32, 16), torch.randn(1, 3, 128, 64)
    full, picture, limit = 16 * 128 * 64, 4 * x.numel(), 2**16
    with kernels.using(with_kernels), in_memory(limit):
        for run in (lambda: vae.decode(z), lambda: vae.encode(x)):
            vae.disable_tiling()
            assert needs(vae, run)[1] > 2 * 4 * full
            vae.enable_tiling()
            seen, most = needs(vae, run)
            assert seen < full / 8
            # What waits, the picture and its parts, the lowest maps for attention, some bands.
            assert most < limit + 2 * picture + 2**17 < 0.8 * 4 * full


@contextmanager
def noted_files() -> Iterator[list[Any]]:
    """The temporary files that are made."""
    files: list[Any] = []
    make = tempfile.TemporaryFile

    def noting(*args: Any, **kwargs: Any) -> Any:
        files.append(make(*args, **kwargs))
        return files[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", noting)
        yield files


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03), (torch.float64, 1e-12)]
)
def test_bands_that_wait_in_a_file_give_the_same(
    layout: torch.memory_format, dtype: torch.dtype, bound: float
) -> None:
    vae: Any = small_vae().to(dtype)
    vae.to(memory_format=layout)
    vae.enable_tiling()
    z, x = torch.randn(2, 4, 10, 9).to(dtype), torch.randn(2, 3, 38, 41).to(dtype)
    for run in (lambda: vae.decode(z).sample, lambda: vae.encode(x).latent_dist.parameters):
        with torch.inference_mode():
            expected = run()
            for limit in (0, 20_000):
                with in_memory(limit), noted_files() as files:
                    assert apart(run(), expected) < bound
                assert len(files) == 1 and files[0].closed
        with in_memory(0), noted_files() as files:  # gradients need all in memory
            assert run().requires_grad
        assert not files


@torch.no_grad()
def test_a_walk_that_fails_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vae = small_vae()
    vae.enable_tiling()
    calls = itertools.count()

    def fails(*_: Any) -> None:
        if next(calls) == 3:
            raise RuntimeError("in mid-walk")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    vae.decoder.up_blocks[-1].resnets[1].conv2.register_forward_pre_hook(fails)  # type: ignore
    z = torch.randn(1, 4, 12, 9)
    with in_memory(0), noted_files() as files:
        with pytest.raises(RuntimeError, match="in mid-walk"):
            vae.decode(z)
        assert files[0].closed and not list(tmp_path.iterdir())
        vae.decode(z)
        assert len(files) == 2 and files[1].closed and not list(tmp_path.iterdir())


@torch.no_grad()
def test_without_a_disk_the_picture_is_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    vae, z = small_vae(), torch.randn(1, 4, 12, 9)
    vae.enable_tiling()
    expected = vae.decode(z).sample
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with in_memory(0):
        assert torch.equal(vae.decode(z).sample, expected)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "TMPDIR" in record.getMessage()


def test_pictures_in_two_threads_do_not_mix() -> None:
    vae = small_vae()
    vae.enable_tiling()
    latents = [torch.randn(1, 4, 12, 9) for _ in range(4)]

    def decoded(z: Tensor) -> Tensor:
        with torch.no_grad():
            return vae.decode(z).sample

    expected = [decoded(z) for z in latents]
    with in_memory(0), ThreadPoolExecutor(2) as pool:
        assert all(map(torch.equal, pool.map(decoded, latents), expected))


@torch.no_grad()
def test_no_band_is_held_once_it_was_used() -> None:
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def source() -> Iterator[Tensor]:
        for _ in range(12):
            alive.append(sum(ref() is not None for ref in made))
            band = torch.ones(1, 1, 4, 4)
            made.append(weakref.ref(band))
            yield band
            del band

    layer, shape = nn.Conv2d(1, 1, 3, padding=1), (1, 1, 48, 4)
    with Room(0) as room:
        beside = Map(shape, (), room)
        bands = teed(source(), beside, lambda band: band + 1)
        Map(shape, convolved(layer, 48)(bands), room)
    assert max(alive) == 0


@pytest.mark.parametrize("with_kernels", [False, True])
@torch.no_grad()
def test_moments_are_those_of_the_whole_map(with_kernels: bool) -> None:
    x = 1000 + torch.randn(2, 6, 23, 5)
    exact = x.double().unflatten(1, (3, 2)).flatten(2)
    for layout in (torch.contiguous_format, torch.channels_last):
        map_ = cut(x.contiguous(memory_format=layout), 1, Room())
        with kernels.using(with_kernels), kernels.active():
            count, mean, squares = moments(map_, 3)
        assert count == 2 * 23 * 5
        assert torch.allclose(mean.double(), exact.mean(2), rtol=1e-6)
        variance = squares.double() / count
        assert torch.allclose(variance, exact.var(2, correction=0), rtol=1e-3)


@pytest.mark.parametrize("height", [3, 4, 17, 18])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 50])
def test_convolutions_see_across_borders(height: int, rows: int) -> None:
    x = torch.randn(1, 2, height, 6)
    held = Map((1, 2, height, 6), x.split(rows, dim=2), Room())
    same = nn.Conv2d(2, 3, 3, padding=1)
    half = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(2, 3, 3, stride=2))
    for layer, step in ((same, convolved(same, height)), (half, halved(half, height))):
        assert torch.allclose(torch.cat(list(step(held.read())), 2), layer(x), atol=1e-6)
    expected = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(torch.cat(list(doubled(20)(held.read())), 2), expected)


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
