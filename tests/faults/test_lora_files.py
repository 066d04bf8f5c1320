"""Adapter files from anywhere: hostile, damaged, made for another model; and what they leave."""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

import sfumato.adapters.network as network_module
from sfumato.adapters.network import fuse, remove, unfuse
from sfumato.adapters.state import adapters_of, state_of, using
from sfumato.checkpoints.tensors import save_safetensors
from sfumato.errors import AdapterError, CheckpointError, InputError, SfumatoError
from tests.adapters.files_like import (
    FAMILIES,
    kohya_file,
    peft_file,
    same_weights,
    weights_of,
)
from tests.faults.hostile_files import call_pickle, entry, in_torch_zip, safetensors_bytes, within
from tests.pipelines.tiny import seeded, tiny_pipeline


@pytest.fixture
def pipe() -> Any:
    return tiny_pipeline()


def networks(pipe: Any) -> dict[str, Any]:
    return {"unet": pipe.unet, "text_encoder": pipe.text_encoder}


def untouched(pipe: Any, before: dict[str, dict[str, Tensor]]) -> bool:
    return all(
        state_of(network) is None and same_weights(network, before[name])
        for name, network in networks(pipe).items()
    )


def draw(pipe: Any, **kwargs: Any) -> Tensor:
    arguments = {"num_inference_steps": 2, "generator": seeded(1), "output_type": "latent"}
    return pipe("a cat", **{**arguments, **kwargs}).images


# The file itself


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header too small"),
        (b"\x00" * 7, "header too small"),
        (b"\xff" * 64, "header too large"),
        (b"<!DOCTYPE html><html>not found</html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs"),
        (safetensors_bytes({"a": entry(0, 4)}), "cut short"),
        (safetensors_bytes({"a": entry(0, 4)}, b"\x00" * 8), "after its last tensor"),
        (safetensors_bytes({"a": entry(0, 4), "b": entry(2, 6)}, b"\x00" * 6), "overlaps"),
        (safetensors_bytes({"a": entry(0, 4, [2**40, 2**40])}, b"\x00" * 4), "does not take"),
        (safetensors_bytes('{"a": %s, "a": %s}' % ((json.dumps(entry(0, 4)),) * 2)), "twice"),
        (safetensors_bytes("{" * 100_000), "damaged"),
    ],
)
def test_damaged_files_are_refused_and_nothing_changes(
    pipe: Any, tmp_path: Path, content: bytes, message: str
) -> None:
    before = {name: weights_of(network) for name, network in networks(pipe).items()}
    path = tmp_path / "lora.safetensors"
    path.write_bytes(content)
    with within(), pytest.raises(CheckpointError, match=message):
        pipe.load_lora_weights(path)
    assert untouched(pipe, before)


