"""Keys and values of the text: computed once, and again whenever they would be others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from sfumato.models.attention import Attention
from sfumato.models.kept_projections import keeping_projections
from tests.pipelines.tiny import tiny_pipeline


@contextmanager
def count(layer: nn.Module) -> Iterator[list[int]]:
    calls: list[int] = []
    hook = layer.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        hook.remove()


@pytest.fixture
def layer() -> Attention:
    return Attention(16, 8, heads=2, dim_head=8).eval()


def test_keys_are_kept_while_text_and_weights_stay(layer: Attention) -> None:
    x, text = torch.randn(1, 5, 16), torch.randn(1, 3, 8)
    with torch.no_grad():
        plain = layer(x, text)
        with count(layer.to_k) as calls, keeping_projections():  # type: ignore[arg-type]
            assert torch.equal(layer(x, text), plain)
            assert torch.equal(layer(x, text), plain)
            assert len(calls) == 1
            layer(x, text.clone())
            assert len(calls) == 2
            text.mul_(2)
            changed = layer(x, text)
            assert len(calls) == 3
            layer.to_v.weight.mul_(2)  # type: ignore[union-attr]
            doubled = layer(x, text)
            assert len(calls) == 4
        assert torch.equal(changed, layer(x, text)) is False
        assert torch.equal(doubled, layer(x, text))
        with count(layer.to_k) as calls:  # type: ignore[arg-type]
            layer(x, text)
            layer(x, text)
        assert len(calls) == 2


def test_gradients_and_inference_tensors_are_never_kept(layer: Attention) -> None:
    x, text = torch.randn(1, 5, 16), torch.randn(1, 3, 8)
    with count(layer.to_k) as calls, keeping_projections():  # type: ignore[arg-type]
        layer(x, text)
        layer(x, text)
        assert len(calls) == 2
        with torch.inference_mode():
            text = torch.randn(1, 3, 8)
            layer(x, text)
            layer(x, text)
        assert len(calls) == 4


def test_a_drawing_looks_at_its_text_once() -> None:
    pipe: Any = tiny_pipeline()
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2

    def draw(**options: Any) -> torch.Tensor:
        return pipe(
            "a cat", num_inference_steps=4, generator=torch.Generator().manual_seed(0),
            output_type="latent", **options,
        ).images  # fmt: skip

    with count(layer.to_k) as calls:
        draw()
        assert len(calls) == 1
        draw()
        assert len(calls) == 2


def test_a_layer_with_adapters_computes_its_own_in_every_step() -> None:
    pipe: Any = tiny_pipeline()
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    down, up = torch.randn(2, layer.to_k.in_features), torch.randn(layer.to_k.out_features, 2)
    pipe.load_lora_weights(
        {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}, adapter_name="x"
    )
    strengths = iter([1.0, 0.0, 0.0, 0.0, 0.0])

    def weaken(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe.set_adapters(["x"], [next(strengths)])
        return tensors

    with count(layer.to_k) as calls:
        pipe("a cat", num_inference_steps=3, callback_on_step_end=weaken, output_type="latent")
    assert len(calls) > 1
