"""The networks in JAX compute what those on torch do, over random configurations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sfumato.graph.autoencoder import decode, encode
from sfumato.graph.clip_text import clip_text
from sfumato.graph.clip_vision import clip_vision
from tests.graph.cases import (
    relative_error,
    run_unet,
    text_case,
    unet_case,
    vae_case,
    vision_case,
)

jax = pytest.importorskip("jax")

from sfumato.jax.attention import attention  # noqa: E402
from sfumato.jax.ops import JaxOps  # noqa: E402

OPS: Any = JaxOps()


def compiled(function: Any, *args: Any) -> Any:
    return jax.tree.map(np.asarray, jax.jit(function)(*args))


@pytest.mark.parametrize("seed", range(100, 106))
def test_a_random_unet_predicts_what_torch_predicts(seed: int) -> None:
    case = unet_case(seed)
    actual = compiled(lambda: run_unet(OPS, case, case.weights()))
    assert relative_error(actual, case.expected["sample"]) < 1e-5


@pytest.mark.parametrize("seed", range(100, 104))
def test_a_random_autoencoder_is_that_of_torch(seed: int) -> None:
    case = vae_case(seed)
    weights = case.weights()
    moments, images = compiled(
        lambda: (
            encode(OPS, weights, case.config, case.inputs["images"]),
            decode(OPS, weights, case.config, case.inputs["latents"]),
        )
    )
    assert relative_error(moments, case.expected["moments"]) < 1e-5
    assert relative_error(images, case.expected["images"]) < 1e-5


@pytest.mark.parametrize("seed", range(100, 106))
def test_a_random_text_encoder_is_that_of_torch(seed: int) -> None:
    case = text_case(seed)
    names = list(case.expected)

    def run() -> Any:
        out = clip_text(OPS, case.weights(), case.config, **case.inputs, **case.options)
        return [getattr(out, name) for name in names]

    for name, actual in zip(names, compiled(run), strict=True):
        assert relative_error(actual, case.expected[name]) < 1e-5, name


@pytest.mark.parametrize("seed", range(100, 103))
def test_a_random_vision_encoder_is_that_of_torch(seed: int) -> None:
    case = vision_case(seed)
    names = list(case.expected)

    def run() -> Any:
        out = clip_vision(OPS, case.weights(), case.config, **case.inputs)
        return [getattr(out, name) for name in names]

    for name, actual in zip(names, compiled(run), strict=True):
        assert relative_error(actual, case.expected[name]) < 1e-5, name


@pytest.mark.parametrize(
    ("length", "keys", "bias", "causal"),
    [
        (7, 5, None, False),
        (1, 9, "keys", False),
        (33, 33, None, True),
        (33, 33, "keys", True),
        (50, 20, "all", False),
        (2100, 700, "keys", False),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_in_blocks_is_that_of_torch(
    length: int, keys: int, bias: str | None, causal: bool, dtype: str
) -> None:
    torch.manual_seed(length)
    heads, depth = 3, 6
    q, k, v = (torch.randn(2, size, heads * depth) for size in (length, keys, keys))
    shape = {None: None, "keys": (2, 1, 1, keys), "all": (2, heads, length, keys)}[bias]
    added = None if shape is None else torch.randn(shape)
    q, k, v = (x.to(getattr(torch, dtype)).float() for x in (q, k, v))
    by_head = [x.unflatten(2, (heads, depth)).transpose(1, 2).double() for x in (q, k, v)]
    mask = torch.zeros(1, 1, length, keys, dtype=torch.float64)
    if causal:
        mask = mask.masked_fill(torch.ones(length, keys, dtype=torch.bool).triu(1), -torch.inf)
    mask = mask if added is None else mask + added.double()
    expected = F.scaled_dot_product_attention(*by_head, attn_mask=mask)
    arrays = (jax.numpy.asarray(x.numpy(), dtype) for x in (q, k, v))
    given = None if added is None else added.numpy()
    actual = jax.jit(lambda q, k, v: attention(q, k, v, heads, given, causal))(*arrays)
    assert actual.dtype == dtype
    found = np.asarray(actual, np.float64)
    bound = 1e-5 if dtype == "float32" else 2e-2
    assert relative_error(found, expected.transpose(1, 2).flatten(2).numpy()) < bound


def test_networks_compute_in_bfloat16_when_asked() -> None:
    case = vae_case(100)
    ops: Any = JaxOps(jax.numpy.bfloat16)
    images = jax.jit(lambda: decode(ops, case.weights(), case.config, case.inputs["latents"]))()
    assert images.dtype == "bfloat16"
    assert relative_error(np.asarray(images, np.float32), case.expected["images"]) < 0.1