@pytest.mark.parametrize("name", ["lora.pt", "lora.bin", "lora.ckpt", "lora.pth"])
def test_a_pickle_that_runs_something_is_refused(pipe: Any, tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    pickled = call_pickle("os", "mkdir", (str(canary),))
    for content in (pickled, in_torch_zip(pickled)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            pipe.load_lora_weights(tmp_path / name)
        assert not canary.exists()


def test_metadata_of_any_kind_does_no_harm(pipe: Any, tmp_path: Path) -> None:
    tensors = peft_file({"unet": pipe.unet})
    for text in ("[]", "null", '"x"', "{", '{"r": NaN}', "[" * 100_000, '{"a": 1, "a": 2}'):
        save_safetensors(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": text})
        with within(), pytest.raises(AdapterError, match="metadata of"):
            pipe.load_lora_weights(tmp_path / "a.safetensors")
    odd = {
        "unet.lora_alpha": "0; import os",
        "unet.r": -1e300,
        "unet.alpha_pattern": {"(a+)+$": 1, "to_q": None},
        "unet.rank_pattern": ["x"],
        "unet.target_modules": {"__class__": "os.system"},
        "unet.auto_mapping": {"base_model_class": "os.system"},
        "unet.use_rslora": "yes",
    }
    text = json.dumps(odd)
    save_safetensors(tensors, tmp_path / "b.safetensors", {"lora_adapter_metadata": text})
    with within():
        pipe.load_lora_weights(tmp_path / "b.safetensors")
    assert pipe.get_list_adapters() == {"unet": ["default_0"]}


@pytest.mark.parametrize(
    "name", ["nowhere", "../../etc/passwd", "a\0b", "x" * 5000, "C:\\lora", "/dev/zero", "\udcff"]
)
def test_names_that_are_no_file_are_errors_of_one_line(pipe: Any, name: str) -> None:
    with within(), pytest.raises(SfumatoError) as caught:
        pipe.load_lora_weights(name)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, OSError)


def test_a_pipe_in_a_folder_is_passed_over(pipe: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pytorch_lora_weights.safetensors")
    save_safetensors(peft_file({"unet": pipe.unet}), tmp_path / "style.safetensors")
    with within():
        pipe.load_lora_weights(tmp_path)
    assert pipe.get_active_adapters() == ["default_0"]


def test_nan_in_a_file_or_a_dictionary_is_refused_with_its_name(pipe: Any, tmp_path: Path) -> None:
    before = {name: weights_of(network) for name, network in networks(pipe).items()}
    tensors = peft_file({"unet": pipe.unet})
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight"
    tensors[key][3, 1] = torch.nan
    with pytest.raises(AdapterError, match=r"attn1.to_q: lora_B.weight holds NaN"):
        pipe.load_lora_weights(tensors)
    save_safetensors(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"to_q.lora_B.weight"):
        pipe.load_lora_weights(tmp_path / "a.safetensors")
    assert untouched(pipe, before)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]
)
def test_numbers_of_any_precision_are_taken(pipe: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {k: v.to(dtype) for k, v in kohya_file(networks(pipe)).items()}
    pipe.load_lora_weights({k: v.float() for k, v in tensors.items()})
    expected = draw(pipe)
    pipe.unload_lora_weights()
    save_safetensors(tensors, tmp_path / "a.safetensors")
    pipe.load_lora_weights(tmp_path / "a.safetensors")
    assert (draw(pipe) - expected).abs().max() < 1e-6
    pipe.fuse_lora()
    assert (draw(pipe) - expected).abs().max() < 1e-4


def test_integers_are_an_unsupported_dtype(pipe: Any) -> None:
    tensors = {k: (9 * v).to(torch.int8) for k, v in peft_file({"unet": pipe.unet}).items()}
    with pytest.raises(AdapterError, match=r"unsupported dtype torch.int8"):
        pipe.load_lora_weights(tensors)


# What is in it


def test_an_sdxl_lora_is_recognised(pipe: Any) -> None:
    start = "lora_unet_down_blocks_1_attentions_0_transformer_blocks"
    tensors = {}
    for block in (0, 1):
        name = f"{start}_{block}_attn2_to_k"
        tensors[f"{name}.lora_down.weight"] = torch.ones(4, 2048)
        tensors[f"{name}.lora_up.weight"] = torch.ones(640, 4)
    before = {name: weights_of(network) for name, network in networks(pipe).items()}
    with pytest.raises(AdapterError, match="looks like a LoRA for SDXL"):
        pipe.load_lora_weights(tensors)
    assert untouched(pipe, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_up.weight": None}, r"lora_B.weight is missing"),
        ({"lora_down.weight": None}, r"lora_A.weight is missing"),
        ({"lora_up.weight": torch.ones(64, 3, 1, 1)}, "rank mismatch"),
        ({"alpha": torch.tensor(0.0)}, "alpha is 0"),
        ({"alpha": torch.tensor(torch.inf)}, "alpha holds NaN or infinite"),
        ({"alpha": torch.tensor(torch.nan)}, "alpha holds NaN or infinite"),
        ({"alpha": torch.ones(2)}, "not one number"),
        ({"alpha": torch.ones(0)}, "not one number"),
        ({"alpha": torch.tensor(2 + 1j)}, r"alpha has the unsupported dtype torch\.complex64"),
        ({"lora_up.weight": torch.ones(64, 4, 1, 1) * 1j}, r"unsupported dtype torch\.complex64"),
        ({"lora_down.weight": torch.ones(4, 65, 1, 1)}, "needed"),
        ({"dora_scale": torch.ones(3)}, "magnitude"),
        ({"lora_mid.weight": torch.ones(4, 4, 5, 5)}, "middle factor"),
        ({"hada_w1_a": torch.ones(64, 4)}, "2 kinds of adapter"),
    ],
)
def test_one_wrong_layer_refuses_the_whole_file_and_says_why(
    pipe: Any, change: dict[str, Tensor | None], message: str
) -> None:
    before = {name: weights_of(network) for name, network in networks(pipe).items()}
    tensors = kohya_file(networks(pipe))
    for leaf, tensor in change.items():
        key = f"lora_unet_mid_block_attentions_0_proj_in.{leaf}"
        if tensor is None:
            del tensors[key]
        else:
            tensors[key] = tensor
    with pytest.raises(AdapterError, match=message) as caught:
        pipe.load_lora_weights(tensors)
    assert "unet.mid_block.attentions.0.proj_in" in str(caught.value)
    assert untouched(pipe, before)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"x": torch.ones(3)},
        {"lora_unet_no_such_block_to_q.lora_down.weight": torch.ones(4, 8)},
        {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4, 3, 3)},
        {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(8, 4)},
    ],
    ids=lambda tensors: next(iter(tensors), "nothing")[:20],
)
def test_a_file_of_which_nothing_fits_is_an_error_and_no_silence(
    pipe: Any, tensors: dict[str, Tensor]
) -> None:
    before = {name: weights_of(network) for name, network in networks(pipe).items()}
    with pytest.raises(AdapterError, match=r"none of the 1 tensors|holds no tensors"):
        pipe.load_lora_weights(tensors)
    assert untouched(pipe, before)


