"""Networks as folders: options of loading and saving, and what is left after a failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.checkpoints import folders
from sfumato.checkpoints.arguments import shard_bytes
from sfumato.checkpoints.tensors import read_safetensors, save_safetensors
from sfumato.checkpoints.weight_files import WeightName, parse_name
from sfumato.config import Config
from sfumato.errors import (
    ConfigError,
    InputError,
    ModelNotFoundError,
    UnknownKeywordError,
    WeightsMismatchError,
)
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.base import ModelMixin
from sfumato.models.unet import UNet2DConditionModel
from tests.checkpoints.tiny import UNET, VAE

WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class TiedConfig(Config):
    width: int = 4


class Tied(ModelMixin[Any]):
    """A network with a parameter under two names and buffers of both kinds."""

    config_class = TiedConfig

    def __init__(self, config: Any = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        width = self.config.width
        self.embed = nn.Embedding(7, width)
        self.head = nn.Linear(width, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("places", torch.arange(width), persistent=False)
        self.register_buffer("waves", torch.linspace(0, 1, width), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids) * self.scale + self.waves)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return set(left) == set(right) and all(torch.equal(left[k], right[k]) for k in left)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(UNET).eval()


# Loading


def test_a_network_is_loaded_in_eval_mode_with_its_configuration(
    unet: UNet2DConditionModel, tmp_path: Path
) -> None:
    unet.save_pretrained(tmp_path / "unet")
    for path, subfolder in ((tmp_path / "unet", None), (tmp_path, "unet"), (str(tmp_path), "unet")):
        loaded = UNet2DConditionModel.from_pretrained(path, subfolder=subfolder)
        assert same(unet, loaded) and loaded.config == unet.config and not loaded.training
        assert all(p.requires_grad and p.is_leaf for p in loaded.parameters())


def test_the_data_type_is_float32_unless_asked_for(
    unet: UNet2DConditionModel, tmp_path: Path
) -> None:
    half = UNet2DConditionModel(UNET).half()
    half.save_pretrained(tmp_path)
    load = UNet2DConditionModel.from_pretrained
    assert load(tmp_path).dtype == torch.float32
    for wanted in (torch.float16, torch.bfloat16, torch.float64):
        assert {p.dtype for p in load(tmp_path, torch_dtype=wanted).parameters()} == {wanted}
        assert {p.dtype for p in load(tmp_path, dtype=wanted).parameters()} == {wanted}
    assert load(tmp_path, torch_dtype="auto").dtype == torch.float16
    assert load(tmp_path, torch_dtype="bfloat16").dtype == torch.bfloat16
    assert same(half, load(tmp_path, torch_dtype="auto"))
    with pytest.raises(InputError, match="not both"):
        load(tmp_path, torch_dtype=torch.float16, dtype=torch.float16)
    for wrong in (torch.int8, torch.float8_e4m3fn, "fp16", 16, "os"):
        with pytest.raises(InputError, match=r"has to be one of torch\.float16"):
            load(tmp_path, torch_dtype=wrong)


def test_tied_parameters_stay_tied_and_buffers_are_complete(tmp_path: Path) -> None:
    original = Tied(width=5)
    original.scale.mul_(3)
    original.count.add_(8)
    original.save_pretrained(tmp_path)
    loaded = Tied.from_pretrained(tmp_path)
    assert loaded.head.weight is loaded.embed.weight and same(original, loaded)
    assert loaded.count.dtype == torch.int64
    ids = torch.arange(7)
    assert torch.equal(loaded(ids), original(ids))
    half = Tied.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.waves.dtype == torch.bfloat16 and half.places.dtype == torch.int64
    assert half(ids).dtype == torch.bfloat16

    state = read_safetensors(tmp_path / WEIGHTS)
    del state["head.weight"]  # as libraries that write shared tensors once leave it out
    save_safetensors(state, tmp_path / WEIGHTS)
    again = Tied.from_pretrained(tmp_path)
    assert again.head.weight is again.embed.weight and torch.equal(again(ids), original(ids))


def test_a_loaded_network_can_be_trained_and_leaves_its_file_alone(tmp_path: Path) -> None:
    Tied().save_pretrained(tmp_path)
    before = (tmp_path / WEIGHTS).read_bytes()
    model = Tied.from_pretrained(tmp_path)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(torch.arange(7)).sum().backward()
    optimizer.step()
    assert (tmp_path / WEIGHTS).read_bytes() == before
    assert not same(model, Tied.from_pretrained(tmp_path))


def test_fields_of_the_configuration_can_be_overridden(
    unet: UNet2DConditionModel, tmp_path: Path
) -> None:
    unet.save_pretrained(tmp_path)
    load = UNet2DConditionModel.from_pretrained
    assert load(tmp_path, sample_size=16, upcast_attention=True).config.sample_size == 16
    with pytest.raises(
        WeightsMismatchError, match=r"conv_in\.weight is \[8, 4, 3, 3\], not \[8, 9"
    ):
        load(tmp_path, in_channels=9)
    with pytest.raises(ConfigError, match="in_channels"):
        load(tmp_path, in_channels=-1)


def test_misspelt_keywords_are_answered_with_the_right_one(
    unet: UNet2DConditionModel, tmp_path: Path
) -> None:
    unet.save_pretrained(tmp_path)
    load = UNet2DConditionModel.from_pretrained
    with pytest.raises(UnknownKeywordError, match="Did you mean 'torch_dtype'"):
        load(tmp_path, torch_dtpe=torch.float16)
    with pytest.raises(UnknownKeywordError, match="Did you mean 'sample_size'"):
        load(tmp_path, sample_sise=64)
    # What scripts for a hub pass means nothing for a folder, and does no harm.
    load(tmp_path, revision="main", token=None, local_files_only=True, low_cpu_mem_usage=True)
    load(tmp_path, trust_remote_code=False)


def test_safetensors_are_preferred_to_pickles_unless_asked_otherwise(tmp_path: Path) -> None:
    old, new = UNet2DConditionModel(UNET), UNet2DConditionModel(UNET)
    old.save_pretrained(tmp_path, safe_serialization=False)
    load = UNet2DConditionModel.from_pretrained
    assert same(load(tmp_path), old)
    with pytest.raises(ModelNotFoundError, match="Leave out `use_safetensors`"):
        load(tmp_path, use_safetensors=True)
    new.save_pretrained(tmp_path)
    assert same(load(tmp_path), new) and same(load(tmp_path, use_safetensors=True), new)
    assert same(load(tmp_path, use_safetensors=False), old)


def test_a_variant_is_loaded_only_when_asked_for(tmp_path: Path) -> None:
    plain, fp16 = UNet2DConditionModel(UNET), UNet2DConditionModel(UNET)
    fp16.save_pretrained(tmp_path, variant="fp16")
    load = UNet2DConditionModel.from_pretrained
    with pytest.raises(ModelNotFoundError, match="Pass variant='fp16'"):
        load(tmp_path)
    plain.save_pretrained(tmp_path)
    assert same(load(tmp_path), plain) and same(load(tmp_path, variant="fp16"), fp16)
    with pytest.raises(ModelNotFoundError, match="Leave out `variant`"):
        load(tmp_path, variant="ema")
    for wrong in ("../x", "a/b", "", ".", "x" * 99, 7):
        with pytest.raises(InputError, match="variant"):
            load(tmp_path, variant=wrong)


def test_a_folder_of_another_class_is_refused(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    unet.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="'UNet2DConditionModel', not a AutoencoderKL"):
        AutoencoderKL.from_pretrained(tmp_path)

    class Mine(UNet2DConditionModel):
        pass

    assert isinstance(Mine.from_pretrained(tmp_path), Mine)


@pytest.mark.parametrize(
    ("key", "shape", "guess"),
    [
        ("add_embedding.linear_1.weight", [4, 4], "an SDXL checkpoint"),
        ("model.diffusion_model.out.2.bias", [4], "a checkpoint in one file"),
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", [4, 4], "a LoRA"),
        ("controlnet_down_blocks.0.weight", [4, 4], "a ControlNet"),
    ],
)
def test_other_kinds_of_weights_are_guessed_by_their_names(
    unet: UNet2DConditionModel, tmp_path: Path, key: str, shape: list[int], guess: str
) -> None:
    unet.save_pretrained(tmp_path)
    state = {
        key: torch.zeros(shape),
        "down_blocks.x": torch.zeros(1),
        "conv_in.weight": torch.ones(1),
    }
    save_safetensors(state, tmp_path / WEIGHTS)
    with pytest.raises(WeightsMismatchError, match=f"looks like {guess}"):
        UNet2DConditionModel.from_pretrained(tmp_path)


def test_an_autoencoder_in_the_place_of_a_unet_is_recognised(
    unet: UNet2DConditionModel, tmp_path: Path
) -> None:
    unet.save_pretrained(tmp_path)
    save_safetensors(AutoencoderKL(VAE).state_dict(), tmp_path / WEIGHTS)
    with pytest.raises(WeightsMismatchError, match="looks like an autoencoder"):
        UNet2DConditionModel.from_pretrained(tmp_path)


# Saving


def test_shards_hold_every_tensor_once_and_respect_the_size(
    unet: UNet2DConditionModel, tmp_path: Path
) -> None:
    unet.save_pretrained(tmp_path, max_shard_size=9_000)
    index = json.loads((tmp_path / f"{WEIGHTS}.index.json").read_text())
    found: dict[str, Tensor] = {}
    for name in sorted(set(index["weight_map"].values())):
        shard = read_safetensors(tmp_path / name)
        assert sum(t.nbytes for t in shard.values()) <= 9_000 or len(shard) == 1
        assert all(index["weight_map"][key] == name for key in shard) and not set(shard) & set(
            found
        )
        found |= shard
    assert set(found) == set(unet.state_dict())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())


@pytest.mark.parametrize("first", ["10GB", "6KB", "9KB"])
@pytest.mark.parametrize("second", ["10GB", "6KB"])
@pytest.mark.parametrize("safe", [True, False])
def test_saving_again_replaces_the_weights_and_nothing_else(
    tmp_path: Path, first: str, second: str, safe: bool
) -> None:
    old, new = UNet2DConditionModel(UNET), UNet2DConditionModel(UNET)
    old.save_pretrained(tmp_path, variant="ema", max_shard_size="6KB")
    old.save_pretrained(tmp_path, max_shard_size=first)
    kept = {name for name in names(tmp_path) if "ema" in name} | {"README.md", "model.onnx"}
    for name in ("README.md", "model.onnx"):
        (tmp_path / name).write_text("mine")
    new.save_pretrained(tmp_path, max_shard_size=second, safe_serialization=safe)
    assert same(UNet2DConditionModel.from_pretrained(tmp_path), new)
    assert same(UNet2DConditionModel.from_pretrained(tmp_path, variant="ema"), old)
    assert kept <= set(names(tmp_path))
    new.save_pretrained(tmp_path / "fresh", max_shard_size=second, safe_serialization=safe)
    assert set(names(tmp_path)) - kept - {"fresh"} == set(names(tmp_path / "fresh"))


def test_a_failure_while_saving_leaves_the_old_folder_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = UNet2DConditionModel(UNET), UNet2DConditionModel(UNET)
    old.save_pretrained(tmp_path / "model", max_shard_size="6KB")
    before = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}
    save, calls = folders.save_safetensors, []

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        save(*args, **kwargs)

    monkeypatch.setattr(folders, "save_safetensors", full)
    for target in ("model", "other"):
        calls.clear()
        with pytest.raises(OSError, match="No space"):
            new.save_pretrained(tmp_path / target, max_shard_size="6KB")
    assert {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()} == before
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("renames", [0, 1, 3, 6])
def test_an_end_between_the_renames_leaves_no_mixture(
    tmp_path: Path, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old and new shards have the same names, so no index may join them for a moment."""
    old, new = UNet2DConditionModel(UNET), UNet2DConditionModel(UNET)
    old.save_pretrained(tmp_path / "model", max_shard_size="6KB")
    replace, done = os.replace, []

    def end_after_some(source: Path, target: Path) -> None:
        if Path(target).parent == tmp_path / "model":
            done.append(target)
            if len(done) > renames:
                raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("sfumato.checkpoints.atomic.os.replace", end_after_some)
        with pytest.raises(KeyboardInterrupt):
            new.save_pretrained(tmp_path / "model", max_shard_size="6KB")
    with pytest.raises(ModelNotFoundError):
        UNet2DConditionModel.from_pretrained(tmp_path / "model")
    new.save_pretrained(tmp_path / "model", max_shard_size="6KB")
    assert same(UNet2DConditionModel.from_pretrained(tmp_path / "model"), new)


