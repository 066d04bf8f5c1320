"""Operations of Stable Diffusion 1.5's size in JAX: as one would write them, and as sfumato does.

    python -m benchmarks.jax_forms [--dtype float32] [--rounds 3]
    python -m benchmarks.jax_forms --step               # a whole step of the UNet instead
    SFUMATO_KERNELS=0 python -m benchmarks.jax_forms    # what XLA does where there are no kernels

The ways take turns on the same numbers, and the shortest of the rounds counts. They are:

    naive     attention as two products with all scores between, everything in the network's type
    NCHW      the same with the layout of the weights' origin, for convolutions
    products  a convolution as nine products of shifted maps, with sums in float32
    sfumato   `sfumato.jax.forms`
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import Array, lax

from sfumato import UNet2DConditionModel
from sfumato.graph import unet
from sfumato.graph.weights import Weights
from sfumato.jax.ops import JaxOps
from sfumato.models.unet_config import UNet2DConditionConfig

#: Channels and side of the maps of the UNet's levels at 512x512.
LEVELS = ((320, 64), (640, 32), (1280, 16))
Way = Callable[..., Array]


class NaiveOps(JaxOps):
    """What a direct translation to JAX gives."""

    def conv2d(
        self, x: Array, layer: Weights, *, stride: int = 1, padding: Any = (0,) * 4
    ) -> Array:
        around = (padding[:2], padding[2:])
        axes = ("NHWC", "OIHW", "NHWC")
        weight = self.weight(layer, "weight")
        out = lax.conv_general_dilated(x, weight, (stride,) * 2, around, dimension_numbers=axes)
        return out + self.weight(layer, "bias") if "bias" in layer else out

    def linear(self, x: Array, layer: Weights) -> Array:
        weight = self.weight(layer, "weight")
        out = x @ weight.reshape(weight.shape[:2]).T
        return out + self.weight(layer, "bias") if "bias" in layer else out

    def attention(
        self, q: Array, k: Array, v: Array, heads: int, bias: Any = None, causal: bool = False
    ) -> Array:
        assert bias is None and not causal
        q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) * q.shape[3] ** -0.5
        mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), v)
        return mixed.reshape(*mixed.shape[:2], -1)

    def group_norm(
        self, x: Array, layer: Weights, groups: int, eps: float, act: Any = None
    ) -> Array:
        grouped = x.reshape(x.shape[0], -1, groups, x.shape[3] // groups)
        mean = grouped.mean(axis=(1, 3), keepdims=True)
        spread = jnp.sqrt(grouped.var(axis=(1, 3), keepdims=True) + eps)
        normal = ((grouped - mean) / spread).reshape(x.shape)
        out = normal * self.weight(layer, "weight") + self.weight(layer, "bias")
        return jax.nn.silu(out) if act == "silu" else out

    def geglu(self, x: Array) -> Array:
        value, gate = jnp.split(x, 2, axis=-1)
        return value * jax.nn.gelu(gate, approximate=False)


def convolution_nchw(x: Array, weight: Array) -> Array:
    """A convolution of an NHWC map that is computed in NCHW."""
    axes = ("NCHW", "OIHW", "NCHW")
    moved = x.transpose(0, 3, 1, 2)
    out = lax.conv_general_dilated(moved, weight, (1, 1), ((1, 1), (1, 1)), dimension_numbers=axes)
    return out.transpose(0, 2, 3, 1)


def convolution_by_products(x: Array, weight: Array) -> Array:
    """Nine products of the shifted map with the taps."""
    _, height, width, _ = x.shape
    wide = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = jnp.float32(0)
    for tap in range(9):
        shifted = wide[:, tap // 3 :, tap % 3 :][:, :height, :width]
        total += lax.dot_general(
            shifted, weight[:, :, tap // 3, tap % 3], (((3,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )  # fmt: skip
    return total.astype(x.dtype)


def convolution(ops: JaxOps) -> Way:
    return lambda x, w: ops.conv2d(x, Weights({"weight": w}), padding=(1, 1, 1, 1))


def norm(ops: JaxOps) -> Way:
    return lambda x, w: ops.group_norm(x, Weights({"weight": w, "bias": w}), 32, 1e-5, "silu")


def linear(ops: JaxOps) -> Way:
    return lambda x, w: ops.linear(x, Weights({"weight": w}))


def attention(ops: JaxOps) -> Way:
    return lambda q, k, v: ops.attention(q, k, v, 8)


def random(*shape: int, dtype: Any) -> Array:
    """Numbers that keep the size of what passes through."""
    made = np.random.default_rng(0).standard_normal(shape, np.float32)
    return jnp.asarray(made / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 1), dtype)


def operations(dtype: Any) -> dict[str, tuple[list[Array], dict[str, Way]]]:
    """By name: the arguments, and the ways."""
    ops = {"naive": NaiveOps(dtype), "sfumato": JaxOps(dtype)}
    made: dict[str, tuple[list[Array], dict[str, Way]]] = {}

    def add(name: str, arrays: list[Array], way: Callable[[JaxOps], Way], **more: Way) -> None:
        own = {key: way(form) for key, form in ops.items()}
        made[name] = arrays, {"naive": own["naive"], **more, "sfumato": own["sfumato"]}

    for channels, side in LEVELS:
        at = f"{channels} channels, {side}x{side}"
        maps = random(2, side, side, channels, dtype=dtype) * side
        tokens = maps.reshape(2, side * side, channels)
        taps = random(channels, channels, 3, 3, dtype=dtype)
        matrix = random(8 * channels, channels, dtype=dtype)
        others = {"NCHW": convolution_nchw, "products": convolution_by_products}
        add(f"3x3 convolution, {at}", [maps, taps], convolution, **others)
        add(f"group norm and SiLU, {at}", [maps, jnp.ones(channels, dtype)], norm)
        add(f"linear layer to {8 * channels}, {at}", [tokens, matrix], linear)
        add(f"GEGLU, {at}", [jnp.concatenate([tokens] * 8, 2)], lambda ops: ops.geglu)
        add(f"attention, 8 heads, {at}", [tokens] * 3, attention)
    return made


def step(dtype: Any) -> tuple[list[Any], dict[str, Way]]:
    """A step of the whole UNet with guidance."""
    config = UNet2DConditionConfig(cross_attention_dim=768)
    with torch.device("meta"):
        weights = UNet2DConditionModel(**config.to_dict()).state_dict()
    params = {name: random(*weight.shape, dtype=dtype) for name, weight in weights.items()}
    given = random(2, 4, 64, 64, dtype=jnp.float32), random(2, 77, 768, dtype=jnp.float32)

    def way(ops: Any) -> Way:
        return lambda params, x, text: unet.unet(
            ops, Weights(params), config, x, jnp.full(2, 500.0), text
        )

    return [params, *given], {"naive": way(NaiveOps(dtype)), "sfumato": way(JaxOps(dtype))}


def measured(arrays: list[Any], ways: dict[str, Way], rounds: int) -> dict[str, float]:
    """Seconds by name, the shortest of some rounds."""
    compiled = {name: jax.jit(way) for name, way in ways.items()}
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(rounds + 1):
        for name, way in compiled.items():
            start = time.perf_counter()
            way(*arrays).block_until_ready()
            if turn:  # the first compiles
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def row(name: str, times: dict[str, float]) -> str:
    """One line of the table."""
    cells = [f"{way} {seconds * 1e3:.1f}" for way, seconds in times.items()]
    return " | ".join([name, *cells, f"{times['naive'] / times['sfumato']:.1f} times"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Operations in JAX: naive and chosen forms.")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step", action="store_true", help="measure the whole UNet")
    options = parser.parse_args()
    dtype = jnp.dtype(options.dtype)
    table = {"UNet": step(dtype)} if options.step else operations(dtype)
    print(f"{options.dtype}, milliseconds")
    for name, (arrays, ways) in table.items():
        print(row(name, measured(arrays, ways, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
