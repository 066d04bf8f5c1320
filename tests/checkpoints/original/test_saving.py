"""Checkpoints go back to the original layout, bit for bit, and from layout to layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from sfumato import StableDiffusionPipeline, cli
from sfumato.checkpoints.header import read_header
from sfumato.checkpoints.original.convert import read_parts, write_file, write_folder
from sfumato.checkpoints.original.families import FAMILIES, family
from sfumato.checkpoints.original.loading import open_checkpoint
from sfumato.checkpoints.tensors import read_safetensors
from sfumato.errors import CheckpointError, ConfigError, InputError
from tests.checkpoints.original.synthetic import (
    SCHEDULE_BUFFERS,
    checkpoint_tensors,
    networks,
    predicting,
    tiny_configs,
    with_average,
    write,
)


def family_tensors(name: str) -> dict[str, Tensor]:
    configs = tiny_configs(name)
    configs["text_encoder"]["vocab_size"] = 50
    tensors = checkpoint_tensors(networks(configs))
    if "v2" in name:
        tensors = predicting(tensors, velocity=name.endswith("-v"))
    return tensors


@pytest.fixture(scope="module")
def v1() -> dict[str, Tensor]:
    return family_tensors("stable-diffusion-v1")


def of_networks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a pipeline keeps of a checkpoint: the weights that it uses, and the position ids."""
    dropped = (*SCHEDULE_BUFFERS, "cond_stage_model.model.logit_scale")
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name not in dropped and ".resblocks.23." not in name and "text_projection" not in name
    }


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[k].dtype == expected[k].dtype and torch.equal(found[k], expected[k]) for k in expected
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, (torch.float32, torch.float16)[number % 2]) for number, name in enumerate(FAMILIES)],
)
def test_a_checkpoint_comes_back_bit_for_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {
        n: t.to(dtype) if t.is_floating_point() else t for n, t in family_tensors(name).items()
    }
    path = write(tensors, tmp_path / "in.safetensors")
    parts = read_parts(path)
    write_file(parts, tmp_path / "out.safetensors")
    assert same(read_safetensors(tmp_path / "out.safetensors"), of_networks(tensors))
    write_folder(parts, tmp_path / "folder")
    write_file(read_parts(tmp_path / "folder"), tmp_path / "back.safetensors")
    assert same(read_safetensors(tmp_path / "back.safetensors"), of_networks(tensors))
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    assert index["_class_name"] == family(name).pipeline


def test_a_pipeline_saves_itself_in_another_precision(
    v1: dict[str, Tensor], tmp_path: Path
) -> None:
    pipe = StableDiffusionPipeline.from_single_file(v1)
    pipe.save_single_file(tmp_path / "m.safetensors", dtype=torch.float16, metadata={"a": "b"})
    found = read_safetensors(tmp_path / "m.safetensors")
    expected = {n: t.half() if t.is_floating_point() else t for n, t in of_networks(v1).items()}
    assert same(found, expected)
    metadata = read_header(tmp_path / "m.safetensors").metadata
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert metadata["modelspec.prediction_type"] == "epsilon"
    assert metadata["modelspec.resolution"] == "512x512"
    assert (metadata["modelspec.title"], metadata["a"], metadata["format"]) == ("m", "b", "pt")
    assert pipe.dtype == torch.float32, "the pipeline itself is as before"


