"""The compiled layers against float64, and when they step aside for torch."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sfumato.models.unet import UNet2DConditionModel
from sfumato.native.library import (
    can_compute,
    describe,
    feature_names,
    features,
    library,
    multiplied_as,
)
from sfumato.runtime import kernels, layer_kernels
from sfumato.runtime.layer_kernels import convolve, linear, linear_pays, winograd_tile
from tests.runtime.variants import each_bfloat16

float32_kernels = pytest.mark.skipif(not can_compute("float32"), reason="no kernels here")
#: Bounds of the error's mean square, relative to the result's. A result is rounded once; what goes
#: through a transform before it is multiplied as bfloat16 is rounded once more.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2e-3}
TRANSFORMED_BOUND, ROUNDED_BOUND = 4e-6, 5e-3


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    threads = torch.get_num_threads()
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def all_linear_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the kernels for linear layers even where torch's are the faster ones."""
    monkeypatch.setattr(layer_kernels, "linear_pays", lambda dtype: True)


@pytest.fixture
def all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the kernels for layers that are too small to gain from them, too."""
    for name in ("LEAST_WORK", "LEAST_ROWS", "LEAST_PIXELS", "LEAST_CHANNELS", "FEW_ROWS"):
        monkeypatch.setattr(layer_kernels, name, 0)


def error(found: Tensor | None, expected: Tensor) -> float:
    assert found is not None and found.shape == expected.shape
    off = (found.double() - expected).square().mean() / expected.square().mean()
    return off.sqrt().item()


def parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape).to(dtype))


def doubles(*tensors: Tensor | None) -> Any:
    return [None if t is None else t.double() for t in tensors]


@pytest.mark.parametrize("seed", range(12))
def test_linear_layers_are_exact(dtype: torch.dtype, seed: int, all_sizes: None) -> None:
    draw = random.Random(seed)
    torch.set_num_threads(1 + seed % 3)
    shape = [draw.randint(1, 5), draw.randint(1, 120), draw.randint(1, 400)]
    columns = draw.randint(1, 300)
    x, weight = torch.randn(shape).to(dtype), parameter(columns, shape[-1], dtype=dtype)
    bias = parameter(columns, dtype=dtype) if draw.random() < 0.7 else None
    expected = F.linear(*doubles(x, weight, bias))
    assert error(linear(x, weight, bias), expected) < BOUNDS[dtype]
    turned = x.transpose(0, 1)  # rows that do not follow each other in memory
    assert error(linear(turned, weight, bias), expected.transpose(0, 1)) < BOUNDS[dtype]


def test_linear_layers_are_left_to_torch_where_those_are_faster(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_kernels, "linear_pays", linear_pays)
    x, weight = torch.randn(300, 256).to(dtype), parameter(256, 256, dtype=dtype)
    taken = kind == "bfloat16" or multiplied_as("bfloat16") == "bfloat16"
    assert (linear(x, weight) is not None) == taken
    picture = torch.randn(1, 64, 32, 32).to(dtype)
    assert convolve(picture, parameter(64, 64, 1, 1, dtype=dtype)) is not None


@pytest.mark.parametrize("seed", range(8))
def test_convolutions_of_single_pixels_are_exact(
    dtype: torch.dtype, seed: int, all_sizes: None
) -> None:
    draw = random.Random(seed)
    torch.set_num_threads(1 + seed % 3)
    x, weight, bias = convolution(draw, dtype, taps=1, channels=draw.randint(1, 140))
    expected = F.conv2d(*doubles(x, weight, bias))
    assert error(convolve(x, weight, bias), expected) < BOUNDS[dtype]


def convolution(
    draw: random.Random, dtype: torch.dtype, taps: int, channels: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input, weight and bias of some sizes, in either memory layout."""
    batch, columns = draw.randint(1, 5), draw.randint(1, 150)
    x = torch.randn(batch, channels, draw.randint(1, 33), draw.randint(1, 33)).to(dtype)
    weight = parameter(columns, channels, taps, taps, dtype=dtype)
    if draw.random() < 0.5:
        x = x.to(memory_format=torch.channels_last)
    if draw.random() < 0.5:
        weight.data = weight.data.to(memory_format=torch.channels_last)
    return x, weight, parameter(columns, dtype=dtype) if draw.random() < 0.7 else None


def transformed_bound(kind: str) -> float:
    """That of a 3x3 convolution."""
    if multiplied_as(kind) == "bfloat16":
        return ROUNDED_BOUND
    return TRANSFORMED_BOUND if kind == "float32" else BOUNDS[torch.bfloat16]


