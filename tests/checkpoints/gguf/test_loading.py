"""Networks and whole models from GGUF files, as other programs write them."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from torch import Tensor

from sfumato import StableDiffusionPipeline
from sfumato.checkpoints.gguf.header import read_gguf_header
from sfumato.checkpoints.gguf.tensors import NATURAL_DTYPE, read_gguf
from sfumato.checkpoints.inspection import inspect_file
from sfumato.checkpoints.original.saving import original_tensors
from sfumato.errors import CheckpointError
from sfumato.models.unet import UNet2DConditionModel
from tests.checkpoints.gguf.files import write_gguf
from tests.checkpoints.original.synthetic import (
    assert_same,
    checkpoint_tensors,
    networks,
    small_configs,
)
from tests.command import run_process

Networks = dict[str, torch.nn.Module]
CONFIGS = small_configs("stable-diffusion-v1")


@pytest.fixture(scope="module")
def made() -> Networks:
    return networks(CONFIGS)


def oracle(path: Path) -> dict[str, Tensor]:
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        found[tensor.name] = torch.from_numpy(values.astype("float32"))
    return found


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("mmap", [False, True])
def test_tensors_are_the_oracles(tmp_path: Path, kind: str, mmap: bool) -> None:
    shapes = {"a": (3, 64), "b": (7,), "c": (4, 2, 3, 3), "d": (6, 4, 1, 32)}
    generator = torch.Generator().manual_seed(1)
    tensors = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    path = write_gguf(tmp_path / "m.gguf", tensors, kind)
    found = read_gguf(path, dtype=torch.float32, mmap=mmap)
    expected = oracle(path)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == shapes
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name].reshape(tensor.shape))
    narrow = read_gguf(path, dtype=torch.bfloat16, mmap=mmap)
    assert all(torch.equal(narrow[n], found[n].bfloat16()) for n in found)
    natural = read_gguf(path, names=["a"], mmap=mmap)["a"].dtype
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    assert natural == plain.get(kind, NATURAL_DTYPE)


def test_a_whole_checkpoint_loads_and_draws(tmp_path: Path, made: Networks) -> None:
    tensors = checkpoint_tensors(made)
    path = write_gguf(tmp_path / "model.gguf", tensors, "Q8_0")
    pipe = StableDiffusionPipeline.from_single_file(path, torch_dtype=torch.float32)
    for name in ("unet", "vae", "text_encoder"):
        loaded = original_tensors(name, getattr(pipe, name))
        for key, tensor in loaded.items():
            torch.testing.assert_close(tensor.float(), tensors[key].float(), rtol=0, atol=0.05)
    assert pipe.scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_unet_alone_loads_with_reshaped_weights(
    tmp_path: Path, made: Networks, prefix: str
) -> None:
    """As the files made for ComfyUI are: weights of convolutions in rows of 256."""
    unet = made["unet"]
    tensors = {
        prefix + name.removeprefix("model.diffusion_model."): tensor
        for name, tensor in original_tensors("unet", unet).items()
    }
    path = write_gguf(tmp_path / "unet.gguf", tensors, "Q8_0", reshape=True)
    header = read_gguf_header(path)
    convolution = header.entries[prefix + "input_blocks.1.0.in_layers.2.weight"]
    assert (convolution.kind.name, convolution.shape) == ("Q8_0", (32, 32, 3, 3))
    loaded = UNet2DConditionModel.from_single_file(path, torch_dtype=torch.float32)
    assert loaded.config.block_out_channels == tuple(CONFIGS["unet"]["block_out_channels"])
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, unet.state_dict()[name], rtol=0, atol=0.02)


def test_todays_names_and_plain_numbers_load_exactly(tmp_path: Path, made: Networks) -> None:
    unet = made["unet"]
    path = write_gguf(tmp_path / "unet.gguf", unet.state_dict(), "F32")
    loaded = UNet2DConditionModel.from_single_file(
        path, torch_dtype=torch.float32, **CONFIGS["unet"]
    )
    assert_same(loaded, unet)


def test_a_missing_network_is_named_with_what_to_pass(tmp_path: Path, made: Networks) -> None:
    path = write_gguf(tmp_path / "unet.gguf", original_tensors("unet", made["unet"]), "F16")
    with pytest.raises(CheckpointError, match=r"`(text_encoder|vae)=\.\.\.`"):
        StableDiffusionPipeline.from_single_file(path)


def test_info_tells_what_the_file_is(tmp_path: Path, made: Networks) -> None:
    notes = {"general.name": "a small model"}
    path = write_gguf(tmp_path / "model.gguf", checkpoint_tensors(made), "Q4_0", notes=notes)
    found = inspect_file(path, hashes=False, verify=True)
    assert (found.kind, found.format) == ("checkpoint", "gguf")
    assert set(found.components) == {"unet", "vae", "text_encoder"}
    assert {"Q4_0", "F16", "F32"} <= set(found.precision)
    assert found.metadata["general.name"] == "a small model"
    assert found.not_finite == ()
    said = run_process("info", path, "--json", "--no-hash")
    assert json.loads(said.out)["format"] == "gguf"