def test_what_a_model_predicts_survives_the_file(v1: dict[str, Tensor], tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_single_file(v1, prediction_type="v_prediction")
    pipe.save_single_file(tmp_path / "m.safetensors")
    again = StableDiffusionPipeline.from_single_file(tmp_path / "m.safetensors")
    assert again.scheduler.config.prediction_type == "v_prediction"


def test_a_file_may_be_written_over_the_one_that_is_mapped(
    v1: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfumato.checkpoints.tensors.MAP_FROM_BYTES", 1)
    path = write(v1, tmp_path / "m.safetensors")
    pipe = StableDiffusionPipeline.from_single_file(path)
    pipe.save_single_file(path)
    assert same(read_safetensors(path), of_networks(v1))
    with torch.no_grad():
        pipe.unet.conv_in.weight.zero_()
    assert same(read_safetensors(path), of_networks(v1))


def test_saving_says_what_it_cannot_do(v1: dict[str, Tensor], tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_single_file(v1, text_encoder=None)
    with pytest.raises(CheckpointError, match="no text_encoder"):
        pipe.save_single_file(tmp_path / "m.safetensors")
    whole = StableDiffusionPipeline.from_single_file(v1)
    with pytest.raises(InputError, match=r"end in \.safetensors"):
        whole.save_single_file(tmp_path / "m.ckpt")
    with pytest.raises(InputError, match="torch_dtype"):
        whole.save_single_file(tmp_path / "m.safetensors", dtype=torch.int8)
    assert list(tmp_path.iterdir()) == []


def test_a_network_alone_is_written_as_such_files_are_in_the_wild(
    v1: dict[str, Tensor], tmp_path: Path
) -> None:
    path = write(v1, tmp_path / "in.ckpt")
    starts = {"vae": "", "unet": "model.diffusion_model.", "text_encoder": ""}
    for component, prefix in starts.items():
        out = tmp_path / f"{component}.safetensors"
        write_file(read_parts(path, components=[component]), out)
        names = read_header(out).entries
        assert all(name.startswith(prefix) for name in names)
        marker = {"vae": "encoder.conv_in.weight", "text_encoder": "text_model."}
        assert any(name.startswith(marker.get(component, prefix)) for name in names)
        again = read_parts(out)
        assert list(again.networks) == [component]
        write_folder(again, tmp_path / component)
        assert (tmp_path / component / "config.json").is_file()
        back = read_parts(tmp_path / component, components=[component])
        write_file(back, tmp_path / "back.safetensors")
        assert same(read_safetensors(tmp_path / "back.safetensors"), read_safetensors(out))


def test_folders_of_special_pipelines_load_in_diffusers(tmp_path: Path) -> None:
    for name in ("stable-diffusion-v2-inpainting", "stable-diffusion-x4-upscaler"):
        path = write(family_tensors(name), tmp_path / f"{name}.safetensors")
        write_folder(read_parts(path), tmp_path / name)
        pipeline_class = getattr(diffusers, family(name).pipeline)
        pipe = pipeline_class.from_pretrained(tmp_path / name)
        state = open_checkpoint(path).network("unet").state_dict()
        theirs = pipe.unet.state_dict()
        assert state.keys() == theirs.keys()
        assert all(torch.equal(theirs[key], state[key]) for key in state)
    assert pipe.config.max_noise_level == 350


# The command


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main(["convert", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_converts_and_prints_where_to(
    v1: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = (
        write(with_average(v1), tmp_path / "in.ckpt"),
        tmp_path / "new" / "m.safetensors",
    )
    assert run(capsys, source, target, "--dtype", "bfloat16", "--ema") == (0, f"{target}\n", "")
    entries = read_header(target).entries
    assert {e.dtype for e in entries.values()} == {"BF16", "I64"}
    assert not any(name.startswith("model_ema") for name in entries)
    code, out, err = run(capsys, source, target)
    assert (code, out) == (2, "") and "exists. --overwrite replaces it" in err
    assert run(capsys, source, target, "--overwrite")[0] == 0
    assert read_header(target).entries["model.diffusion_model.out.2.bias"].dtype == "F32"
    folder = tmp_path / "folder"
    assert run(capsys, target, folder, "--to", "diffusers") == (0, f"{folder}\n", "")
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    assert torch.equal(pipe.unet.conv_out.weight, v1["model.diffusion_model.out.2.weight"])
    assert run(capsys, source, tmp_path / "v.safetensors", "--component", "vae")[0] == 0
    code, _, err = run(capsys, tmp_path / "v.safetensors", tmp_path / "u", "--component", "unet")
    assert code == 1 and "holds no unet" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.ckpt", "out", "--to", "original"], "a file ending in .safetensors"),
        (["x.ckpt", "out.safetensors", "--to", "diffusers"], "writes a folder"),
        (["x.ckpt", "out.safetensors", "--dtype", "int8"], "int8"),
        (["nothing.ckpt", "out.safetensors"], "no file 'nothing.ckpt'"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words)
    assert code in (1, 2) and out == "" and err.count("\n") == 1 and message in err


def test_folders_that_are_no_models_are_errors(v1: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "MotionAdapter"}')
    with pytest.raises(ConfigError, match="folder of a MotionAdapter"):
        read_parts(tmp_path)
    start = "model.diffusion_model."
    cut: dict[str, Any] = {n: t for n, t in v1.items() if n.startswith((start, "first"))}
    two = read_parts(write(cut, tmp_path / "two.safetensors"))
    assert list(two.networks) == ["unet", "vae"]
    with pytest.raises(CheckpointError, match="needs text_encoder as well"):
        write_folder(two, tmp_path / "out")
