"""The forms of heavy operations: kernels give what XLA gives, in every place of a program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from sfumato.jax import forms, kernels  # noqa: E402
from sfumato.native.library import can_compute  # noqa: E402
from tests.graph.cases import relative_error  # noqa: E402

Call = tuple[Callable[..., Any], tuple[Any, ...]]


def made(*shape: int, dtype: Any = "float32") -> Any:
    numbers = np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)
    return jnp.asarray(numbers / np.sqrt(shape[-1]), dtype)


def convolutions(dtype: str) -> dict[str, Call]:
    found: dict[str, Call] = {}
    cases = (
        ("tiles", (2, 16, 12, 24), (40, 24, 3, 3), 1, (1, 1, 1, 1), True),
        ("large tiles", (2, 40, 24, 24), (40, 24, 3, 3), 1, (1, 1, 1, 1), False),
        ("few pixels", (1, 9, 11, 64), (48, 64, 3, 3), 1, (1, 1, 1, 1), True),
        ("stride", (1, 32, 32, 24), (24, 24, 3, 3), 2, (1, 1, 1, 1), True),
        ("stride, uneven", (1, 32, 33, 24), (24, 24, 3, 3), 2, (0, 1, 0, 1), True),
        ("one tap", (2, 32, 32, 40), (24, 40, 1, 1), 1, (0, 0, 0, 0), True),
        ("few channels", (1, 32, 32, 4), (64, 4, 3, 3), 1, (1, 1, 1, 1), True),
        ("wide", (1, 32, 32, 24), (24, 24, 5, 5), 1, (2, 2, 2, 2), False),
    )
    for name, shape, weight, stride, padding, biased in cases:
        bias = made(weight[0], dtype=dtype) if biased else None
        arrays = made(*shape, dtype=dtype), made(*weight, dtype=dtype)

        def call(
            x: Any, w: Any, bias: Any = bias, stride: int = stride, padding: Any = padding
        ) -> Any:
            return forms.convolve(x, w, bias, stride=stride, padding=padding)

        found[f"convolution: {name}"] = call, arrays
    return found


def products(dtype: str) -> dict[str, Call]:
    x, text = made(2, 300, 48, dtype=dtype), made(2, 20, 48, dtype=dtype)
    mask = jnp.where(made(2, 1, 1, 20) > 0, 0.0, -1e4)
    full = made(1, 3, 300, 300)
    square, one = made(2, 16, 16, 48, dtype=dtype), made(48, dtype=dtype)
    weight = made(80, 48, dtype=dtype)

    def attend(q: Any, k: Any, bias: Any = None, causal: bool = False) -> Any:
        return forms.attention(q, k, k, bias, heads=3, causal=causal)

    def norm(x: Any, w: Any, silu: bool = False) -> Any:
        return forms.group_norm(x, w, w, groups=6, eps=1e-5, silu=silu)

    return {
        "linear": (lambda x, w: forms.linear(x, w, None), (x, weight)),
        "linear with a bias": (lambda x, w: forms.linear(x, w, w[:, 0]), (x, weight)),
        "linear with taps": (lambda x, w: forms.linear(x, w[..., None, None], None), (x, weight)),
        "attention": (attend, (x, x)),
        "attention to text": (attend, (x, text)),
        "attention with a mask": (lambda q, k: attend(q, k, mask), (x, text)),
        "attention with any bias": (lambda q, k: attend(q, k, full), (x, x)),
        "causal attention": (lambda q, k: attend(q, k, None, True), (x, x)),
        "causal attention to the end": (lambda q, k: attend(q, k, None, True), (text, x)),
        "group norm": (norm, (square, one)),
        "group norm and SiLU": (lambda x, w: norm(x, w, True), (square, one)),
        "GEGLU": (forms.geglu, (made(2, 600, 96, dtype=dtype),)),
    }


def without_kernels(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "can_compute", lambda dtype: False)
        jax.clear_caches()
        found = call()
    jax.clear_caches()
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_give_what_xla_gives(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = convolutions(dtype) | products(dtype)
    plain = without_kernels(
        monkeypatch, lambda: {name: call(*arrays) for name, (call, arrays) in cases.items()}
    )
    for name, (call, arrays) in cases.items():
        found = jax.jit(call)(*arrays)
        assert found.dtype == dtype, name
        wide = np.asarray(found, np.float64), np.asarray(plain[name], np.float64)
        assert relative_error(*wide) < (1e-5 if dtype == "float32" else 2e-2), name


@pytest.mark.skipif(not can_compute("float32"), reason="no kernels for this processor")
def test_what_pays_is_computed_by_kernels_and_what_does_not_is_not() -> None:
    def calls(name: str) -> int:
        call, arrays = (convolutions("float32") | products("float32"))[name]
        return jax.jit(call).lower(*arrays).as_text().count("@sfumato_")

    assert calls("convolution: tiles") == 1
    assert calls("convolution: stride, uneven") == 1
    assert calls("convolution: few channels") == 0
    assert calls("linear with a bias") == 1
    assert calls("attention with a mask") == 1
    assert calls("causal attention to the end") == 0


def chain(x: Any, weight: Any) -> Any:
    """All kernels, twice, in a loop of the program."""

    def body(x: Any, _: Any) -> Any:
        one = jnp.ones(48)
        y = forms.convolve(x, weight, one, padding=(1, 1, 1, 1))
        y = forms.group_norm(y, one, one, groups=6, eps=1e-5, silu=True)
        tokens = y.reshape(y.shape[0], -1, 48)
        tokens = forms.attention(tokens, tokens, tokens, None, heads=3, causal=False)
        tokens = forms.geglu(forms.linear(tokens, weight[:, :, 0, 0].repeat(2, 0), None))
        return x + tokens.reshape(x.shape), None

    return jax.lax.scan(body, x, None, length=2)[0]


def test_kernels_work_in_loops_under_vmap_and_grad(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = made(2, 16, 16, 48), made(48, 48, 3, 3)

    def all_of_it() -> list[Any]:
        loss = jax.grad(lambda x, w: jnp.square(chain(x, w)).mean(), argnums=(0, 1))
        mapped = jax.vmap(lambda x: chain(x[None], weight)[0])
        return [jax.jit(chain)(x, weight), jax.jit(mapped)(x), *jax.jit(loss)(x, weight)]

    plain = without_kernels(monkeypatch, all_of_it)
    for found, expected in zip(all_of_it(), plain, strict=True):
        assert relative_error(np.asarray(found), np.asarray(expected)) < 1e-5
