"""Adapters on a network: switched, mixed, fused, taken off, and nothing left behind."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.adapters import network as functions
from sfumato.adapters.files import AdapterFile
from sfumato.adapters.layer import AdaptedLayer
from sfumato.adapters.loading import load
from sfumato.adapters.network import fuse, remove, set_enabled, unfuse
from sfumato.adapters.state import adapters_of, hold, scaled, state_of, using
from sfumato.errors import AdapterError, InputError, NumericalError
from tests.adapters.acting import TEXT, X, distance, out, put
from tests.adapters.files_like import (
    FAMILIES,
    kohya_file,
    norm_file,
    same_weights,
    weights_of,
)
from tests.pipelines.tiny import tiny_unet


@pytest.mark.parametrize("family", [*FAMILIES, "norm"])
def test_every_family_acts_as_fused_as_it_does_beside(unet: Any, family: str) -> None:
    before, plain = weights_of(unet), out(unet)
    file = norm_file(unet) if family == "norm" else kohya_file({"unet": unet}, family)
    load({"unet": unet}, AdapterFile(file), "a")
    assert same_weights(unet, before)
    for strength in (1.0, -0.5):
        functions.activate(unet, ["a"], [strength])
        beside = out(unet)
        assert distance(beside, plain) > 1e-3
        fuse(unet)
        assert not same_weights(unet, before)
        assert distance(out(unet), beside) < 2e-5
        unfuse(unet)
        assert same_weights(unet, before)
        assert torch.equal(out(unet), beside)
    remove(unet)
    assert torch.equal(out(unet), plain)


def test_a_network_without_adapters_is_what_it_was(unet: Any) -> None:
    kinds = {path: type(layer) for path, layer in unet.named_modules()}
    attributes = set(unet.__dict__)
    parameters = dict(unet.named_parameters())
    put(unet, "a", "loha")
    fuse(unet)
    remove(unet, ["a"])
    assert {path: type(layer) for path, layer in unet.named_modules()} == kinds
    assert set(unet.__dict__) == attributes
    assert all(parameters[name] is parameter for name, parameter in unet.named_parameters())
    assert not any("slot" in layer.__dict__ for layer in unet.modules())


def test_strength_zero_changes_no_bit(unet: Any) -> None:
    plain = out(unet)
    for family in ("lora", "dora"):
        put(unet, family, family)
        functions.activate(unet, [family], [0.0])
        assert torch.equal(out(unet), plain)
        fuse(unet)
        assert torch.equal(out(unet), plain)


def test_several_adapters_add_up_in_any_order(unet: Any) -> None:
    weight = unet.mid_block.attentions[0].proj_in.weight.clone()
    for name, family in (("a", "lora"), ("b", "dora"), ("c", "ia3 input"), ("d", "oft")):
        put(unet, name, family, seed=len(name))
    changes = []
    layer = unet.mid_block.attentions[0].proj_in
    for name in "abcd":
        functions.activate(unet, [name], [0.5])
        fuse(unet)
        changes.append(layer.weight - weight)
        unfuse(unet)
    outputs = []
    for names in ("abcd", "dbca"):
        functions.activate(unet, list(names), [0.5] * 4)
        outputs.append(out(unet))
        fuse(unet)
        assert distance(layer.weight, weight + sum(changes)) < 1e-5
        unfuse(unet)
    assert distance(*outputs) < 1e-5


def test_loading_makes_the_new_adapter_the_one_that_acts(unet: Any) -> None:
    put(unet, "a")
    alone = out(unet)
    put(unet, "b", seed=1)
    assert state_of(unet).active == ("b",)  # type: ignore[union-attr]
    assert distance(out(unet), alone) > 1e-3
    functions.activate(unet, ["a"])
    assert torch.equal(out(unet), alone)


def test_taking_off_the_last_active_adapter_lets_the_first_act(
    unet: Any, caplog: pytest.LogCaptureFixture
) -> None:
    put(unet, "a")
    alone = out(unet)
    put(unet, "b", seed=1)
    remove(unet, ["b", "unknown"])
    assert torch.equal(out(unet), alone)
    assert "'a' acts now" in caplog.text


def test_switching_off_shows_the_network_bare_even_when_fused(unet: Any) -> None:
    plain = out(unet)
    put(unet, "a")
    put(unet, "b", seed=1)
    fuse(unet, ["a"])
    both = out(unet)
    set_enabled(unet, False)
    assert torch.equal(out(unet), plain)
    set_enabled(unet, True)
    assert torch.equal(out(unet), both)


def test_fused_and_unfused_adapters_act_together(unet: Any) -> None:
    for name, family in (("a", "lora"), ("b", "dora"), ("c", "glora")):
        put(unet, name, family)
    functions.activate(unet, ["a", "b", "c"], [1.0, 0.5, -0.5])
    expected = out(unet)
    fuse(unet, ["b"])
    assert distance(out(unet), expected) < 1e-5
    fuse(unet, ["c"])
    assert distance(out(unet), expected) < 1e-5
    remove(unet, ["b"])
    functions.activate(unet, ["a", "c"], [1.0, -0.5])
    partly = out(unet)
    unfuse(unet)
    assert distance(out(unet), partly) < 1e-5


def test_fusing_twice_warns_and_changes_nothing(
    unet: Any, caplog: pytest.LogCaptureFixture
) -> None:
    put(unet, "a")
    fuse(unet, scale=0.5)
    once = out(unet)
    fuse(unet, ["a"])
    assert torch.equal(out(unet), once)
    assert "fused already" in caplog.text


def test_what_is_fused_stays_when_all_is_unloaded_until_unfused(unet: Any) -> None:
    before, plain = weights_of(unet), out(unet)
    put(unet, "a", "loha")
    fuse(unet)
    fused = out(unet)
    remove(unet)
    assert torch.equal(out(unet), fused)
    put(unet, "a", seed=3)
    fuse(unet)
    unfuse(unet)
    remove(unet)
    assert same_weights(unet, before)
    assert torch.equal(out(unet), plain)


def test_a_fused_weight_with_nan_is_refused_and_nothing_changes(unet: Any) -> None:
    before = weights_of(unet)
    huge = kohya_file({"unet": unet}, "full")
    huge = {k: (v * 1e38 if k.endswith("diff") else v) for k, v in huge.items()}
    put(unet, "fine")
    load({"unet": unet}, AdapterFile(huge), "huge")
    functions.activate(unet, ["fine", "huge"], [1.0, 1e4])
    with pytest.raises(AdapterError, match="NaN"):
        fuse(unet)
    assert same_weights(unet, before)
    assert not state_of(unet).fused  # type: ignore[union-attr]
    with pytest.raises(NumericalError, match="Lower their strength"):
        out(unet)


OPERATIONS = ["load", "load other", "fuse", "fuse half", "unfuse", "unload", "delete", "switch"]


@given(st.lists(st.sampled_from([*OPERATIONS, "off", "on", "hotswap", "draw"]), max_size=12))
@hypothesis_settings(max_examples=60)
def test_any_order_of_loading_fusing_and_unloading_leaves_nothing_behind(
    operations: list[str],
) -> None:
    unet = _shared_unet()
    before = weights_of(unet)
    for number, operation in enumerate(operations):
        _do(unet, operation, number)
    unfuse(unet)
    remove(unet)
    assert same_weights(unet, before)
    assert state_of(unet) is None
    assert not any(isinstance(layer, AdaptedLayer) for layer in unet.modules())


def _do(unet: nn.Module, operation: str, number: int) -> None:
    names = list(adapters_of(unet))
    if operation == "load":
        load({"unet": unet}, _FILES["lora"], f"lora {number}")
    elif operation == "load other":
        load({"unet": unet}, _FILES["other"], f"other {number}")
    elif operation == "fuse":
        fuse(unet)
    elif operation == "fuse half":
        fuse(unet, names[:1], 0.5)
    elif operation == "unfuse":
        unfuse(unet)
    elif operation == "unload":
        remove(unet)
    elif operation == "delete":
        remove(unet, names[:1])
    elif operation == "switch":
        functions.activate(unet, names, [0.3 * n - 1 for n in range(len(names))])
    elif operation in ("off", "on"):
        set_enabled(unet, operation == "on")
    elif operation == "hotswap" and names:
        load({"unet": unet}, _FILES["other"], names[0], replace=True)
    elif operation == "draw":
        out(unet)


_FILES: dict[str, AdapterFile] = {}


def _shared_unet() -> Any:
    unet = _NETWORKS.setdefault("unet", tiny_unet())
    if not _FILES:
        small = ("mid_block", "down_blocks_1")
        for name, family in (("lora", "lora"), ("other", "loha")):
            file = kohya_file({"unet": unet}, family)
            _FILES[name] = AdapterFile(
                {k: v for k, v in file.items() if any(s in k for s in small)}
            )
    return unet


_NETWORKS: dict[str, Any] = {}


# Per call, per thread, per row


def test_a_scale_multiplies_all_strengths(unet: Any) -> None:
    plain = out(unet)
    put(unet, "a")
    put(unet, "b", "loha")
    functions.activate(unet, ["a", "b"], [0.5, -1.0])
    half = out(unet, cross_attention_kwargs={"scale": 0.5})
    assert torch.equal(out(unet, cross_attention_kwargs={"scale": 0}), plain)
    with scaled(unet, 0.5):
        assert torch.equal(out(unet), half)
    functions.activate(unet, ["a", "b"], [0.25, -0.5])
    assert distance(out(unet), half) < 1e-6
    with pytest.raises(InputError, match="scale"):
        out(unet, cross_attention_kwargs={"scale": float("nan")})


def test_a_scale_may_be_given_by_position(unet: Any) -> None:
    put(unet, "a")
    with torch.no_grad():
        arguments = (X, 10, TEXT, None, None, None, {"scale": 0.5})
        assert torch.equal(
            unet(*arguments).sample, out(unet, cross_attention_kwargs={"scale": 0.5})
        )


@pytest.mark.parametrize("family", ["lora", "lora with mid", "loha", "dora"])
def test_every_row_of_a_batch_may_have_its_own_adapters(unet: Any, family: str) -> None:
    put(unet, "a", family, 1)
    put(unet, "b", family, 2)
    put(unet, "c", "lora", 3)
    rows: list[dict[str, Any]] = [{"a": 1.0}, {"b": 0.5, "c": -1.0}, {}, {"a": {"mid": 0.0}}]
    x = torch.cat([X, 2 * X])
    text = torch.cat([TEXT, -TEXT])
    alone = []
    for i, row in enumerate(rows):
        with using(unet, row):
            alone.append(out(unet, x[i : i + 1], text[i : i + 1]))
    with using(unet, rows):
        together = out(unet, x, text)
        twice = out(unet, torch.cat([x, x]), torch.cat([text, text]))
    for i, expected in enumerate(alone):
        assert distance(together[i : i + 1], expected) < 1e-5
        assert distance(twice[4 + i : 5 + i], expected) < 1e-5


def test_equal_rows_are_the_same_as_one_setting(unet: Any) -> None:
    put(unet, "a", "loha")
    put(unet, "b")
    with using(unet, {"a": 1.0, "b": 0.5}):
        expected = out(unet)
    with using(unet, [{"a": 1.0, "b": 0.5}] * 2):
        assert distance(out(unet), expected) < 1e-6
        with scaled(unet, 0.0):
            assert distance(out(unet), _bare(unet)) < 1e-6
    with using(unet, [{}]):
        assert torch.equal(out(unet), _bare(unet))


def _bare(unet: Any) -> Tensor:
    with using(unet, {}):
        return out(unet)


def test_what_a_call_asks_for_has_to_be_there(unet: Any) -> None:
    for strengths in ({"b": 1.0}, [{"b": 1.0}]):
        with pytest.raises(InputError, match="There is no adapter 'b'; there are: none"):
            using(unet, strengths).__enter__()
    put(unet, "a")
    with pytest.raises(InputError, match="there are: a"):
        using(unet, {"b": 1.0}).__enter__()
    with pytest.raises(InputError, match="empty"):
        using(unet, []).__enter__()
    with using(unet, [{"a": 1.0}] * 3), pytest.raises(InputError, match=r"3 rows.* batch has 2"):
        out(unet)


def test_threads_do_not_see_each_others_adapters(unet: Any) -> None:
    put(unet, "a", seed=1)
    put(unet, "b", seed=2)
    expected = {}
    for name in "ab":
        with using(unet, {name: 1.0}):
            expected[name] = out(unet)
    wrong: list[str] = []
    start = threading.Barrier(4)

    def work(name: str) -> None:
        start.wait()
        for _ in range(5):
            with using(unet, {name: 1.0}):
                if not torch.equal(out(unet), expected[name]):
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_held_call_keeps_its_adapters_while_another_thread_switches(unet: Any) -> None:
    put(unet, "a")
    first = out(unet)
    with hold(unet, None):
        thread = threading.Thread(target=put, args=(unet, "b", "lora", 7))
        thread.start()
        thread.join()
        assert torch.equal(out(unet), first)
        functions.activate(unet, ["a"], [0.5])  # what the thread does itself counts
        assert distance(out(unet), first) > 1e-3
    functions.activate(unet, ["b"])
    assert distance(out(unet), first) > 1e-3


# Hot-swapping, moving, copying


def test_swapping_an_adapter_keeps_how_strongly_it_acts(unet: Any) -> None:
    put(unet, "a", seed=1)
    put(unet, "b", seed=2)
    functions.activate(unet, ["a", "b"], [0.5, 1.0])
    put(unet, "a", seed=3, replace=True)
    swapped = out(unet)
    remove(unet)
    put(unet, "b", seed=2)
    put(unet, "c", seed=3)
    functions.activate(unet, ["c", "b"], [0.5, 1.0])
    assert distance(out(unet), swapped) < 1e-6


def test_swapping_a_fused_adapter_takes_it_out_of_the_weights(unet: Any) -> None:
    before = weights_of(unet)
    put(unet, "a", seed=1)
    fuse(unet)
    put(unet, "a", "loha", seed=2, replace=True)
    assert same_weights(unet, before)


def test_filling_up_ranks_changes_no_result(unet: Any) -> None:
    put(unet, "a")
    put(unet, "b", "lora with mid")
    expected = [_only(unet, name) for name in "ab"]
    with pytest.raises(InputError, match="before loading"):
        functions.prepare_for_swapping(unet, 16)
    functions.prepare_for_swapping(unet, 16, "ignore")
    for name, value in zip("ab", expected, strict=True):
        assert distance(_only(unet, name), value) < 5e-6
    layer = unet.mid_block.attentions[0].proj_in
    _only(unet, "a")
    ranks = {key[0].mid is None: len(factors.down) for key, factors in layer.slot._factors.items()}
    assert ranks == {True: 16, False: 4}  # CP's middle factor is of a size of its own
    for wrong in (0, True, "16"):
        with pytest.raises(InputError, match="target_rank"):
            functions.prepare_for_swapping(unet, wrong, "ignore")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="check_compiled"):
        functions.prepare_for_swapping(unet, 16, "no")


def _only(unet: Any, name: str) -> Tensor:
    with using(unet, {name: 1.0}):
        return out(unet)