def test_a_missing_alpha_is_the_rank(pipe: Any) -> None:
    tensors = kohya_file(networks(pipe))
    bare = {key: tensor for key, tensor in tensors.items() if not key.endswith("alpha")}
    pipe.load_lora_weights(bare)
    expected = draw(pipe)
    pipe.unload_lora_weights()
    ranks = {key: (torch.tensor(4.0) if key.endswith("alpha") else t) for key, t in tensors.items()}
    pipe.load_lora_weights(ranks)
    assert torch.equal(draw(pipe), expected)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf"), 1e308, "--", ""])
def test_strengths_that_are_no_numbers_are_refused(pipe: Any, weight: Any) -> None:
    pipe.load_lora_weights(kohya_file(networks(pipe)), adapter_name="a")
    expected = draw(pipe)
    with pytest.raises(InputError):
        pipe.set_adapters("a", weight)
    with pytest.raises(InputError):
        draw(pipe, cross_attention_kwargs={"scale": weight})
    with pytest.raises(InputError):
        pipe.fuse_lora(lora_scale=weight)
    assert torch.equal(draw(pipe), expected)


@pytest.mark.parametrize("family", ["lora", "dora", "loha", "full"])
def test_strength_zero_is_as_without_and_a_negative_one_is_allowed(pipe: Any, family: str) -> None:
    plain = draw(pipe)
    pipe.load_lora_weights(kohya_file(networks(pipe), family), adapter_name="a")
    pipe.set_adapters("a", 0)
    assert torch.equal(draw(pipe), plain)
    pipe.set_adapters("a", -0.1)
    assert not torch.equal(draw(pipe), plain)


def test_the_same_lora_twice_counts_twice(pipe: Any) -> None:
    tensors = kohya_file(networks(pipe))
    pipe.load_lora_weights(tensors, adapter_name="a")
    pipe.set_adapters("a", 0.6)
    expected = draw(pipe)
    pipe.load_lora_weights(tensors, adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.3, 0.3])
    assert (draw(pipe) - expected).abs().max() < 5e-5


# What it leaves


