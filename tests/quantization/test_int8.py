"""Layers with 8-bit integers on both sides: the kernels against the same arithmetic in torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.errors import CheckpointError
from sfumato.quantization import int8, kernels
from sfumato.quantization.int8 import (
    Int8Tensor,
    from_kernel_order,
    in_kernel_order,
    pack,
    rounded_pictures,
    rounded_rows,
    unpack,
)
from sfumato.quantization.winograd import WinogradTensor
from sfumato.quantization.winograd import pack as pack_transformed
from sfumato.quantization.winograd import unpack as unpack_transformed
from tests.memory import peak

needs_kernels = pytest.mark.skipif(not kernels.available(), reason="needs AVX-512 VNNI")
TYPES = (torch.float32, torch.bfloat16)


def distance(found: Tensor, expected: Tensor) -> float:
    """Of the difference to the expected, in the Euclidean norm."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(
    "shape", [(64, 32), (16, 4), (7, 9), (130, 33), (3, 5, 3, 3), (65, 8, 1, 2)]
)
def test_packed_integers_come_back(shape: tuple[int, ...]) -> None:
    weight = torch.randint(-127, 128, shape, dtype=torch.int8)
    rows = in_kernel_order(weight)
    packed = pack(rows)
    assert packed.numel() % 64 == 0
    assert torch.equal(unpack(packed, *rows.shape), rows)
    assert torch.equal(from_kernel_order(rows, shape), weight)


@pytest.mark.parametrize(("outputs", "inputs"), [(64, 32), (5, 3), (130, 17)])
def test_packed_transformed_integers_come_back(outputs: int, inputs: int) -> None:
    integers = torch.randint(-127, 128, (outputs, 16, inputs), dtype=torch.int8)
    assert torch.equal(unpack_transformed(pack_transformed(integers), outputs, inputs), integers)


@pytest.mark.parametrize("shape", [(70, 40), (33, 10, 3, 3)])
def test_weights_are_rounded_to_the_nearest_of_255_values_of_their_output(
    shape: tuple[int, ...],
) -> None:
    weight = random(*shape)
    found = Int8Tensor.quantise(weight, torch.float32).plain()
    step = weight.flatten(1).abs().amax(1) / 127
    expected = (weight.flatten(1) / step[:, None]).round() * step[:, None]
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-6, atol=1e-7)


def test_transformed_weights_come_back_close() -> None:
    weight = random(40, 24, 3, 3)
    assert distance(WinogradTensor.quantise(weight, torch.float32).plain(), weight) < 0.01


@pytest.mark.parametrize("dtype", [*TYPES, torch.float64])
def test_numbers_are_rounded_part_by_part_as_the_formula_says(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "AT_A_TIME", 100)
    rows = random(3, 11, 40, dtype=dtype) * 4 + 1
    low, high = (getattr(rows.float(), f)(-1, keepdim=True) for f in ("amin", "amax"))
    scale = (high - low) / 255
    expected = (rows.float() * (1 / scale) - low * (1 / scale)).round() * scale + low
    torch.testing.assert_close(rounded_rows(rows), expected.to(dtype))
    assert rounded_rows(rows[:, :0]).shape == (3, 0, 40)

    picture = random(2, 6, 9, 7, seed=1, dtype=dtype).contiguous(memory_format=torch.channels_last)
    picture[1] = picture[1].abs() + 3
    wide = picture.float().flatten(1)
    low, high = wide.amin(1).clamp(max=0), wide.amax(1).clamp(min=0)
    scale = ((high - low) / 255)[:, None, None, None]
    found = rounded_pictures(picture)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    close = 0.51 * scale + 2**-8 * picture.float().abs() * (dtype == torch.bfloat16)
    assert ((found.float() - picture.float()).abs() <= close).all()
    steps = found.float() / scale
    if dtype != torch.bfloat16:
        assert (steps - steps.round()).abs().max() < 1e-3


def test_without_kernels_no_wide_copy_of_a_map_or_a_weight_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(int8, "AT_A_TIME", 2**13)
    x = random(1, 16, 96, 256, dtype=torch.bfloat16)
    for function in (rounded_rows, rounded_pictures):
        assert peak(lambda f=function: f(x)) < 2.3 * x.nbytes  # with `x`
    weight = random(1280, 32, 3, 3)
    for kind in (Int8Tensor, WinogradTensor):
        made = kind.quantise(weight, torch.bfloat16)
        assert peak(made.plain) < made.plain().nbytes + 3 * made.integers().nbytes