@pytest.mark.parametrize("tile", [4, 6])
@pytest.mark.parametrize("seed", range(10))
def test_transformed_convolutions_are_exact_within_their_bound(
    kind: str,
    dtype: torch.dtype,
    tile: int,
    seed: int,
    all_sizes: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if tile == 6 and multiplied_as(kind) == "bfloat16":
        tile = winograd_tile(320, 320, 64 * 64, dtype)  # the larger ones lose too much
        assert tile == 4
    monkeypatch.setattr(layer_kernels, "winograd_tile", lambda *_: tile)
    draw = random.Random(seed)
    torch.set_num_threads(1 + seed % 3)
    x, weight, bias = convolution(draw, dtype, taps=3, channels=draw.randint(1, 90))
    expected = F.conv2d(*doubles(x, weight, bias), padding=1)
    found = convolve(x, weight, bias, 1, 1)
    assert error(found, expected) < transformed_bound(kind)
    assert found is not None and found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [512, 1280])
def test_long_sums_stay_within_their_bound(kind: str, dtype: torch.dtype, channels: int) -> None:
    x = torch.randn(1, channels, 32, 32).to(dtype)
    weight = parameter(64, channels, 3, 3, dtype=dtype)
    expected = F.conv2d(*doubles(x, weight), padding=1)
    pairs = multiplied_as(kind) == "bfloat16"
    assert winograd_tile(channels, 64, 1024, dtype) == (4 if pairs else 6)
    found = convolve(x, weight, None, 1, 1)
    assert error(found, expected) < transformed_bound(kind)
    if dtype is torch.bfloat16:
        direct = error(F.conv2d(x, weight, padding=1), expected)
        assert error(found, expected) < (2.8 if pairs else 1.01) * direct


@each_bfloat16
@pytest.mark.parametrize("seed", range(12))
def test_any_convolution_is_exact_where_torch_has_no_instruction(
    kind: str, dtype: torch.dtype, seed: int, all_sizes: None
) -> None:
    draw = random.Random(seed)
    torch.set_num_threads(1 + seed % 3)
    x, weight, bias = convolution(
        draw, dtype, taps=draw.randint(1, 4), channels=draw.randint(1, 40)
    )
    weight = nn.Parameter(weight[:, :, : draw.randint(1, 4)].detach())
    stride, around = draw.randint(1, 3), (draw.randint(0, 2), draw.randint(0, 2))
    arguments = bias, stride, around
    found = convolve(x, weight, *arguments)
    if multiplied_as(kind) == "bfloat16" or x.shape[2] + 2 * around[0] < weight.shape[2]:
        return
    if x.shape[3] + 2 * around[1] < weight.shape[3]:
        return
    expected = F.conv2d(*doubles(x, weight, bias), stride, around)
    assert error(found, expected) < BOUNDS[dtype]
    assert found is not None and found.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def layer() -> nn.Linear:
    return nn.Linear(256, 256)


@float32_kernels
def test_from_the_first_layer_on_maps_are_channels_last() -> None:
    x, weight = torch.randn(2, 4, 64, 64), parameter(64, 4, 3, 3, dtype=torch.float32)
    found = convolve(x, weight, None, 1, 1)
    assert error(found, F.conv2d(*doubles(x, weight), padding=1)) < 1e-6
    assert found is not None and found.is_contiguous(memory_format=torch.channels_last)
    assert not F.conv2d(x, weight, padding=1).is_contiguous(memory_format=torch.channels_last)


def called(layer: nn.Module, x: Tensor) -> Tensor:
    with kernels.active():
        return layer(x)


