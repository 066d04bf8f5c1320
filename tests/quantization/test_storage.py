"""Loading a model quantised, and keeping a quantised model in files of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato import StableDiffusionPipeline
from sfumato.checkpoints.tensors import read_safetensors, save_safetensors
from sfumato.errors import CheckpointError, ConfigError, InputError
from sfumato.models.unet import UNet2DConditionModel
from sfumato.quantization.names import KINDS
from sfumato.quantization.network import quantization_of, quantize
from sfumato.quantization.tensor import QuantizedTensor
from tests.checkpoints.gguf.files import write_gguf
from tests.checkpoints.original.synthetic import checkpoint_tensors, networks, small_configs
from tests.pipelines.tiny import tiny_unet

WEIGHTS = "diffusion_pytorch_model.safetensors"


def parts(network: torch.nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in network.named_parameters():
        if isinstance(parameter, QuantizedTensor):
            found |= {f"{name}.{part}": tensor for part, tensor in parameter.parts().items()}
        else:
            found[name] = parameter.data
    return found


def assert_same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    one, other = parts(first), parts(second)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        torch.testing.assert_close(tensor, other[name], rtol=1e-6, atol=0, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_folder_is_quantised_as_it_loads(
    tmp_path: Path, kind: str, stored: torch.dtype, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny_unet().to(stored)
    network.save_pretrained(tmp_path)
    monkeypatch.setattr("sfumato.checkpoints.tensors.MAP_FROM_BYTES", 0 if mapped else 2**40)
    load = UNet2DConditionModel.from_pretrained
    found = load(tmp_path, torch_dtype=torch.bfloat16, quantization=kind)
    quantize(network, kind, dtype=torch.bfloat16)
    assert_same(found, network.to(torch.bfloat16))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantised_network_comes_back_from_its_folder(
    tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    network = tiny_unet().to(dtype)
    quantize(network, kind)
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "sfumato", "kind": kind}
    for options in ({}, {"quantization": kind}):
        found = UNet2DConditionModel.from_pretrained(tmp_path, torch_dtype=dtype, **options)
        assert quantization_of(found) == kind
        assert_same(found, network)
        quantised = [p for p in found.parameters() if isinstance(p, QuantizedTensor)]
        assert not any(parameter.requires_grad for parameter in quantised)
    again = tmp_path / "again"
    found.save_pretrained(again)
    assert (again / WEIGHTS).read_bytes() == (tmp_path / WEIGHTS).read_bytes()


def test_a_quantised_file_is_small_and_portable(tmp_path: Path) -> None:
    network = tiny_unet()
    network.save_pretrained(tmp_path / "plain")
    quantize(network, "int8")
    network.save_pretrained(tmp_path / "small")
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("plain", "small")]
    assert sizes[1] < 0.6 * sizes[0]
    tensors = read_safetensors(tmp_path / "small" / WEIGHTS)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert tensors[name].dtype == torch.int8 and tensors[name].shape == (64, 64)
    assert tensors[f"{name}_scale"].shape == (64,)


def test_plain_numbers_are_saved_in_the_original_layout(tmp_path: Path, path: Path) -> None:
    pipe = _pipeline(path, quantization="int8")
    pipe.save_single_file(tmp_path / "out.safetensors")
    found = read_safetensors(tmp_path / "out.safetensors")
    assert all(
        tensor.is_floating_point() or "position_ids" in name for name, tensor in found.items()
    )
    expected = pipe.unet.conv_in.weight
    assert torch.equal(found["model.diffusion_model.input_blocks.0.0.weight"], expected)


# Pipelines


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return checkpoint_tensors(networks(small_configs("stable-diffusion-v1")))


@pytest.fixture(scope="module")
def path(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_safetensors(tensors, path)
    return path


def _pipeline(path: Path, **options: Any) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_single_file(path, torch_dtype=torch.float32, **options)


def test_one_word_quantises_each_network_as_it_can_bear(tmp_path: Path, path: Path) -> None:
    found = _pipeline(path, quantization="int8")
    kinds = {
        name: quantization_of(getattr(found, name)) for name in ("unet", "vae", "text_encoder")
    }
    assert kinds == {"unet": "int8", "vae": "int8", "text_encoder": "int8-weights"}
    found.save_pretrained(tmp_path / "folder")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "folder", torch_dtype=torch.float32)
    for name in kinds:
        assert_same(getattr(found, name), getattr(again, name))


def test_a_table_quantises_what_it_names(path: Path) -> None:
    found = _pipeline(path, quantization={"unet": "int4", "vae": None})
    assert quantization_of(found.unet) == "int4"
    assert quantization_of(found.vae) is None
    assert quantization_of(found.text_encoder) is None


def test_a_gguf_file_can_be_quantised_otherwise(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    unet = {name: t for name, t in tensors.items() if name.startswith("model.diffusion_model.")}
    path = write_gguf(tmp_path / "unet.gguf", unet, "F16")
    found = UNet2DConditionModel.from_single_file(path, quantization="int8")
    assert quantization_of(found) == "int8"


# Errors


def test_wrong_words_and_tables_are_refused_before_anything_is_read(
    tmp_path: Path, path: Path
) -> None:
    with pytest.raises(InputError, match=r"no quantization 'q8'"):
        _pipeline(path, quantization="q8")
    with pytest.raises(ConfigError, match=r"unknown component 'unit'.*Did you mean 'unet'"):
        _pipeline(path, quantization={"unit": "int8"})
    tiny_unet().save_pretrained(tmp_path / "unet")
    with pytest.raises(InputError, match="no quantization '8'"):
        UNet2DConditionModel.from_pretrained(tmp_path / "unet", quantization=8)


def test_quantised_weights_cannot_become_others(tmp_path: Path) -> None:
    network = tiny_unet()
    quantize(network, "int4")
    network.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="quantised as 'int4', which cannot become 'int8'"):
        UNet2DConditionModel.from_pretrained(tmp_path, quantization="int8")


def test_nan_is_found_while_quantising(tmp_path: Path) -> None:
    for name in ("conv_in.weight", "mid_block.resnets.0.conv1.weight"):
        network = tiny_unet()
        network.get_parameter(name).data.flatten()[5] = float("nan")
        network.save_pretrained(tmp_path / name)
        with pytest.raises(CheckpointError, match="NaN"):
            UNet2DConditionModel.from_pretrained(tmp_path / name, quantization="int8")


def _damage(folder: Path, kind: str, change: Any) -> None:
    network = tiny_unet()
    quantize(network, kind)
    network.save_pretrained(folder)
    tensors = read_safetensors(folder / WEIGHTS)
    change(tensors)
    save_safetensors(tensors, folder / WEIGHTS)


NAME = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
CONVOLUTION = "mid_block.resnets.0.conv1.weight"


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("int8", lambda t: t.update({NAME: t[NAME][:5].clone()})),
        ("int8", lambda t: t.update({NAME: t[NAME].to(torch.uint8)})),
        ("int8", lambda t: t.pop(f"{NAME}_scale")),
        ("int8", lambda t: t[f"{NAME}_scale"].fill_(float("inf"))),
        ("int8", lambda t: t.update({f"{NAME}_scale": t[f"{NAME}_scale"].to(torch.int64)})),
        ("int8", lambda t: t.update({CONVOLUTION: t[CONVOLUTION][..., :3].clone()})),
        ("int8", lambda t: t.update({f"{CONVOLUTION}_scale": torch.ones(64)})),
        ("int4", lambda t: t.update({NAME: t[NAME][:-1].clone()})),
        ("int4", lambda t: t[NAME][:4].fill_(255)),
        ("int4", lambda t: t.update({NAME: t[NAME].view(torch.int8)})),
        ("int8-weights", lambda t: t.update({NAME: t[NAME].view(2, -1)})),
    ],
)
def test_damaged_parts_are_named(tmp_path: Path, kind: str, change: Any) -> None:
    _damage(tmp_path, kind, change)
    with pytest.raises(CheckpointError, match=r"quantised weight '.*' does not fit"):
        UNet2DConditionModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "said",
    [
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "sfumato", "kind": "int2"},
        {"quant_method": "sfumato"},
        "int8",
        [],
    ],
)
def test_what_other_programs_quantised_is_refused(tmp_path: Path, said: Any) -> None:
    tiny_unet().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": said}))
    with pytest.raises(ConfigError, match="which cannot be loaded"):
        UNet2DConditionModel.from_pretrained(tmp_path)


# Blocks of GGUF files


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1"])
def test_blocks_of_a_gguf_file_can_stay(
    tmp_path: Path, tensors: dict[str, Tensor], kind: str
) -> None:
    unet = {name: t for name, t in tensors.items() if name.startswith("model.diffusion_model.")}
    file = write_gguf(tmp_path / "unet.gguf", unet, kind, reshape=True)
    load = UNet2DConditionModel.from_single_file
    plain = load(file, torch_dtype=torch.float32)
    kept = load(file, torch_dtype=torch.float32, quantization="stored")
    for name, parameter in kept.named_parameters():
        assert torch.equal(parameter + 0, plain.get_parameter(name) + 0), name
    blocks = [p for p in kept.parameters() if isinstance(p, QuantizedTensor)]
    assert len(blocks) > 50
    assert kept.get_memory_footprint() < 0.6 * plain.get_memory_footprint()
    latents, context = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 64)
    with torch.no_grad():
        found, expected = kept(latents, 5, context).sample, plain(latents, 5, context).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if kind != "Q8_0":
        with pytest.raises(InputError, match=f"blocks of the types {kind} cannot be saved"):
            kept.save_pretrained(tmp_path / "out")


def test_files_without_blocks_have_none_to_keep(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no weights in blocks, which `quantization='stored'`"):
        _pipeline(path, quantization="stored")
    tiny_unet().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no weights in blocks"):
        UNet2DConditionModel.from_pretrained(tmp_path, quantization="stored")
