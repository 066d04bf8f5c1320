"""Networks with adapters moved, cast, copied, loaded anew, and many adapters at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from sfumato.adapters import network as functions
from sfumato.adapters.files import AdapterFile
from sfumato.adapters.loading import load
from sfumato.adapters.network import all_or_nothing, fuse, remove, set_enabled, unfuse
from sfumato.adapters.state import adapters_of
from sfumato.errors import InputError
from tests.adapters.acting import TEXT, X, distance, out, put
from tests.adapters.files_like import (
    kohya_file,
    peft_file,
    same_weights,
    weights_of,
)
from tests.pipelines.tiny import tiny_text_encoder


def test_moving_the_network_moves_what_fusing_put_aside(unet: Any) -> None:
    before = weights_of(unet)
    put(unet, "a", "loha")
    put(unet, "b")
    functions.activate(unet, ["a", "b"])
    fuse(unet, ["a"])
    expected = out(unet)
    unet.to(torch.float64)
    assert distance(out(unet, X.double(), TEXT.double()).float(), expected) < 1e-5
    unfuse(unet)
    remove(unet)
    unet.to(torch.float32)
    assert same_weights(unet, before)


def test_sixteen_bit_networks_take_adapters(unet: Any) -> None:
    put(unet, "a", "dora")
    put(unet, "b")
    functions.activate(unet, ["a", "b"])
    expected = out(unet)
    unet.to(torch.bfloat16)
    got = out(unet, X.bfloat16(), TEXT.bfloat16())
    assert got.dtype == torch.bfloat16
    assert distance(got.float(), expected) < 0.1 * expected.abs().max()


def test_a_copy_of_a_network_has_adapters_of_its_own(unet: Any) -> None:
    put(unet, "a")
    fuse(unet)
    put(unet, "b", "loha")
    expected = out(unet)
    twin = copy.deepcopy(unet)
    remove(unet)
    unfuse(unet)
    assert torch.equal(out(twin), expected)
    unfuse(twin)
    remove(twin)
    assert torch.equal(out(twin), out(unet))


def test_loading_weights_anew_is_noticed(unet: Any) -> None:
    put(unet, "a", "loha")
    first = out(unet)
    state = {name: 2 * tensor for name, tensor in unet.state_dict().items()}
    unet.load_state_dict(state)
    assert distance(out(unet), first) > 1e-3


def test_adapters_may_stay_on_another_device(unet: Any) -> None:
    put(unet, "a", "dora")
    fuse(unet)
    put(unet, "b")
    functions.activate(unet, ["a", "b"])
    expected = out(unet)
    functions.move(unet, ["a", "b", "unknown"], "cpu")
    assert torch.equal(out(unet), expected)
    layers = adapters_of(unet)["a"].layers
    functions.move(unet, ["a"], "meta")
    moved = next(iter(adapters_of(unet)["a"].layers.values()))
    assert moved.inner.down.is_meta and moved.magnitude.is_meta  # type: ignore[attr-defined]
    assert not next(iter(layers.values())).magnitude.is_meta  # type: ignore[attr-defined]
    assert torch.equal(out(unet), expected)  # it is fused, so nothing is fetched


def test_the_text_encoder_takes_adapters_and_so_does_an_oracles() -> None:
    transformers = pytest.importorskip("transformers")
    ours = tiny_text_encoder()
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**ours.config.to_dict())).eval()
    theirs.load_state_dict(ours.state_dict())
    ids = torch.tensor([[49406, 320, 1125, 49407]])
    for network in (ours, theirs):
        load({"text_encoder": network}, AdapterFile(kohya_file({"text_encoder": ours})), "a")
    with torch.no_grad():
        assert distance(ours(ids)[0], theirs(ids)[0]) < 1e-5


def test_adapters_and_fused_projections_do_not_mix(unet: Any) -> None:
    put(unet, "a")
    with pytest.raises(InputError, match="fuse_lora"):  # it would no longer act
        unet.fuse_qkv_projections()
    set_enabled(unet, False)
    unet.fuse_qkv_projections()
    for action in (lambda: fuse(unet), lambda: put(unet, "b")):
        with pytest.raises(InputError, match="unfuse_qkv_projections"):
            action()
    unet.unfuse_qkv_projections()
    set_enabled(unet, True)
    fuse(unet)
    expected = out(unet)
    unet.fuse_qkv_projections()
    assert distance(out(unet), expected) < 1e-5
    with pytest.raises(InputError, match="unfuse_qkv_projections"):
        unfuse(unet)


def test_a_block_that_fails_leaves_the_adapters_as_they_were(unet: Any) -> None:
    put(unet, "a")
    fuse(unet)
    expected = out(unet)
    with pytest.raises(ZeroDivisionError), all_or_nothing([unet]):
        unfuse(unet)
        remove(unet, ["a"])
        put(unet, "b", "loha")
        raise ZeroDivisionError
    assert torch.equal(out(unet), expected)
    assert list(adapters_of(unet)) == ["a"]
    with pytest.raises(ZeroDivisionError), all_or_nothing([unet]):
        unfuse(unet)
        raise ZeroDivisionError
    assert torch.equal(out(unet), expected)


def test_many_adapters_at_once_are_summed(unet: Any) -> None:
    plain = out(unet)
    names = [f"adapter {n}" for n in range(50)]
    for name in names:
        load({"unet": unet}, AdapterFile(peft_file({"unet": unet}, rank=1)), name)
    functions.activate(unet, names, [1 / 50] * 50)
    together = out(unet)
    functions.activate(unet, names[:1])
    assert distance(out(unet), together) < 1e-5
    assert distance(plain, together) > 1e-3