def count(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The functions of torch that the kernels answer for from now on."""
    answered: list[Any] = []

    def noted(function: Any, stand_in: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*args: Any, **kwargs: Any) -> Any:
            result = stand_in(*args, **kwargs)
            answered.extend([] if result is None else [function])
            return result

        return answer

    table = {function: noted(function, ours) for function, ours in kernels._STAND_INS.items()}
    monkeypatch.setattr(kernels, "_STAND_INS", table)
    return answered


@float32_kernels
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight.mul_(2),
        lambda layer: layer.weight.data.mul_(2),
        lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight * 2)),
        lambda layer: setattr(layer.weight, "data", layer.weight.data * 2),
        lambda layer: layer.load_state_dict({k: v * 2 for k, v in layer.state_dict().items()}),
        lambda layer: layer.to(torch.float64).to(torch.float32).weight.add_(1),
    ],
    ids=["in place", "behind the counter", "parameter", "data", "state", "moved"],
)
def test_changed_weights_are_noticed(layer: nn.Linear, change: Callable[..., Any]) -> None:
    x = torch.randn(300, 256)
    called(layer, x)
    change(layer)
    assert torch.allclose(called(layer, x), F.linear(x, layer.weight, layer.bias), atol=1e-4)


@float32_kernels
def test_kernels_stand_in_inside_a_network_and_only_there(
    layer: nn.Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, x = count(monkeypatch), torch.randn(300, 256)
    layer(x)
    assert names == []
    called(layer, x)
    assert names == [F.linear]
    with kernels.using(False):
        called(layer, x)
    with torch.enable_grad():
        called(layer, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        called(layer, x)
    with kernels.active():
        torch.vmap(layer)(x[None])
    assert names == [F.linear]


@float32_kernels
def test_what_the_kernels_do_not_take_goes_to_torch() -> None:
    x, weight = torch.randn(300, 256), parameter(256, 256, dtype=torch.float32)
    assert linear(x.bfloat16(), weight) is None
    assert linear(x.to("meta"), weight) is None
    assert linear(x[:, :100], weight) is None
    assert linear(x[:2], weight) is None
    assert linear(x, weight, torch.zeros(3)) is None
    with torch.enable_grad():
        assert linear(x, weight) is None
    pictures, taps = torch.randn(1, 64, 32, 32), parameter(64, 64, 3, 3, dtype=torch.float32)
    assert convolve(pictures, taps, None, 1, "same") is None
    assert convolve(pictures, taps, None, 1, 1, 2) is None
    assert convolve(pictures, taps[:, :32].clone(), None, 1, 1, 1, 2) is None
    assert convolve(pictures, taps, None, (1, 2), 1) is None
    assert convolve(pictures, taps, None, 2, 1) is None
    assert convolve(pictures, taps, None, 1, 0) is None
    assert convolve(pictures[:, :, :5, :5], taps, None, 1, 1) is None
    assert convolve(pictures[0], taps, None, 1, 1) is None
    assert convolve(pictures[:, :3], taps, None, 1, 1) is None


@float32_kernels
def test_wrong_arguments_get_torchs_own_error(layer: nn.Linear) -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        called(layer, torch.randn(300, 255))
    with pytest.raises(RuntimeError, match="expected input"):
        called(nn.Conv2d(64, 64, 3), torch.randn(1, 63, 32, 32))


@float32_kernels
def test_other_modes_see_every_call_first(layer: nn.Linear) -> None:
    seen = []

    class Watching(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Watching():
        called(layer, torch.randn(300, 256))
        assert F.linear in seen
        seen.clear()
        layer(torch.randn(300, 256))
        assert F.linear in seen


@float32_kernels
def test_several_threads_compute_with_one_network(layer: nn.Linear) -> None:
    inputs = [torch.randn(300, 256) for _ in range(6)]
    expected = [layer(x) for x in inputs]
    found: list[Tensor | None] = [None] * len(inputs)

    def work(index: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                found[index] = called(layer, inputs[index])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for have, want in zip(found, expected, strict=True):
        assert have is not None and torch.allclose(have, want, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_whole_network_computes_what_torch_makes_of_it(
    dtype: torch.dtype, seed: int, all_sizes: None
) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    widths = tuple(8 * draw.randint(1, 5) for _ in range(2))
    unet = UNet2DConditionModel(
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    ).to(dtype)
    x = torch.randn(draw.randint(1, 5), 4, 2 * draw.randint(2, 9), 2 * draw.randint(2, 9)).to(dtype)
    context = torch.randn(len(x), 7, 12).to(dtype)
    with kernels.using(False):
        expected = unet(x, 10, context).sample
        exact = unet.double()(x.double(), 10, context.double()).sample
    unet.to(dtype)
    bound = 1e-5 if dtype is torch.float32 else 2.5 * error(expected, exact)
    assert error(unet(x, 10, context).sample, exact) < bound


def in_a_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_package_without_the_library_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    code = (
        "from sfumato.native import library as l; l.EXTENSION_SUFFIXES = ['.none'];"
        "print(l.library(), l.features(), l.describe())"
    )
    assert in_a_process(code, SFUMATO_KERNELS="") == "None 0 not built; torch computes alone"


@float32_kernels
def test_threads_without_torch_share_the_work() -> None:
    code = """
import ctypes, numpy as np
from sfumato.native.library import library
rng = np.random.default_rng(0)
x, w = (rng.standard_normal(shape).astype("f4") for shape in ((300, 64), (128, 64)))
raw = np.empty(128 * 64 + 16, "f4")
packed = raw[-raw.ctypes.data % 64 // 4:][:128 * 64]
y = np.empty((300, 128), "f4")
strides = (ctypes.c_long * 4)(64, 1, 0, 0)
l = library()
l.sfumato_pack_float32(w.ctypes.data, packed.ctypes.data, 128, 64, 1, 1, strides, 3)
l.sfumato_linear_float32(x.ctypes.data, y.ctypes.data, packed.ctypes.data, None, 300, 64, 128, 3)
print(abs(y - x @ w.T).max() < 1e-4)
"""
    assert in_a_process(code) == "True"


def test_the_library_tells_what_it_uses() -> None:
    assert kernels.available() == bool(features())
    if library() is not None and features():
        assert all(name in describe() for name in feature_names())
