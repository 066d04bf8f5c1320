"""Writing adapters, in both layouts, and reading them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.adapters.files import AdapterFile, read_adapter_file
from sfumato.adapters.loading import load
from sfumato.adapters.network import activate, fuse
from sfumato.adapters.saving import save, to_kohya
from sfumato.adapters.state import adapters_of
from sfumato.checkpoints.header import read_header
from sfumato.errors import AdapterError, InputError
from tests.adapters.files_like import FAMILIES, draw, kohya_file, peft_file
from tests.pipelines.tiny import tiny_text_encoder, tiny_unet


def changes(network: Any, name: str) -> dict[str, Tensor]:
    """What an adapter does to all weights."""
    layers = adapters_of(network)[name].layers
    found = {p: a.weight_delta(network.get_submodule(p).weight) for p, a in layers.items()}
    return {path: change for path, change in found.items() if change is not None}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


def reloaded(path: Path, network: Any) -> dict[str, Tensor]:
    fresh = tiny_unet()
    fresh.load_state_dict(network.state_dict())
    load({"unet": fresh}, read_adapter_file(path), "back")
    return changes(fresh, "back")


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_comes_back_as_it_was(family: str, format: str, tmp_path: Path) -> None:
    unet = tiny_unet()
    load({"unet": unet}, AdapterFile(kohya_file({"unet": unet}, family)), "a")
    unet.save_lora_adapter(tmp_path, "a", format=format)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    assert same(reloaded(path, unet), changes(unet, "a"))
    keys = read_header(path).entries
    assert all(key.startswith("lora_unet_") == (format == "kohya") for key in keys)


def test_alphas_go_into_the_metadata_as_peft_keeps_them(tmp_path: Path) -> None:
    unet = tiny_unet()
    tensors = kohya_file({"unet": unet}, convolutions=False)
    odd = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors[f"{odd}.alpha"] = torch.tensor(3.5)
    tensors |= {
        f"{odd}.lora_down.weight": torch.ones(2, 64),
        f"{odd}.lora_up.weight": torch.ones(64, 2),
    }
    load({"unet": unet}, AdapterFile(tensors), "a")
    unet.save_lora_adapter(tmp_path, "a", weight_name="x.safetensors")
    header = read_header(tmp_path / "x.safetensors")
    values = json.loads(header.metadata["lora_adapter_metadata"])
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    assert (values["r"], values["lora_alpha"]) == (4, 2)
    assert values["rank_pattern"] == {path: 2}
    assert values["alpha_pattern"] == {path: 3.5}
    assert path in values["target_modules"]
    assert not any(key.endswith("alpha") for key in header.entries)
    assert same(reloaded(tmp_path / "x.safetensors", unet), changes(unet, "a"))


def test_kohyas_file_has_an_alpha_and_a_rank_for_every_layer(tmp_path: Path) -> None:
    unet, text = tiny_unet(), tiny_text_encoder()
    file = peft_file({"unet": unet, "text_encoder": text})
    parts = {
        name: {k.removeprefix(f"{name}."): v for k, v in file.items() if k.startswith(name)}
        for name in ("unet", "text_encoder")
    }
    metadata = {"unet": {"r": 4, "lora_alpha": 8}, "text_encoder": None}
    path = save(tmp_path, parts, metadata=metadata, format="kohya")
    header = read_header(path)
    tensors = read_adapter_file(path).tensors
    query = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    assert float(tensors[f"{query}.alpha"]) == 8
    out = "lora_te_text_model_encoder_layers_0_self_attn_out_proj"
    assert float(tensors[f"{out}.alpha"]) == 4
    assert torch.equal(
        tensors[f"{query}.lora_down.weight"],
        file[f"unet.{_path(query)}.lora_A.weight"],
    )
    assert header.metadata["ss_network_dim"] == "4"
    assert header.metadata["ss_network_module"] == "networks.lora"
    load({"unet": unet, "text_encoder": text}, AdapterFile(tensors), "a")


def _path(kohya: str) -> str:
    return "mid_block.attentions.0.transformer_blocks.0.attn1.to_q" if "attn1_to_q" in kohya else ""


def test_old_names_of_diffusers_become_kohyas() -> None:
    randn = draw(0)
    tensors = {
        "unet.a.attn1.processor.to_q_lora.down.weight": randn(4, 8),
        "unet.a.attn1.processor.to_out_lora.up.weight": randn(8, 4),
        "unet.a.attn2.to_out.0.lora_A.weight": randn(4, 8),
        "text_encoder.text_model.b.self_attn.to_out_lora.up.weight": randn(8, 4),
        "text_encoder.text_model.b.self_attn.q_proj.lora_linear_layer.down.weight": randn(4, 8),
        "unet.a.attn1.to_k.lora_A.weight": randn(4, 8),
        "unet.a.attn1.to_k.lora_magnitude_vector": randn(8),
    }
    converted, _ = to_kohya(tensors, {"unet": {"use_rslora": True, "lora_alpha": 3}})
    assert {key for key in converted if not key.endswith("alpha")} == {
        "lora_unet_a_attn1_to_q.lora_down.weight",
        "lora_unet_a_attn1_to_out_0.lora_up.weight",
        "lora_unet_a_attn2_to_out_0.lora_down.weight",
        "lora_te_text_model_b_self_attn_out_proj.lora_up.weight",
        "lora_te_text_model_b_self_attn_q_proj.lora_down.weight",
        "lora_unet_a_attn1_to_k.lora_down.weight",
        "lora_unet_a_attn1_to_k.dora_scale",
    }
    assert float(converted["lora_unet_a_attn1_to_q.alpha"]) == 6  # 3 / sqrt(4) = 6 / 4
    assert converted["lora_unet_a_attn1_to_k.dora_scale"].shape == (8, 1)


@pytest.mark.parametrize("key", ["unet.a.oft_R.weight", "unet.a.weight", "unet.a"])
def test_what_kohya_has_no_name_for_is_refused(key: str) -> None:
    with pytest.raises(AdapterError):
        to_kohya({key: torch.ones(1, 1)})


def test_fused_adapters_are_saved_as_they_were_loaded(tmp_path: Path) -> None:
    unet = tiny_unet()
    file = kohya_file({"unet": unet})
    load({"unet": unet}, AdapterFile(file), "a")
    activate(unet, ["a"], [0.3])
    fuse(unet)
    unet.save_lora_adapter(tmp_path, "a", format="kohya")
    saved = read_adapter_file(tmp_path).tensors
    assert saved.keys() == file.keys()
    assert all(torch.equal(saved[key], file[key]) for key in file)


def test_a_pickle_and_an_own_writer_are_possible(tmp_path: Path) -> None:
    layers = {"unet": {"a.lora_A.weight": torch.ones(2, 2)}}
    path = save(tmp_path / "new" / "folder", layers, safe_serialization=False)
    assert path.name == "pytorch_lora_weights.bin"
    assert list(read_adapter_file(path).tensors) == ["unet.a.lora_A.weight"]
    written: list[Any] = []
    save(tmp_path, layers, save_function=lambda tensors, to: written.append((list(tensors), to)))
    where = str(tmp_path / "pytorch_lora_weights.safetensors")
    assert written == [(["unet.a.lora_A.weight"], where)]
    module = torch.nn.Module()
    module.a = torch.nn.Linear(2, 2, bias=False)  # type: ignore[assignment]
    save(tmp_path, {"unet": module})
    assert list(read_adapter_file(tmp_path).tensors) == ["unet.a.weight"]


def test_wrong_arguments_of_saving_are_refused(tmp_path: Path) -> None:
    layers = {"unet": {"a.lora_A.weight": torch.ones(2, 2)}}
    with pytest.raises(InputError, match="at least one of `unet_lora_layers`"):
        save(tmp_path, {"unet": None, "text_encoder": {}})
    with pytest.raises(InputError, match="format"):
        save(tmp_path, layers, format="a1111")
    with pytest.raises(InputError, match="safe_serialization"):
        save(tmp_path, layers, metadata={"unet": {"r": 1}}, safe_serialization=False)
    with pytest.raises(InputError, match="JSON"):
        save(tmp_path, layers, metadata={"unet": {"r": object()}})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a file"):
        save(tmp_path / "file", layers)
    with pytest.raises(InputError, match="not found in the model; there are: none"):
        tiny_unet().save_lora_adapter(tmp_path, "a")


def test_saving_may_upcast(tmp_path: Path) -> None:
    unet = tiny_unet()
    file = {k: v.half() for k, v in peft_file({"unet": unet}).items()}
    load({"unet": unet}, AdapterFile(file), "a")
    unet.save_lora_adapter(tmp_path, "a", upcast_before_saving=True)
    assert {t.dtype for t in read_adapter_file(tmp_path).tensors.values()} == {torch.float32}
    tensors, metadata = unet.lora_state_dict("a")
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert metadata["r"] == 4
