"""The stand-ins for torch's attention, against the formula in float64."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.native.attention import Strided, attend
from sfumato.runtime import attention, kernels
from sfumato.runtime import blocked_attention as blocks
from sfumato.runtime.attention import fast_attention
from sfumato.runtime.blocked_attention import blocked_attention
from sfumato.runtime.machine import Machine
from tests.runtime.variants import TYPES, each_bfloat16, each_float32

#: Errors relative to the largest result. float32: of one rounding times the length of the sums;
#: bfloat16: of rounding weights and results once each, as torch's own kernel does.
BOUNDS = {"float32": 2e-6, "bfloat16": 2**-7}


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def heads(n: int, tokens: int, count: int, size: int, kind: str, spread: float = 1.0) -> Tensor:
    """Tokens as the models lay them out: the heads of a token side by side."""
    return (torch.randn(n, tokens, count, size) * spread).to(TYPES[kind]).transpose(1, 2)


def formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Attention in float64; zeros where every key is hidden."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    scores = factor * (q.double() @ k.double().transpose(-1, -2))
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    elif mask is not None:
        scores = scores + mask.double()
    hidden = (scores == -math.inf).all(-1, keepdim=True)
    return scores.softmax(-1).masked_fill(hidden, 0.0) @ v.double()


def close(found: Tensor | None, wanted: Tensor, kind: str) -> None:
    assert found is not None
    assert found.dtype == TYPES[kind]
    assert found.shape == wanted.shape
    error = (found.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)
    assert error <= BOUNDS[kind]


def some_mask(
    pick: random.Random, n: int, count: int, queries: int, keys: int, kind: str
) -> Tensor | None:
    """One of the masks that torch takes; some hide all keys from some queries."""
    return pick.choice(
        [
            None,
            torch.randn(n, 1, queries, keys),
            torch.randn(1, count, 1, keys).to(TYPES[kind]),
            torch.rand(n, 1, 1, keys) > 0.5,
            torch.rand(queries, keys) > 0.8,
            torch.randn(keys, queries).T.contiguous().T[:queries].T if keys == queries else None,
        ]
    )


@pytest.mark.parametrize("seed", range(40))
def test_random_shapes_masks_and_strides_give_what_the_formula_says(
    kind: str, seed: int, threads: Callable[[int], None]
) -> None:
    torch.manual_seed(seed)
    pick = random.Random(seed)
    n, count = pick.randint(1, 2), pick.randint(1, 3)
    queries = pick.choice([1, 5, 16, 17, 63, 64, 65, 130])
    keys = pick.choice([1, 2, 3, 6, 7, 77, 95, 96, 97, 192, 193, 400])
    size = pick.choice([1, 2, 3, 8, 17, 40, 41, 64, 80, 160, 512])
    channels = pick.choice([size, size, 1, 5, 48])
    q, k = heads(n, queries, count, size, kind), heads(n, keys, count, size, kind)
    v = heads(n, keys, count, channels, kind)
    if pick.random() < 0.3:
        q, k, v = (t.contiguous() for t in (q, k, v))
    if pick.random() < 0.2:  # channels that do not lie side by side
        q = q.transpose(2, 3).contiguous().transpose(2, 3)
    mask = some_mask(pick, n, count, queries, keys, kind)
    causal = mask is None and pick.random() < 0.3
    scale = pick.choice([None, None, 0.3, -0.2, 0.0])
    threads(pick.randint(1, 3))
    found = fast_attention(q, k, v, mask, is_causal=causal, scale=scale)
    close(found, formula(q, k, v, mask, causal, scale), kind)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 15, 16, 31, 33, 40, 47, 64, 80, 129, 160, 255, 512])
def test_every_size_of_head_is_exact(kind: str, size: int) -> None:
    torch.manual_seed(size)
    q, k, v = (heads(1, tokens, 2, size, kind) for tokens in (33, 50, 50))
    close(fast_attention(q, k, v), formula(q, k, v), kind)


@each_bfloat16
def test_bfloat16_is_no_less_exact_than_torchs(kind: str) -> None:
    torch.manual_seed(0)
    q, k, v = (heads(2, tokens, 4, 40, kind, 2.0) for tokens in (256, 300, 300))
    wanted = formula(q, k, v)
    mine = fast_attention(q, k, v)
    assert mine is not None
    theirs = F.scaled_dot_product_attention(q, k, v)
    assert (mine - wanted).norm() <= 1.1 * (theirs - wanted).norm()


def test_large_scores_neither_overflow_nor_lose_the_largest(kind: str) -> None:
    torch.manual_seed(1)
    # Scores grow along the keys, by far more than an exponential can hold.
    q, k, v = (heads(1, tokens, 1, 16, kind) for tokens in (70, 500, 500))
    q = q.abs()
    k = k.abs() * torch.linspace(0.01, 100, 500).to(k.dtype)[:, None]
    found = fast_attention(q * 30, k, v, scale=1.0)
    close(found, formula(q * 30, k, v, scale=1.0), kind)
    rows = torch.cat([torch.full((250,), -1e30), torch.full((250,), 3e38)])
    close(fast_attention(q, k, v, rows), formula(q, k, v, rows.clamp(min=-1e30)), kind)


def test_a_bias_at_the_lower_end_of_float32_leaves_all_keys_alike(kind: str) -> None:
    q, k, v = (heads(1, tokens, 2, 8, kind) for tokens in (20, 9, 9))
    bias = torch.full((20, 9), torch.finfo(torch.float32).min)
    close(fast_attention(q, k, v, bias), v.double().mean(2, True).expand(-1, -1, 20, -1), kind)


def test_a_query_that_sees_no_key_yields_zeros_as_in_torch(kind: str) -> None:
    torch.manual_seed(2)
    q, k, v = (heads(1, tokens, 2, 8, kind) for tokens in (20, 200, 200))
    mask = torch.rand(20, 200) > 0.5
    mask[3] = False
    mask[4, :150] = False
    found = fast_attention(q, k, v, mask)
    assert found is not None
    assert (found[:, :, 3] == 0).all()
    assert (F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, :, 3] == 0).all()
    close(found, formula(q, k, v, mask), kind)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_reach_the_queries_that_meet_them_alone(kind: str, bad: float) -> None:
    q, k, v = (heads(1, tokens, 1, 8, kind) for tokens in (40, 300, 300))
    q[0, 0, 7, 0] = bad
    found = fast_attention(q, k.abs(), v)
    assert found is not None
    lost = found.isnan().all(-1)[0, 0]
    assert lost[7]
    assert not found[0, 0, torch.arange(40) != 7].isnan().any()
    k[0, 0, 299] = math.nan
    found = fast_attention(q, k, v)
    assert found is not None and found.isnan().all()
    found = fast_attention(k, k, v.index_fill(3, torch.tensor([2]), bad))
    assert found is not None and not found[..., 2].isfinite().any()


def test_the_result_is_laid_out_as_the_output_projection_reads_it(kind: str) -> None:
    q = heads(2, 30, 3, 8, kind)
    found = fast_attention(q, q, q)
    assert found is not None
    assert found.transpose(1, 2).flatten(2).data_ptr() == found.data_ptr()


def test_inputs_stay_as_they_are(kind: str) -> None:
    q, k, v = (heads(1, 33, 2, 17, kind) for _ in range(3))
    copies = [t.clone() for t in (q, k, v)]
    fast_attention(q, k, v)
    assert all(torch.equal(t, c) for t, c in zip((q, k, v), copies, strict=True))


def test_what_only_torch_can_do_is_left_to_torch() -> None:
    q, k, v = (heads(1, 8, 2, 4, "float32") for _ in range(3))
    learnt = q.clone().requires_grad_()
    assert fast_attention(learnt, k, v) is None
    assert fast_attention(q, k, v, torch.zeros(8, 8, requires_grad=True)) is None
    assert fast_attention(q, k, v, dropout_p=0.5) is None
    assert fast_attention(q, k, v, enable_gqa=True) is None
    assert fast_attention(q.double(), k.double(), v.double()) is None
    assert fast_attention(q.half(), k.half(), v.half()) is None
    assert fast_attention(q.to("meta"), k.to("meta"), v.to("meta")) is None
    with torch.no_grad():
        expected = fast_attention(q, k, v)
        found = fast_attention(learnt, k, v)
    assert (found is None) == (expected is None)


def test_wrong_arguments_are_left_to_torch_to_refuse() -> None:
    q, k, v = (heads(1, 8, 2, 4, "float32") for _ in range(3))
    assert fast_attention(q, k[:, :, :0], v[:, :, :0]) is None
    assert fast_attention(q, k[..., :3], v) is None
    assert fast_attention(q, k, v[:, :, :7]) is None
    assert fast_attention(q, k, v, torch.zeros(8, 7)) is None
    assert fast_attention(q, k, v, torch.zeros(8, 8), is_causal=True) is None
    assert fast_attention(q, k.bfloat16(), v) is None
    assert fast_attention(q, k, v, torch.zeros(8, 8, dtype=torch.int64)) is None


@pytest.mark.parametrize("shape", [(2, 300, 3, 40, 300), (1, 700, 1, 64, 77), (1, 5, 2, 8, 3)])
def test_blocks_of_matrix_products_give_what_the_formula_says(shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    n, queries, count, size, keys = shape
    for kind, bound in (("float32", 1e-5), ("bfloat16", 2**-6)):
        q = heads(n, queries, count, size, kind)
        k, v = (heads(n, keys, count, size, kind) for _ in range(2))
        wanted = formula(q, k, v, scale=0.2)
        found = blocked_attention(q, k, v, 0.2)
        assert (found.double() - wanted).abs().max() <= bound * wanted.abs().max()
        assert found.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("instructions", [(), ("avx512_bf16",), ("avx512_bf16", "amx_bf16")])
def test_without_a_kernel_blocks_are_taken_where_they_pay(
    instructions: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(instructions=instructions, processors=1)
    monkeypatch.setattr(blocks, "this_machine", lambda: machine)
    monkeypatch.setattr(attention, "can_compute", lambda kind: False)
    monkeypatch.setattr(kernels, "features", lambda: 0)
    monkeypatch.setattr(kernels, "switched_off", lambda: False)
    pays = instructions == ("avx512_bf16",)
    q = heads(1, 300, 2, 40, "bfloat16")
    with torch.no_grad(), kernels.active():
        assert kernels.computing() == pays
        found = fast_attention(q, q, q)
        assert (found is not None) == pays
        assert fast_attention(q.float(), q.float(), q.float()) is None
        assert fast_attention(q, q[:, :, :77], q[:, :, :77]) is None
        assert fast_attention(q, q, q, torch.zeros(300, 300)) is None
        assert fast_attention(q, q, q, is_causal=True) is None
        mixed = F.scaled_dot_product_attention(q, q, q)
    wanted = formula(q, q, q)
    assert (mixed - wanted).abs().max() <= 2**-6 * wanted.abs().max()


@each_float32
def test_arrays_of_numpy_are_taken_as_well(kind: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, n, 3, 20), np.float32) for n in (10, 77, 77))
    out = np.empty_like(q)
    # (N, tokens, heads, channels) in memory, seen as (N, heads, tokens, channels)
    views = [a.swapaxes(1, 2) for a in (q, k, v, out)]
    places = [
        Strided(a.ctypes.data, a.dtype.name, a.shape, tuple(s // a.itemsize for s in a.strides))
        for a in views
    ]
    attend(places[0], places[1], places[2], places[3], None, scale=0.3)
    found, *given = (torch.from_numpy(a) for a in (views[3], *views[:3]))
    close(found, formula(given[0], given[1], given[2], scale=0.3), kind)