@pytest.mark.parametrize("call", [1, 20, 70, 90])
def test_an_error_in_the_middle_leaves_everything_as_it_was(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    before = {name: weights_of(network) for name, network in networks(pipe).items()}
    pipe.load_lora_weights(kohya_file(networks(pipe), "dora", 1), adapter_name="old")
    pipe.fuse_lora()
    pipe.load_lora_weights(kohya_file(networks(pipe), "lora", 2), adapter_name="other")
    pipe.set_adapters(["other"], [0.5])
    expected = draw(pipe)
    count = 0
    adapt = network_module.adapt

    def fails(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            raise MemoryError
        return adapt(*args)

    monkeypatch.setattr(network_module, "adapt", fails)
    for hotswap, name in ((False, "new"), (True, "old"), (True, "other")):
        count = 0
        with pytest.raises(MemoryError):
            pipe.load_lora_weights(
                kohya_file(networks(pipe), "loha", 3), adapter_name=name, hotswap=hotswap
            )
        assert torch.equal(draw(pipe), expected)
        assert pipe.get_list_adapters()["unet"] == ["old", "other"]
        assert pipe.get_active_adapters() == ["other"]
        assert pipe.fused_loras == {"old"}
    monkeypatch.undo()
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert untouched(pipe, before)


def test_an_error_while_fusing_leaves_everything_as_it_was(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: weights_of(network) for name, network in networks(pipe).items()}
    pipe.load_lora_weights(kohya_file(networks(pipe)), adapter_name="a")
    expected = draw(pipe)
    count = 0
    changed = network_module.changed

    def fails(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == len(adapters_of(pipe.unet)["a"].layers) + 5:  # in the text encoder
            raise MemoryError
        return changed(*args)

    monkeypatch.setattr(network_module, "changed", fails)
    with pytest.raises(MemoryError):
        pipe.fuse_lora()
    assert all(same_weights(network, before[name]) for name, network in networks(pipe).items())
    assert not pipe.fused_loras
    assert torch.equal(draw(pipe), expected)


@pytest.mark.parametrize("family", [*FAMILIES])
def test_unloading_leaves_the_networks_bit_by_bit_as_they_were(pipe: Any, family: str) -> None:
    before = {name: weights_of(network) for name, network in networks(pipe).items()}
    pipe.load_lora_weights(kohya_file(networks(pipe), family))
    pipe.fuse_lora()
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert untouched(pipe, before)


def test_requests_with_different_adapters_do_not_mix(pipe: Any) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        pipe.load_lora_weights(kohya_file(networks(pipe), "lora", seed), adapter_name=name)
    pipe.load_lora_weights(kohya_file(networks(pipe), "loha", 3), adapter_name="c")
    wishes: list[dict[str, Any]] = [{"a": 1.0}, {"b": 0.5, "c": 0.7}, {"c": 1.0}, {}]

    def request(wish: dict[str, Any]) -> Tensor:
        with using(pipe.unet, wish), using(pipe.text_encoder, wish):
            return draw(pipe)

    alone = [request(wish) for wish in wishes]
    together: list[list[Tensor]] = [[] for _ in wishes]
    start = threading.Barrier(len(wishes))

    def work(number: int) -> None:
        start.wait()
        for _ in range(2):
            together[number].append(request(wishes[number]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(wishes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, results in zip(alone, together, strict=True):
        assert len(results) == 2
        assert all(torch.equal(result, expected) for result in results)
    assert not torch.equal(alone[0], alone[1])


_MUTATIONS = ["drop", "rename", "reshape", "cut", "type", "duplicate", "scalar", "nan"]


@given(st.data())
@hypothesis_settings(max_examples=60)
def test_a_mutated_file_is_loaded_or_refused_but_never_half(data: st.DataObject) -> None:
    unet = _SHARED.setdefault("pipe", tiny_pipeline()).unet
    before = _SHARED.setdefault("before", weights_of(unet))
    family = data.draw(st.sampled_from(list(FAMILIES)))
    files = _SHARED.setdefault("files", {})
    if family not in files:
        file = kohya_file({"unet": unet}, family)
        files[family] = {k: v for k, v in file.items() if "mid_block" in k}
    tensors = dict(files[family])
    for _ in range(data.draw(st.integers(1, 3))):
        _mutate(tensors, data)
    with suppress(AdapterError, InputError):
        unet.load_lora_adapter(tensors)
    with suppress(AdapterError):  # numbers may overflow, but shapes fit
        fuse(unet)
    unfuse(unet)
    remove(unet)
    assert state_of(unet) is None
    assert same_weights(unet, before)


_SHARED: dict[str, Any] = {}


def _mutate(tensors: dict[str, Tensor], data: st.DataObject) -> None:
    if not tensors:
        return
    key = data.draw(st.sampled_from(list(tensors)))
    kind = data.draw(st.sampled_from(_MUTATIONS))
    tensor = tensors[key]
    if kind == "drop":
        del tensors[key]
    elif kind == "rename":
        cut = data.draw(st.integers(0, len(key)))
        tensors[key[:cut] + data.draw(st.text(max_size=3)) + key[cut + 1 :]] = tensors.pop(key)
    elif kind == "reshape":
        tensors[key] = tensor.reshape(data.draw(st.sampled_from([(-1,), (1, -1), (-1, 1, 1, 1)])))
    elif kind == "cut":
        tensors[key] = tensor[: data.draw(st.integers(0, 3))] if tensor.ndim else tensor
    elif kind == "type":
        wanted = data.draw(st.sampled_from([torch.int64, torch.bool, torch.complex64, torch.half]))
        tensors[key] = tensor.to(wanted)
    elif kind == "duplicate":
        tensors[f"{key.partition('.')[0]}.{data.draw(st.sampled_from(_ENDINGS))}"] = tensor
    elif kind == "scalar":
        tensors[key] = torch.tensor(data.draw(st.sampled_from([0.0, -1.0, 1e38])))
    elif kind == "nan":
        tensors[key] = torch.full_like(tensor.float(), torch.nan)


_ENDINGS = ["lora_up.weight", "alpha", "dora_scale", "hada_t1", "lokr_w2", "diff", "on_input", "x"]
