"""Quantised networks: which weights, how near the result, adapters on top, moving and training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.errors import CheckpointError, InputError
from sfumato.models.unet import UNet2DConditionModel
from sfumato.pipelines.offload import wait_in_files
from sfumato.pipelines.seamless import seamless
from sfumato.quantization.blocks import BlockTensor
from sfumato.quantization.int8 import Int8Tensor
from sfumato.quantization.names import KINDS
from sfumato.quantization.network import quantization_of, quantize
from sfumato.quantization.tensor import QuantizedTensor, stored
from sfumato.quantization.winograd import WinogradTensor
from sfumato.runtime import kernels, layer_kernels, pages
from tests.adapters.files_like import kohya_file, norm_file, peft_file
from tests.pipelines.tiny import tiny_unet

#: How far the output of a tiny random UNet may be, relative to it.
BOUNDS = {"int8": 0.03, "int8-weights": 0.01, "int4": 0.15}


def inputs(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, int, Tensor]:
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(batch, 4, 8, 8, generator=generator).to(dtype)
    return latents, 400, torch.randn(batch, 5, 32, generator=generator).to(dtype)


@torch.no_grad()
def answer(network: UNet2DConditionModel, **options: Any) -> Tensor:
    return network(*inputs(dtype=network.dtype), **options).sample


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_near_that_of_the_plain_network(kind: str, dtype: torch.dtype) -> None:
    network = tiny_unet().to(dtype)
    expected, names = answer(network), set(network.state_dict())
    before = network.get_memory_footprint()
    count = quantize(network, kind)
    assert count > 20
    rounding = 0 if dtype == torch.float32 else 0.01
    assert 0 < distance(answer(network), expected) < BOUNDS[kind] + rounding
    assert quantization_of(network) == kind
    assert set(network.state_dict()) == names
    assert network.dtype == dtype
    assert network.get_memory_footprint() < before * (0.7 if dtype == torch.float32 else 1)
    assert quantize(network, kind) == 0, "what is quantised is not quantised again"


def test_layers_that_feed_errors_on_keep_their_precision() -> None:
    network = tiny_unet()
    quantize(network, "int8")
    quantised = {n for n, p in network.named_parameters() if isinstance(p, QuantizedTensor)}
    assert not [n for n in quantised if n.startswith(("conv_in", "conv_out", "time_embedding"))]
    assert not [n for n in quantised if "time_emb_proj" in n or "conv_shortcut" in n]
    kinds = {type(p).__name__ for p in network.parameters() if isinstance(p, QuantizedTensor)}
    assert kinds == {"Int8Tensor", "WinogradTensor"}
    assert isinstance(network.down_blocks[0].downsamplers[0].conv.weight, Int8Tensor)
    assert isinstance(network.down_blocks[0].resnets[0].conv1.weight, WinogradTensor)


def test_what_is_kept_can_be_chosen() -> None:
    network = tiny_unet()
    everything = quantize(tiny_unet(), "int4", keep=())
    assert quantize(network, "int4", keep=[r".*attn.*"]) < everything
    attention = [p for n, p in network.named_parameters() if "attn" in n]
    assert not any(isinstance(p, QuantizedTensor) for p in attention)


def test_a_shared_weight_stays_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
            self.b.weight = self.a.weight

    network = Tied()
    assert quantize(network, "int8") == 1
    assert network.a.weight is network.b.weight


def test_unknown_kinds_are_refused_with_what_there_is() -> None:
    with pytest.raises(
        InputError, match=r"no quantization 'int3'; it is one of int8, int8-weights"
    ):
        quantize(tiny_unet(), "int3")


def test_a_damaged_layer_is_named() -> None:
    network = tiny_unet()
    network.mid_block.resnets[0].conv1.weight.data[3, 3] = float("nan")
    with pytest.raises(CheckpointError, match=r"'mid_block.resnets.0.conv1' holds NaN"):
        quantize(network, "int8")


# Adapters


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [kohya_file, peft_file])
def test_a_lora_acts_beside_quantised_weights(make: Any, kind: str) -> None:
    plain, quantised = tiny_unet(), tiny_unet()
    quantize(quantised, kind)
    without = answer(quantised)
    file = make({"unet": plain}, seed=3)
    for network in (plain, quantised):
        network.load_lora_adapter(file, adapter_name="x")
    moved, expected = answer(quantised) - without, answer(plain)
    assert distance(without + moved, expected) < 2 * BOUNDS[kind]
    assert moved.norm() > 0.1 * without.norm(), "the adapter does something"
    quantised.unload_lora()
    assert torch.equal(answer(quantised), without)


def test_adapters_that_change_the_weight_see_the_plain_numbers() -> None:
    plain, quantised = tiny_unet(), tiny_unet()
    quantize(quantised, "int8-weights")
    file = norm_file(plain)
    for network in (plain, quantised):
        network.load_lora_adapter(file, adapter_name="x")
    assert distance(answer(quantised), answer(plain)) < 2 * BOUNDS["int8-weights"]


def test_fusing_is_refused_and_changes_nothing() -> None:
    network = tiny_unet()
    file = peft_file({"unet": network}, seed=3)
    quantize(network, "int8")
    network.load_lora_adapter(file, adapter_name="x")
    before = answer(network)
    with pytest.raises(InputError, match="cannot be fused into quantised weights"):
        network.fuse_lora()
    with pytest.raises(InputError, match="Quantised projections cannot be fused"):
        network.fuse_qkv_projections()
    assert torch.equal(answer(network), before)


# What else is done with networks


def test_seamless_pictures_wrap_quantised_convolutions_too() -> None:
    network = tiny_unet()
    with seamless(True):
        expected = answer(network)
    quantize(network, "int8")
    plain = answer(network)
    with seamless(True):
        found = answer(network)
    assert distance(found, expected) < BOUNDS["int8"] < distance(plain, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_other_precisions_compute_alike(kind: str) -> None:
    network = tiny_unet()
    quantize(network, kind)
    expected = answer(network)
    assert torch.equal(answer(copy.deepcopy(network)), expected)
    network.to(torch.bfloat16)
    assert network.dtype == torch.bfloat16
    assert all(p.dtype == torch.bfloat16 for p in network.parameters())
    assert distance(answer(network), expected) < 0.05
    network.to("cpu").float()
    assert distance(answer(network), expected) < 0.04
    state = network.state_dict()
    network.load_state_dict(state, assign=True)
    assert quantization_of(network) == kind


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_through_quantised_layers(kind: str) -> None:
    network, plain = tiny_unet(), tiny_unet()
    quantize(network, kind)
    gradients = []
    for one in (network, plain):
        latents, timestep, context = inputs()
        latents.requires_grad_()
        one(latents, timestep, context).sample.square().mean().backward()
        assert latents.grad is not None
        gradients.append(latents.grad)
    assert distance(gradients[0], gradients[1]) < 2 * BOUNDS[kind]


def test_a_quantised_weight_is_a_tensor_like_any_other() -> None:
    weight = BlockTensor.quantise(torch.randn(8, 64), torch.float32, "Q8_0")
    numbers = weight.plain()
    assert torch.equal(weight + 1, numbers + 1)
    assert torch.equal(torch.cat([weight, weight]), torch.cat([numbers, numbers]))
    assert torch.equal(weight[2:4], numbers[2:4])
    assert float(weight.norm()) == float(numbers.norm())
    assert "BlockTensor(shape=(8, 64)" in repr(weight)


@pytest.mark.skipif(not pages.works(), reason="needs Linux' map of pages")
@pytest.mark.parametrize("kind", KINDS)
def test_quantised_weights_wait_in_files_too(kind: str) -> None:
    network = tiny_unet()
    quantize(network, kind)
    expected = answer(network)
    wait_in_files([network])
    parts = [part for part in stored(network.parameters()) if part.nbytes >= 2 * pages.PAGE]
    assert parts and not pages.off_files(parts)
    assert torch.equal(answer(network), expected)


@pytest.mark.skipif(not kernels.available(), reason="no kernels here")
@torch.no_grad()
def test_the_plain_numbers_of_blocks_are_multiplied_by_the_compiled_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    linear, conv = nn.Linear(64, 96), nn.Conv2d(32, 32, 3, padding=1)
    x, picture = torch.randn(512, 64), torch.randn(2, 32, 16, 16)
    quantize(nn.Sequential(linear, conv), "int8-weights", keep=())
    expected = linear(x), conv(picture)
    taken: list[str] = []
    monkeypatch.setattr(layer_kernels, "linear_pays", lambda dtype: True)
    for name in ("linear", "convolve"):
        compute = getattr(layer_kernels, name)

        def noting(*given: Any, name: str = name, compute: Any = compute) -> Any:
            result = compute(*given)
            taken.extend([name] * (result is not None))
            return result

        monkeypatch.setattr(layer_kernels, name, noting)
    with kernels.active():
        found = linear(x), conv(picture)
    assert taken == ["linear", "convolve"]
    assert max(map(distance, found, expected)) < 1e-5
