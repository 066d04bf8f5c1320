"""Reading adapter files, loading them on networks, and what is said of what does not fit."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.adapters.files import AdapterFile, metadata_for, read_adapter_file
from sfumato.adapters.loading import bundled_embeddings, canonical_state_dict, load
from sfumato.adapters.names import name_table
from sfumato.adapters.standard import standard_tables
from sfumato.adapters.state import adapters_of, layers_of, state_of
from sfumato.checkpoints.tensors import save_safetensors
from sfumato.errors import AdapterError, CheckpointError, InputError, ModelNotFoundError
from tests.adapters.files_like import kohya_file, peft_file
from tests.pipelines.tiny import tiny_text_encoder, tiny_unet

NETWORKS: dict[str, Any] = {"unet": tiny_unet(), "text_encoder": tiny_text_encoder()}
TENSORS = {"unet.conv_in.lora_A.weight": torch.ones(1, 36)}


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".safetensors":
            save_safetensors({name: torch.ones(1)}, path)
        else:
            torch.save({name: torch.ones(1)}, path)


def which(folder: Path, **kwargs: Any) -> str:
    return next(iter(read_adapter_file(folder, **kwargs).tensors))


def test_a_dictionary_is_read_as_it_is() -> None:
    file = read_adapter_file(TENSORS)
    assert dict(file.tensors) == TENSORS
    assert file.tensors is not TENSORS
    for wrong in ({1: torch.ones(1)}, {"a": [1.0]}):
        with pytest.raises(AdapterError, match="no tensor"):
            read_adapter_file(wrong)  # type: ignore[arg-type]


def test_a_path_may_name_the_file(tmp_path: Path) -> None:
    write(tmp_path, "a.safetensors", "b.bin", "c.pt", "d.ckpt")
    for name in ("a.safetensors", "b.bin", "c.pt", "d.ckpt"):
        assert which(tmp_path / name) == name
        assert which(Path(str(tmp_path / name))) == name


def test_default_names_come_first_and_safetensors_before_pickles(tmp_path: Path) -> None:
    write(tmp_path, "other.safetensors", "pytorch_lora_weights.bin")
    assert which(tmp_path) == "pytorch_lora_weights.bin"
    assert which(tmp_path, use_safetensors=True) == "other.safetensors"
    write(tmp_path, "pytorch_lora_weights.safetensors", "adapter_model.safetensors")
    assert which(tmp_path) == "pytorch_lora_weights.safetensors"
    assert which(tmp_path, use_safetensors=False) == "pytorch_lora_weights.bin"
    assert which(tmp_path, weight_name="other.safetensors") == "other.safetensors"


def test_the_only_file_of_a_folder_is_taken(tmp_path: Path) -> None:
    write(tmp_path, "style.safetensors", "optimizer.bin", "scheduler.bin", "sub/x.safetensors")
    (tmp_path / "README.md").write_text("hello")
    assert which(tmp_path) == "style.safetensors"
    assert which(tmp_path, subfolder="sub") == "sub/x.safetensors"
    write(tmp_path, "second.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"second.safetensors, style.*weight_name"):
        which(tmp_path)
    with pytest.raises(ModelNotFoundError, match="no file that ends in"):
        which(tmp_path, use_safetensors=False, subfolder="sub")


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"weight_name": "missing.safetensors"}, ModelNotFoundError, "has no file"),
        ({"weight_name": "../x.safetensors"}, InputError, "no name of something in"),
        ({"weight_name": "/etc/passwd"}, InputError, "no name of something in"),
        ({"subfolder": "../.."}, InputError, "no name of something in"),
        ({"subfolder": "missing"}, ModelNotFoundError, "no file that ends"),
        ({"weight_nam": "x"}, TypeError, "Did you mean 'weight_name'"),
        ({"trust_remote_code": True}, InputError, "never runs code"),
    ],
)
def test_wrong_names_and_keywords_are_refused(
    tmp_path: Path, kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(error, match=message):
        read_adapter_file(tmp_path / "folder", **kwargs)


def test_a_name_of_no_file_or_folder_is_said() -> None:
    with pytest.raises(ModelNotFoundError, match="no file or folder 'someone/style'"):
        read_adapter_file("someone/style", local_files_only=True)


def test_pefts_configuration_comes_with_the_file(tmp_path: Path) -> None:
    values = {"unet.r": 4, "unet.lora_alpha": 8, "text_encoder.lora_alpha": 2}
    metadata = {"lora_adapter_metadata": json.dumps(values)}
    save_safetensors(TENSORS, tmp_path / "a.safetensors", metadata)
    file = read_adapter_file(tmp_path / "a.safetensors")
    assert metadata_for(file.metadata, "unet") == {"r": 4, "lora_alpha": 8}
    assert metadata_for(file.metadata, "text_encoder") == {"lora_alpha": 2}
    assert metadata_for({"lora_alpha": 3}, "unet") == {"lora_alpha": 3}
    save_safetensors(TENSORS, tmp_path / "b.safetensors", {"lora_adapter_metadata": "[1"})
    with pytest.raises(AdapterError, match="metadata of"):
        read_adapter_file(tmp_path / "b.safetensors")


def test_pefts_own_folders_are_read(tmp_path: Path) -> None:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        write(tmp_path, name)
        (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8, "r": 4}')
        file = read_adapter_file(tmp_path / name)
        assert metadata_for(file.metadata, "unet") == {"lora_alpha": 8, "r": 4}


def fresh() -> dict[str, Any]:
    return {"unet": tiny_unet(), "text_encoder": tiny_text_encoder()}


def test_one_file_goes_to_both_networks_under_one_name() -> None:
    networks = fresh()
    file = AdapterFile(kohya_file(networks))
    assert load(networks, file) == "default_0"
    assert load(networks, file) == "default_1"
    assert load(networks, file, "style") == "style"
    for network in networks.values():
        assert list(adapters_of(network)) == ["default_0", "default_1", "style"]
        assert state_of(network).active == ("style",)  # type: ignore[union-attr]
    only_unet = AdapterFile(peft_file({"unet": networks["unet"]}))
    assert load(networks, only_unet) == "default_3"
    assert state_of(networks["text_encoder"]).active == ()  # type: ignore[union-attr]


def test_names_are_checked_on_all_networks_before_anything_changes() -> None:
    networks = fresh()
    load({"text_encoder": networks["text_encoder"]}, AdapterFile(kohya_file(networks)), "a")
    with pytest.raises(InputError, match="already in use"):
        load(networks, AdapterFile(kohya_file(networks)), "a")
    assert not adapters_of(networks["unet"])
    with pytest.raises(InputError, match="hotswap"):
        load(networks, AdapterFile(kohya_file(networks)), "b", replace=True)
    for wrong in ("", 3):
        with pytest.raises(InputError, match="adapter_name"):
            load(networks, AdapterFile(kohya_file(networks)), wrong)  # type: ignore[arg-type]


def test_swapping_takes_the_old_one_off_networks_that_the_new_one_lacks() -> None:
    networks = fresh()
    load(networks, AdapterFile(kohya_file(networks)), "a")
    load(networks, AdapterFile(peft_file({"unet": networks["unet"]})), "a", replace=True)
    assert not adapters_of(networks["text_encoder"])
    load(networks, AdapterFile(kohya_file(networks)), "b")
    load(networks, AdapterFile(kohya_file(networks)), "a", replace=True)
    assert list(adapters_of(networks["text_encoder"])) == ["b", "a"]


def test_every_key_that_is_left_out_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    networks = fresh()
    tensors = peft_file({"unet": networks["unet"]})
    odd = ["unet.nothing.lora_A.weight", "something", "text_encoder_2.x.lora_A.weight"]
    caplog.set_level(logging.WARNING)
    load(networks, AdapterFile({**tensors, **{key: torch.ones(1) for key in odd}}), "a")
    assert f"3 of {len(tensors) + 3} tensors were left out" in caplog.text
    for key in odd:
        assert key in caplog.text
    caplog.clear()
    load(networks, AdapterFile(tensors), "b")
    assert not caplog.records


def test_embeddings_that_come_along_are_handed_out(caplog: pytest.LogCaptureFixture) -> None:
    networks = fresh()
    bundled = {"bundle_emb.<cat>.string_to_param.*": torch.ones(2, 32)}
    file = AdapterFile({**peft_file({"unet": networks["unet"]}), **bundled})
    load(networks, file)
    assert "<cat>" in caplog.text
    assert torch.equal(bundled_embeddings(file)["<cat>"], torch.ones(2, 32))


def test_what_belongs_elsewhere_is_passed_over_in_silence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    networks = fresh()
    file = AdapterFile(kohya_file(networks))
    unet = {"unet": networks["unet"]}
    assert load(unet, file, "a", elsewhere={"text_encoder"}) == "a"
    assert not caplog.records
    text = AdapterFile({k: v for k, v in file.tensors.items() if k.startswith("lora_te_")})
    assert load(unet, text, "b", elsewhere={"text_encoder"}, required=False) is None


def test_kohyas_names_become_pefts() -> None:
    networks = fresh()
    file = AdapterFile(kohya_file(networks))
    tables = {
        name: name_table(name, layers_of(network), network.config)
        for name, network in networks.items()
    }
    tensors, alphas = canonical_state_dict(file, tables)
    assert set(alphas.values()) == {2.0}
    assert len(tensors) + len(alphas) == len(file.tensors)
    path = "unet.mid_block.attentions.0.proj_in"
    assert tensors[f"{path}.lora_A.weight"].shape == (4, 64, 1, 1)
    assert f"{path}.alpha" in alphas
    fresh_networks = fresh()
    assert load(fresh_networks, AdapterFile(tensors), "a", alphas=alphas) == "a"
    odd = AdapterFile({"lora_unet_x.lora_down.weight": torch.ones(1)})
    assert canonical_state_dict(odd, standard_tables())[0] == odd.tensors
    configured = standard_tables(networks["unet"].config)
    assert len(configured["unet"].paths) < len(standard_tables()["unet"].paths)


def without(tensors: dict[str, torch.Tensor], ending: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(ending)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "is empty"),
        ({"x": torch.ones(1)}, "Invalid LoRA checkpoint: none of the 1 tensors"),
        (
            {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(4, 4)},
            "looks like a LoRA for SDXL",
        ),
        (
            {"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": torch.ones(4, 4)},
            "looks like a LoRA for Flux",
        ),
        (
            {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(4, 4)},
            "a LoRA for a diffusion transformer",
        ),
        ({"string_to_param.x": torch.ones(1, 768)}, "load_textual_inversion"),
        ({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4)}, "from_single_file"),
        ({"lora_unet_x.q_layer.weight": torch.ones(4, 4)}, "T-LoRA"),
        ({"unet.conv_in.lora_A.weight": torch.ones(1, 36)}, "lora_B.weight is missing"),
        ({"lora_unet_conv_in.lora_up.weight": torch.ones(32, 1)}, "lora_A.weight is missing"),
    ],
)
def test_a_file_that_does_not_fit_says_why(tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(AdapterError, match=message) as caught:
        load(NETWORKS, AdapterFile(tensors, where="'x.safetensors'"))
    assert "x.safetensors" in str(caught.value)
    assert isinstance(caught.value, ValueError | OSError)
    assert state_of(NETWORKS["unet"]) is None


@pytest.mark.parametrize(
    ("width", "name"),
    [(1024, "Stable Diffusion 2.x"), (2048, "SDXL"), (768, "Stable Diffusion 1.x")],
)
def test_adapters_for_another_model_are_recognised(width: int, name: str) -> None:
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {
        f"unet.{path}.lora_A.weight": torch.ones(4, width),
        f"unet.{path}.lora_B.weight": torch.ones(64, 4),
    }
    with pytest.raises(AdapterError, match=f"1 of 1 layers(.|\n)*looks like a LoRA for {name}"):
        load(NETWORKS, AdapterFile(tensors))


def test_damaged_files_are_errors_of_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_safetensors(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cut short"):
        read_adapter_file(path)