def test_a_weight_of_zeros_stays_one() -> None:
    for made in (
        Int8Tensor.quantise(torch.zeros(5, 32), torch.float32),
        WinogradTensor.quantise(torch.zeros(5, 4, 3, 3), torch.float32),
    ):
        assert torch.equal(made.plain(), torch.zeros(made.shape))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(bad: float) -> None:
    weight = random(70, 4, 3, 3)
    weight[66, 0, 0, 0] = bad
    for kind in (Int8Tensor, WinogradTensor):
        with pytest.raises(CheckpointError, match="NaN or infinity"):
            kind.quantise(weight, torch.float32)


# The kernels compute what torch does


@needs_kernels
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1, 4, 16), (2, 32, 64), (7, 33, 5), (49, 70, 130), (193, 320, 200), (400, 9, 65)],
)
def test_a_linear_layer_is_that_of_the_rounded_input(
    dtype: torch.dtype, rows: int, inputs: int, outputs: int
) -> None:
    weight = Int8Tensor.quantise(random(outputs, inputs), dtype)
    x, bias = random(1, rows, inputs, seed=1, dtype=dtype) + 0.5, random(outputs, seed=2).to(dtype)
    expected = F.linear(rounded_rows(x.float()), weight.plain(torch.float32), bias.float())
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found = F.linear(x, weight, bias)
        assert found.dtype == dtype and found.shape == (1, rows, outputs)
        assert distance(found, expected) < (1e-5 if dtype == torch.float32 else 4e-3)
    torch.set_num_threads(1)


