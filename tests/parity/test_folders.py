"""Folders saved here load in diffusers and transformers, and the other way round, bit for bit."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch import nn

from sfumato.checkpoints.components import load_component
from sfumato.checkpoints.model_index import read_model_index
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.unet import UNet2DConditionModel
from sfumato.pipelines.base import DiffusionPipeline
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from sfumato.schedulers import CLASS_NAMES
from sfumato.text.clip import CLIPTextModel, CLIPTextModelWithProjection
from tests.checkpoints.tiny import TEXT, tiny_pipeline

SEEDS = range(6)


def random_unet(r: random.Random) -> tuple[type, type, dict[str, Any]]:
    cross = r.choice([True, False])
    kind = "CrossAttn{}Block2D" if cross else "{}Block2D"
    return UNet2DConditionModel, diffusers.UNet2DConditionModel, {
        "block_out_channels": r.choice([[8, 16], [16, 16], [8, 8]]),
        "down_block_types": [kind.format("Down"), "DownBlock2D"],
        "up_block_types": ["UpBlock2D", kind.format("Up")],
        "norm_num_groups": 4,
        "cross_attention_dim": r.choice([8, 12]),
        "attention_head_dim": r.choice([2, 4]),
        "layers_per_block": r.choice([1, 2]),
        "in_channels": r.choice([4, 9]),
        "use_linear_projection": r.choice([True, False]),
        "num_class_embeds": r.choice([None, 5]),
        "time_cond_proj_dim": r.choice([None, 6]),
        "sample_size": r.choice([8, None]),
    }  # fmt: skip


def random_vae(r: random.Random) -> tuple[type, type, dict[str, Any]]:
    blocks = r.choice([1, 2])
    return AutoencoderKL, diffusers.AutoencoderKL, {
        "block_out_channels": [4 * r.choice([1, 2]) for _ in range(blocks)],
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "norm_num_groups": 2,
        "latent_channels": r.choice([3, 4]),
        "use_quant_conv": r.choice([True, False]),
        "scaling_factor": r.choice([0.18215, 0.5]),
    }  # fmt: skip


def random_text(r: random.Random) -> tuple[type, type, dict[str, Any]]:
    projected = r.choice([True, False])
    ours = CLIPTextModelWithProjection if projected else CLIPTextModel
    return ours, getattr(transformers, ours.__name__), {
        "vocab_size": r.choice([50, 99]),
        "hidden_size": r.choice([8, 16]),
        "intermediate_size": 20,
        "num_hidden_layers": r.choice([1, 3]),
        "num_attention_heads": 2,
        "max_position_embeddings": r.choice([7, 77]),
        "projection_dim": 6,
        "hidden_act": r.choice(["gelu", "quick_gelu"]),
        "eos_token_id": 2,
    }  # fmt: skip


def oracle(model_class: Any, config: dict[str, Any]) -> Any:
    if model_class.__module__.startswith("transformers"):
        return model_class(transformers.CLIPTextConfig(**config)).eval()
    return model_class(**config).eval()


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert set(left) == set(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


def configuration(model: Any) -> dict[str, Any]:
    return model.config.to_dict() if hasattr(model.config, "to_dict") else dict(model.config)


def options(seed: int, kind: int) -> dict[str, Any]:
    """Ways to save, so that every combination comes up."""
    number = seed * 3 + kind
    return {
        "safe_serialization": number % 2 == 0,
        "variant": [None, "fp16", "non_ema"][number % 3],
        "max_shard_size": ["10GB", "3KB"][number // 2 % 2],
    }


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", range(3), ids=["unet", "vae", "text"])
def test_networks_of_the_oracle_load_here_and_go_back_bit_equal(
    seed: int, kind: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    r = random.Random(seed)
    torch.manual_seed(seed)
    ours, theirs, config = [random_unet, random_vae, random_text][kind](r)
    dtype = r.choice([torch.float32, torch.float16, torch.bfloat16])
    saving = options(seed, kind)
    original = oracle(theirs, config).to(dtype)
    original.save_pretrained(tmp_path / "theirs", **saving)
    reading = {"variant": saving["variant"], "torch_dtype": dtype}

    caplog.clear()
    loaded = ours.from_pretrained(tmp_path / "theirs", **reading)
    assert not loaded.training and caplog.text == ""
    assert_same_weights(original, loaded)

    loaded.save_pretrained(tmp_path / "ours", **saving)
    names = {p.name for p in (tmp_path / "ours").iterdir()}
    assert ("config.json" in names) and (len(names) > 2) == (saving["max_shard_size"] == "3KB")
    # Without being told, diffusers does not find its own sharded pickles.
    reading["use_safetensors"] = saving["safe_serialization"]
    back = theirs.from_pretrained(tmp_path / "ours", **reading)
    assert_same_weights(original, back)
    ignored = ("_", "transformers_version", "dtype", "architectures")
    for key, value in configuration(original).items():
        assert key.startswith(ignored) or configuration(back)[key] == value, key
    assert_same_weights(original, ours.from_pretrained(tmp_path / "ours", **reading))


@pytest.mark.parametrize(
    "name",
    ["diffusion_pytorch_model.safetensors.index.fp16.json",
     "diffusion_pytorch_model.fp16.safetensors.index.json"],
)  # fmt: skip
def test_both_spellings_of_a_variants_index_are_read(tmp_path: Path, name: str) -> None:
    original = tiny_pipeline().unet
    original.save_pretrained(tmp_path, variant="fp16", max_shard_size="5KB")
    next(tmp_path.glob("*.index*")).rename(tmp_path / name)
    assert_same_weights(original, UNet2DConditionModel.from_pretrained(tmp_path, variant="fp16"))
    theirs = diffusers.UNet2DConditionModel.from_pretrained
    if name.endswith("index.fp16.json"):  # diffusers 0.35 writes this one
        assert_same_weights(original, theirs(tmp_path, variant="fp16"))


def test_an_autoencoder_with_the_attention_names_of_old_folders_loads(tmp_path: Path) -> None:
    original = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    original.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file, save_file

    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(path)
    renamed = {}
    for key, tensor in state.items():
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        renamed[key] = tensor
    assert set(renamed) != set(state)
    save_file(renamed, path)
    assert_same_weights(original, AutoencoderKL.from_pretrained(tmp_path))
    assert_same_weights(original, diffusers.AutoencoderKL.from_pretrained(tmp_path))


def test_the_text_half_of_a_whole_clip_model_loads(tmp_path: Path) -> None:
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 8, "patch_size": 4}  # fmt: skip
    whole = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=6)
    )
    whole.save_pretrained(tmp_path)
    loaded = CLIPTextModel.from_pretrained(tmp_path)
    assert_same_weights(loaded, transformers.CLIPTextModel.from_pretrained(tmp_path))


def diffusers_pipeline(folder: Path) -> Any:
    """A pipeline of diffusers whose tokenizer is read from a folder of ours."""
    ours = tiny_pipeline()
    ours.tokenizer.save_pretrained(folder)
    theirs = diffusers.StableDiffusionPipeline(
        vae=oracle(diffusers.AutoencoderKL, dict(ours.vae.config)),
        text_encoder=oracle(transformers.CLIPTextModel, TEXT),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder),
        unet=oracle(diffusers.UNet2DConditionModel, dict(ours.unet.config)),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return theirs


def assert_same_pipeline(a: Any, b: Any) -> None:
    for name in ("unet", "vae", "text_encoder"):
        assert_same_weights(getattr(a, name), getattr(b, name))
    text = "a red apple, naïve 🍎"
    ids = [p.tokenizer(text, padding="max_length", truncation=True).input_ids for p in (a, b)]
    assert ids[0] == ids[1]
    assert type(a.scheduler).__name__ == type(b.scheduler).__name__
    hidden = {"_class_name", "_diffusers_version", "_use_default_values", "_name_or_path"}
    left, right = ({k: v for k, v in p.scheduler.config.items() if k not in hidden} for p in (a, b))
    assert left == right


@pytest.mark.parametrize("safe", [True, False])
def test_a_pipeline_of_diffusers_loads_here_and_goes_back(tmp_path: Path, safe: bool) -> None:
    original = diffusers_pipeline(tmp_path / "tokenizer")
    original.save_pretrained(tmp_path / "theirs", safe_serialization=safe)
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert isinstance(loaded, StableDiffusionPipeline)
    assert_same_pipeline(original, loaded)

    loaded.save_pretrained(tmp_path / "ours", safe_serialization=safe)
    back = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours", use_safetensors=safe)
    assert type(back) is diffusers.StableDiffusionPipeline
    assert_same_pipeline(original, back)
    saved = [
        json.loads((tmp_path / p / "model_index.json").read_text()) for p in ("theirs", "ours")
    ]
    assert saved[0] == saved[1]


def test_a_variant_of_a_whole_pipeline_goes_there_and_back(tmp_path: Path) -> None:
    original = diffusers_pipeline(tmp_path / "tokenizer").to(
        torch.float16, silence_dtype_warnings=True
    )
    original.save_pretrained(tmp_path / "theirs", variant="fp16", max_shard_size="5KB")
    loaded = StableDiffusionPipeline.from_pretrained(
        tmp_path / "theirs", variant="fp16", torch_dtype=torch.float16
    )
    assert_same_pipeline(original, loaded)
    loaded.save_pretrained(tmp_path / "ours", variant="fp16", max_shard_size="5KB")
    back = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / "ours", variant="fp16", torch_dtype=torch.float16
    )
    assert_same_pipeline(original, back)


def test_a_pipeline_with_components_of_the_other_libraries_is_saved_by_them(tmp_path: Path) -> None:
    foreign = diffusers_pipeline(tmp_path / "tokenizer")
    mixed = StableDiffusionPipeline(**foreign.components, requires_safety_checker=False)
    mixed.save_pretrained(tmp_path / "mixed")
    assert_same_pipeline(foreign, StableDiffusionPipeline.from_pretrained(tmp_path / "mixed"))
    assert_same_pipeline(
        foreign, diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "mixed")
    )


@pytest.mark.parametrize("name", [name for name in CLASS_NAMES if hasattr(diffusers, name)])
def test_every_scheduler_is_found_by_the_name_in_the_index(tmp_path: Path, name: str) -> None:
    scheduler = getattr(diffusers, name)(num_train_timesteps=500)
    folder = tmp_path / "model"
    tiny_pipeline().save_pretrained(folder)
    shutil.rmtree(folder / "scheduler")
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", name]
    (folder / "model_index.json").write_text(json.dumps(index))
    loaded = load_component(read_model_index(folder), "scheduler")
    assert type(loaded).__name__ == name
    assert loaded.config["num_train_timesteps"] == 500
