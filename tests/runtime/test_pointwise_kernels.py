"""The stand-ins for torch's norms and gates, against the formulas in float64."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.models.fused import geglu, group_moments, norm_act, scale_act
from sfumato.native.pointwise import Activation, activate
from sfumato.runtime import kernels, pointwise
from tests.runtime.variants import TYPES

#: Largest errors: relative to the result or, near zero, to one.
BOUNDS = {"float32": 3e-6, "bfloat16": 2**-7}
#: Relative errors of an activation: of some roundings in float32, of one in bfloat16.
RELATIVE = {"float32": 2e-6, "bfloat16": 2**-8 + 2e-4}


def close(found: Tensor | None, wanted: Tensor, kind: str) -> None:
    assert found is not None
    assert found.dtype == TYPES[kind]
    assert found.shape == wanted.shape
    assert ((found.double() - wanted).abs() <= BOUNDS[kind] * wanted.abs().clamp(min=1)).all()


def double(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.double()


def weights(pick: random.Random, channels: int, kind: str) -> tuple[Tensor | None, Tensor | None]:
    made = [torch.randn(channels).to(TYPES[kind]) if pick.random() < 0.8 else None for _ in "wb"]
    return made[0], made[1]


@pytest.mark.parametrize("seed", range(20))
def test_group_norm_of_random_pictures_gives_what_the_formula_says(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    pick = random.Random(seed)
    groups = pick.choice([1, 2, 4, 32])
    channels = groups * pick.choice([1, 3, 4, 10])
    size = (pick.randint(1, 3), channels, pick.randint(1, 40), pick.randint(2, 40))
    x = (torch.randn(size) * 3 + torch.randn(channels, 1, 1)).to(TYPES[kind])
    x = x.contiguous(memory_format=torch.channels_last)
    if pick.random() < 0.3:  # tokens whose channels lie side by side
        x = x.flatten(2)
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    weight, bias = weights(pick, channels, kind)
    silu = pick.random() < 0.5
    wanted = F.group_norm(x.double(), groups, double(weight), double(bias), 1e-5)
    found = pointwise.group_norm(x, groups, weight, bias, 1e-5, silu=silu)
    close(found, F.silu(wanted) if silu else wanted, kind)
    assert found is not None and found.stride() == x.stride()


def test_group_norm_keeps_its_digits_far_from_zero(kind: str) -> None:
    torch.manual_seed(0)
    x = (torch.randn(1, 8, 64, 64) + 1000).to(TYPES[kind])
    x = x.contiguous(memory_format=torch.channels_last)
    found = pointwise.group_norm(x, 2)
    assert found is not None
    wanted = F.group_norm(x.double(), 2)
    assert (found - wanted).abs().max() <= (1e-3 if kind == "float32" else 0.05)


@pytest.mark.parametrize("seed", range(12))
def test_moments_and_a_scale_make_a_group_norm_of_parts(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    pick = random.Random(seed)
    groups = pick.choice([1, 2, 4, 32])
    channels = groups * pick.choice([1, 3, 4, 70])
    size = (pick.randint(1, 3), channels, pick.randint(1, 40), pick.randint(2, 40))
    x = (torch.randn(size) * 3 + 20 * torch.randn(channels, 1, 1)).to(TYPES[kind])
    x = x.contiguous(memory_format=torch.channels_last)
    exact = x.double().unflatten(1, (groups, -1)).flatten(2)
    factors = torch.randn(size[0], 2, channels)
    wanted = x.double() * factors[:, 0, :, None, None] + factors[:, 1, :, None, None]
    for on in (False, True):
        with torch.no_grad(), kernels.using(on), kernels.active():
            mean, squares = group_moments(x, groups).double().unbind(dim=2)
            assert torch.allclose(mean, exact.mean(2), rtol=1e-5, atol=1e-4)
            assert torch.allclose(
                squares, exact.var(2, correction=0) * exact.shape[2], rtol=1e-4, atol=1e-4
            )
            found = scale_act(x, factors.double(), nn.SiLU())
            assert found.stride() == x.stride()
            close(found, F.silu(wanted), kind)
            close(scale_act(x, factors, nn.Identity()), wanted, kind)


def test_moments_keep_their_digits_far_from_zero(kind: str) -> None:
    torch.manual_seed(0)
    x = (torch.randn(1, 8, 64, 64) + 1000).to(TYPES[kind])
    x = x.contiguous(memory_format=torch.channels_last)
    found = pointwise.group_moments(x, 2)
    exact = x.double().unflatten(1, (2, -1)).flatten(2)
    assert found is not None and found.dtype == torch.float64
    assert torch.allclose(found[..., 0], exact.mean(2), rtol=1e-9)
    assert torch.allclose(found[..., 1] / exact.shape[2], exact.var(2, correction=0), rtol=1e-5)
    constant = torch.full_like(x, 1000)
    found = pointwise.group_moments(constant, 2)
    assert found is not None and (found == torch.tensor([1000.0, 0.0]).to(found)).all()


@pytest.mark.parametrize("channels", [1, 7, 16, 100, 320])
def test_layer_norm_gives_what_the_formula_says(kind: str, channels: int) -> None:
    torch.manual_seed(channels)
    x = (torch.randn(3, 50, channels) * 2 + 5).to(TYPES[kind])
    weight, bias = weights(random.Random(channels), channels, kind)
    wanted = F.layer_norm(x.double(), (channels,), double(weight), double(bias), 1e-5)
    close(pointwise.layer_norm(x, (channels,), weight, bias), wanted, kind)


@pytest.mark.parametrize("channels", [1, 5, 16, 90])
def test_a_gelu_gate_gives_what_the_formula_says(kind: str, channels: int) -> None:
    torch.manual_seed(channels)
    x = (torch.randn(2, 70, 2 * channels) * 2).to(TYPES[kind])
    value, gate = x.double().chunk(2, dim=-1)
    close(pointwise.geglu(x), value * F.gelu(gate), kind)


FORMULAS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    # The complementary error function, since 1 + erf loses all digits of negative numbers.
    "gelu": lambda x: 0.5 * x * torch.special.erfc(-x * 0.5**0.5),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_activations_are_exact_over_their_range(kind: str, name: Activation) -> None:
    x = torch.linspace(-12, 12, 10_001).to(TYPES[kind])
    x = x[x != 0]
    found = torch.empty_like(x)
    activate(kind, x.data_ptr(), found.data_ptr(), count=len(x), kind=name)
    wanted = FORMULAS[name](x.double())
    # The exponent of a large negative number is itself rounded.
    bound = RELATIVE[kind] * (1 + x.double().clamp(max=0) ** 2 / 20)
    assert ((found / wanted - 1).abs() <= bound).all()


def test_activations_of_numbers_that_are_none_are_none(kind: str) -> None:
    for name in FORMULAS:
        x = torch.tensor([float("nan"), 0.0, 1e30, -1e30, float("inf")]).to(TYPES[kind])
        activate(kind, x.data_ptr(), x.data_ptr(), count=5, kind=name)
        assert x[0].isnan() and x[1] == 0 and x[2] > 9e29 and x[3].abs() < 1e-4
        assert x[4] == float("inf")


def test_networks_compute_alike_with_and_without_the_kernels(kind: str) -> None:
    torch.manual_seed(1)
    norm = nn.GroupNorm(4, 24).to(TYPES[kind])
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 24, 9, 11).to(TYPES[kind]).contiguous(memory_format=torch.channels_last)
    tokens = torch.randn(2, 9, 48).to(TYPES[kind])
    steps = (lambda: norm_act(norm, nn.SiLU(), x), lambda: geglu(tokens))
    with torch.no_grad():
        for step in steps:
            with kernels.active():
                assert kernels.computing()
                found = step()
            assert not kernels.computing()
            close(found, step().double(), kind)


def test_modules_with_hooks_of_their_own_are_called(kind: str) -> None:
    norm, calls = nn.GroupNorm(2, 4).to(TYPES[kind]), []
    norm.register_forward_pre_hook(lambda module, inputs: calls.append(module))
    x = torch.randn(1, 4, 3, 3).to(TYPES[kind]).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), kernels.active():
        norm_act(norm, nn.SiLU(), x)
    assert calls == [norm]


def test_what_only_torch_can_do_is_left_to_torch() -> None:
    x = torch.randn(2, 8, 5, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    assert pointwise.group_norm(x, 2) is None  # channels do not lie side by side
    assert pointwise.group_norm(last, 3) is None
    assert pointwise.group_norm(last, 0) is None
    assert pointwise.group_norm(last, 2, torch.ones(7)) is None
    assert pointwise.group_norm(last, 2, torch.ones(8, dtype=torch.bfloat16)) is None
    assert pointwise.group_norm(last, 2, torch.ones(8, requires_grad=True)) is None
    assert pointwise.group_norm(last[..., :0], 2) is None
    assert pointwise.group_norm(torch.randn(1, 2, 1, 1), 2) is None  # torch refuses single values
    for other in (x, last.double(), last[..., :0], last.clone().requires_grad_(), last[0]):
        assert pointwise.group_moments(other, 2) is None
        assert pointwise.scaled(other, torch.ones(2, 2, 8)) is None
    assert pointwise.layer_norm(x, (5, 5)) is None
    assert pointwise.layer_norm(x, (4,)) is None
    assert pointwise.layer_norm(x.double(), (5,)) is None
    assert pointwise.geglu(x) is None
    assert pointwise.geglu(torch.randn(4, 6).T) is None