@needs_kernels
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("channels", "outputs", "size", "kernel", "stride", "padding"),
    [
        (32, 64, (8, 8), (3, 3), 1, 1), (5, 20, (7, 9), (3, 3), 2, 1),
        (6, 70, (5, 5), (3, 3), 1, 0), (8, 16, (6, 4), (1, 1), 1, 0),
        (8, 16, (6, 4), (1, 1), 2, 0), (3, 130, (9, 5), (2, 3), 1, 1),
        (320, 33, (15, 14), (3, 3), 1, 1), (4, 4, (1, 1), (3, 3), 1, 1),
    ],
)  # fmt: skip
def test_a_convolution_is_that_of_the_rounded_input(
    dtype: torch.dtype,
    channels: int,
    outputs: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    padding: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(int8, "LEAST_PIXELS", 10**6)  # no Winograd's method
    weight = Int8Tensor.quantise(random(outputs, channels, *kernel), dtype)
    x, bias = random(2, channels, *size, seed=1, dtype=dtype), random(outputs, seed=2, dtype=dtype)
    x[1] *= 5
    by_pixel = kernel == (1, 1) and stride == 1
    rounded = (
        rounded_rows(x.float().movedim(1, -1)).movedim(-1, 1)
        if by_pixel
        else rounded_pictures(x.float())
    )
    expected = F.conv2d(rounded, weight.plain(torch.float32), bias.float(), stride, padding)
    for format in (torch.contiguous_format, torch.channels_last):
        found = F.conv2d(x.contiguous(memory_format=format), weight, bias, stride, padding)
        assert found.dtype == dtype and found.shape == expected.shape
        assert distance(found, expected) < (2e-5 if dtype == torch.float32 else 4e-3)


@needs_kernels
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("channels", "outputs", "size", "padding"),
    [
        (32, 64, (8, 8), 1), (5, 20, (7, 9), 1), (33, 70, (4, 5), 0), (320, 130, (15, 14), 1),
        (16, 8, (3, 3), (1, 0)), (16, 8, (3, 4), (0, 2)), (64, 64, (40, 30), 1),
    ],
)  # fmt: skip
def test_winograds_method_is_as_exact_as_the_direct_way(
    dtype: torch.dtype,
    channels: int,
    outputs: int,
    size: tuple[int, int],
    padding: int | tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = random(outputs, channels, 3, 3)
    x, bias = random(2, channels, *size, seed=1, dtype=dtype), random(outputs, seed=2, dtype=dtype)
    expected = F.conv2d(x.float(), plain, bias.float(), padding=padding)
    found = F.conv2d(x, WinogradTensor.quantise(plain, dtype), bias, padding=padding)
    weight = Int8Tensor.quantise(plain, dtype)
    in_the_call = F.conv2d(x, weight, bias, padding=padding)
    monkeypatch.setattr(int8, "LEAST_PIXELS", 10**6)
    direct = F.conv2d(x, weight, bias, padding=padding)
    assert found.dtype == dtype and found.shape == expected.shape
    assert distance(found, expected) < max(0.016, 1.5 * distance(direct, expected))
    assert distance(in_the_call, expected) < max(0.018, 1.7 * distance(direct, expected))


@needs_kernels
@pytest.mark.parametrize(
    ("channels", "outputs", "size"), [(16, 5, (8, 8)), (48, 200, (13, 9)), (1280, 64, (30, 30))]
)
def test_integers_are_transformed_in_the_call_as_beforehand(
    channels: int, outputs: int, size: tuple[int, int]
) -> None:
    plain = random(outputs, channels, 3, 3)
    plain[0] = 0
    plain[1] = plain[1].sign()
    weight = Int8Tensor.quantise(plain, torch.float32)
    taps = weight.integers().view(outputs, 3, 3, channels).double()
    to = torch.tensor([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]).double()
    four_times = torch.einsum("ai,bj,oijc->oabc", to, to, taps).flatten(1, 2)
    factors = (127 * 2048 / four_times.abs().amax(2).clamp(min=1)).clamp(max=32767).floor()
    integers = (four_times * 16 * factors[..., None] / 2**15 + 0.5).floor().to(torch.int8)
    scales = weight.scales[:, None] * 512 / factors.float()
    beforehand = WinogradTensor.of_integers(integers, scales, torch.float32)
    x, bias = random(3, channels, *size, seed=1), random(outputs, seed=2)
    expected = F.conv2d(x, beforehand, bias, padding=1)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert distance(F.conv2d(x, weight, bias, padding=1), expected) < 1e-6
    torch.set_num_threads(1)


@needs_kernels
def test_threads_change_no_bit() -> None:
    x = random(2, 64, 24, 24).bfloat16()
    weights = [k.quantise(random(160, 64, 3, 3), x.dtype) for k in (Int8Tensor, WinogradTensor)]
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append([F.conv2d(x, weight, padding=1) for weight in weights])
    torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_kernels
@pytest.mark.parametrize("kind", [Int8Tensor, WinogradTensor])
def test_a_picture_does_not_depend_on_its_neighbours(
    kind: type[Int8Tensor] | type[WinogradTensor],
) -> None:
    x, weight = random(3, 16, 9, 9), kind.quantise(random(32, 16, 3, 3), torch.float32)
    x[1] *= 1000
    together = F.conv2d(x, weight, padding=1)
    alone = torch.cat([F.conv2d(one[None], weight, padding=1) for one in x])
    assert torch.equal(together, alone)


@needs_kernels
def test_constant_input_is_exact_but_for_the_weights() -> None:
    weight = Int8Tensor.quantise(random(16, 32), torch.float32)
    for value in (0.0, -3.25, 1e-30):
        x = torch.full((2, 32), value)
        torch.testing.assert_close(F.linear(x, weight), F.linear(x, weight.plain()))


@needs_kernels
def test_infinity_does_not_get_lost() -> None:
    x = random(2, 32)
    x[0, 3] = float("inf")
    found = F.linear(x, Int8Tensor.quantise(random(16, 32), torch.float32))
    assert not found[0].isfinite().any() and found[1].isfinite().all()


def test_without_kernels_the_result_is_the_same_but_for_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    linear, x = nn.Linear(40, 24), random(2, 5, 40)
    convolution, picture = nn.Conv2d(12, 24, 3, padding=1), random(2, 12, 7, 7)
    single = nn.Conv2d(12, 24, 1)
    cases: list[tuple[Any, Tensor, type[Int8Tensor] | type[WinogradTensor]]] = [
        (linear, x, Int8Tensor),
        (single, picture, Int8Tensor),
        (convolution, picture, Int8Tensor),
        (convolution, picture, WinogradTensor),
    ]
    for layer, given, kind in cases:
        plain = layer.weight
        with torch.no_grad():
            expected = layer(given)
            layer.weight = nn.Parameter(kind.quantise(plain, plain.dtype), requires_grad=False)
            monkeypatch.setattr(kernels, "available", lambda: False)
            assert distance(layer(given), expected) < 0.02
            monkeypatch.undo()
        layer.weight = plain


def test_half_precision_and_dilation_take_the_plain_way() -> None:
    weight = Int8Tensor.quantise(random(16, 8, 3, 3), torch.float32)
    x = random(1, 8, 9, 9)
    expected = F.conv2d(x, weight.plain(), dilation=2)
    torch.testing.assert_close(F.conv2d(x, weight, dilation=2), expected)
    same = F.conv2d(x, weight, padding="same")
    torch.testing.assert_close(same, F.conv2d(x, weight.plain(), padding="same"))
    half = F.linear(random(2, 32).half(), Int8Tensor.quantise(random(8, 32), torch.float16))
    assert half.dtype == torch.float16