def test_fused_projections_are_not_saved(tmp_path: Path) -> None:
    model = UNet2DConditionModel(UNET)
    expected = set(model.state_dict())
    model.fuse_qkv_projections()
    assert set(model.state_dict()) > expected
    model.save_pretrained(tmp_path)
    assert set(read_safetensors(tmp_path / WEIGHTS)) == expected
    UNet2DConditionModel.from_pretrained(tmp_path)


def test_a_pickle_holds_no_more_than_the_networks_tensors(tmp_path: Path) -> None:
    model = Tied(width=4)
    part_of_a_large_one = torch.randn(1000, 1000)[:7, :4]
    model.embed.weight = model.head.weight = nn.Parameter(part_of_a_large_one)
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "diffusion_pytorch_model.bin").stat().st_size < 10_000
    assert same(model, Tied.from_pretrained(tmp_path))


def test_arguments_of_saving_are_checked(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    for wrong in ("5", "GB", "-5GB", "1e9GB", "5XB", 0, -1, 1.5, True, "9" * 40 + "GB"):
        with pytest.raises(InputError, match="max_shard_size"):
            unet.save_pretrained(tmp_path / "x", max_shard_size=wrong)
    with pytest.raises(InputError, match="push_to_hub"):
        unet.save_pretrained(tmp_path / "x", push_to_hub=True)
    unet.save_pretrained(tmp_path / "x", is_main_process=False)
    assert names(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        unet.save_pretrained(tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "size"),
    [("200KB", 200_000), ("5GB", 5 * 10**9), ("1 MiB", 2**20), ("7B", 7), ("2tb", 2 * 10**12)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert shard_bytes(text) == shard_bytes(size) == size


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("model.safetensors", WeightName("model", None, True, False)),
        ("pytorch_model.bin", WeightName("model", None, False, False)),
        ("model.fp16-00001-of-00012.safetensors", WeightName("model", "fp16", True, False)),
        ("model-00001-of-00012.safetensors", WeightName("model", None, True, False)),
        ("model.safetensors.index.json", WeightName("model", None, True, True)),
        ("model.safetensors.index.fp16.json", WeightName("model", "fp16", True, True)),
        ("model.fp16.safetensors.index.json", WeightName("model", "fp16", True, True)),
        ("pytorch_model.bin.index.non_ema.json", WeightName("model", "non_ema", False, True)),
        ("config.json", None),
        ("model.onnx", None),
        ("model.safetensors.bak", None),
        (".model.safetensors.0123.tmp", None),
    ],
)
def test_names_of_weight_files_are_taken_apart(name: str, parsed: WeightName | None) -> None:
    assert parse_name(name) == parsed


# Memory


MEASURED = """
import sys, torch
from sfumato.models.unet import UNet2DConditionModel

def peak():  # in MiB; the high-water mark of this process
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

path, wanted = sys.argv[1], getattr(torch, sys.argv[2])
before = peak()
model = UNet2DConditionModel.from_pretrained(path, torch_dtype=wanted)
sum(p.sum() for p in model.parameters())
print((peak() - before) / (model.get_memory_footprint() / 2**20))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory's high-water mark from /proc")
@pytest.mark.parametrize(("stored", "wanted"), [("float16", "float16"), ("float32", "bfloat16")])
def test_loading_takes_the_memory_of_the_network_once(
    tmp_path: Path, stored: str, wanted: str
) -> None:
    with torch.device("meta"):
        big = UNet2DConditionModel(
            block_out_channels=(192, 384, 768),
            down_block_types=("DownBlock2D",) * 3,
            up_block_types=("UpBlock2D",) * 3,
            attention_head_dim=4,
        )
    big = big.to(getattr(torch, stored)).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in big.parameters():
            parameter.zero_()
    assert big.num_parameters() > 60e6
    big.save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path), wanted],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert 0.5 < float(done.stdout) < 1.15
