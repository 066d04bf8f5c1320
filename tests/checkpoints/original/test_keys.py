"""The rules between original names and diffusers', against diffusers' own converters."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils as oracle

from sfumato.checkpoints.original import keys
from sfumato.checkpoints.original.families import FAMILIES, family
from sfumato.errors import CheckpointError
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.unet import UNet2DConditionModel
from sfumato.text.clip import CLIPTextModel
from tests.checkpoints.original.synthetic import full_configs, networks

UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Whether names, shapes and numbers agree."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def random_unet(rng: random.Random) -> dict[str, Any]:
    blocks = rng.randint(2, 4)
    attends = [rng.random() < 0.6 for _ in range(blocks)]
    labels = rng.choice([{}, {"num_class_embeds": 5}, {"class_embed_type": "projection"}])
    if "class_embed_type" in labels:
        labels["projection_class_embeddings_input_dim"] = 6
    return {
        "block_out_channels": [8 * rng.randint(1, 2) for _ in range(blocks)],
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        "layers_per_block": rng.randint(1, 3),
        "transformer_layers_per_block": rng.randint(1, 2),
        "use_linear_projection": rng.random() < 0.5,
        "in_channels": rng.choice([4, 7, 8, 9]),
        "cross_attention_dim": 6,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        **labels,
    }


@pytest.mark.parametrize("seed", range(20))
def test_any_unet_gets_the_names_that_diffusers_gives_it(seed: int) -> None:
    rng = random.Random(seed)
    config = random_unet(rng)
    state = networks({"unet": config}, seed)["unet"].state_dict()
    rules = keys.unet_keys(UNet2DConditionModel.config_class.from_dict(config))
    original = rules.tensors_to_original(state)
    theirs = oracle.convert_ldm_unet_checkpoint(
        {UNET_PREFIX + name: tensor for name, tensor in original.items()},
        {"class_embed_type": None, "addition_embed_type": None, "num_class_embeds": None} | config,
    )
    assert same(theirs, state)
    assert same(rules.tensors_to_diffusers(original), state)
    shapes = rules.shapes_to_diffusers({k: tuple(v.shape) for k, v in original.items()})
    assert shapes == {k: tuple(v.shape) for k, v in state.items()}


@pytest.mark.parametrize("seed", range(12))
def test_any_autoencoder_gets_the_names_that_diffusers_gives_it(seed: int) -> None:
    rng = random.Random(seed)
    blocks = rng.randint(2, 4)
    config: dict[str, Any] = {
        "block_out_channels": [8 * rng.randint(1, 2) for _ in range(blocks)],
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "layers_per_block": rng.randint(1, 3),
        "latent_channels": rng.randint(2, 5),
        "norm_num_groups": 4,
    }
    state = networks({"vae": config}, seed)["vae"].state_dict()
    rules = keys.autoencoder_keys(AutoencoderKL.config_class.from_dict(config))
    original = rules.tensors_to_original(state)
    assert original["decoder.mid.attn_1.q.weight"].shape[2:] == (1, 1), "a convolution there"
    for prefix in ("first_stage_model.", "vae.", ""):
        named = {prefix + name: tensor for name, tensor in original.items()}
        assert same(oracle.convert_ldm_vae_checkpoint(named, config), state)
    assert same(rules.tensors_to_diffusers(original), state)


def test_an_autoencoder_with_attention_in_its_blocks_goes_there_and_back() -> None:
    config = {
        "block_out_channels": [8, 8],
        "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        "norm_num_groups": 4,
    }
    state = networks({"vae": config})["vae"].state_dict()
    rules = keys.autoencoder_keys(AutoencoderKL.config_class.from_dict(config))
    original = rules.tensors_to_original(state)
    assert "encoder.down.1.attn.0.proj_out.weight" in original
    assert "decoder.up.1.attn.1.norm.weight" in original, "counted from the picture"
    assert same(rules.tensors_to_diffusers(original), state)


@pytest.mark.parametrize("seed", range(6))
def test_any_open_clip_encoder_gets_the_names_that_diffusers_gives_it(seed: int) -> None:
    rng = random.Random(seed)
    width = 8 * rng.randint(1, 3)
    config = {
        "vocab_size": 11,
        "hidden_size": width,
        "intermediate_size": 16,
        "num_hidden_layers": rng.randint(1, 4),
        "num_attention_heads": 2,
        "max_position_embeddings": 9,
    }
    model = networks({"text_encoder": config}, seed)["text_encoder"]
    state = model.state_dict()
    rules = keys.open_clip_keys()
    original = rules.tensors_to_original(state)
    assert original["transformer.resblocks.0.attn.in_proj_weight"].shape == (3 * width, width)
    prefix = "cond_stage_model.model."
    named = {prefix + name: tensor for name, tensor in original.items()}
    assert same(oracle.convert_open_clip_checkpoint(model, named, prefix), state)
    assert same(rules.tensors_to_diffusers(original), state)


def test_clip_of_either_age_gets_todays_names() -> None:
    rules = keys.clip_keys()
    today = ["text_model.encoder.layers.3.mlp.fc1.bias"]
    for old in ("text_model.encoder.layers.3.mlp.fc1.bias", "encoder.layers.3.mlp.fc1.bias"):
        found = rules.to_diffusers(old)
        assert found is not None and found[0] == today
    state = {"text_model.final_layer_norm.bias": torch.zeros(3)}
    assert list(rules.tensors_to_original(state)) == list(state)


@pytest.mark.parametrize("name", FAMILIES)
def test_published_checkpoints_have_the_published_number_of_tensors(name: str) -> None:
    with torch.device("meta"):
        made = {
            component: cls.from_config(config)
            for (component, config), cls in zip(
                full_configs(name).items(),
                (UNet2DConditionModel, AutoencoderKL, CLIPTextModel),
                strict=True,
            )
        }
    newer = family(name).text_encoder["hidden_act"] == "gelu"
    counts = {}
    for component, network in made.items():
        rules = {
            "unet": lambda n: keys.unet_keys(n.config),
            "vae": lambda n: keys.autoencoder_keys(n.config),
            "text_encoder": lambda n: keys.open_clip_keys() if newer else keys.clip_keys(),
        }[component](network)
        names = [rules.to_original(key) for key in network.state_dict()]
        assert None not in names
        counts[component] = len({found[0] for found in names if found})
    upscaler = name.endswith("upscaler")
    assert counts == {
        "unet": 687 if upscaler else 686,
        "vae": 204 if upscaler else 248,
        "text_encoder": 23 * 12 + 4 if newer else 12 * 16 + 4,
    }


def test_a_tensor_without_a_place_and_a_missing_part_are_errors() -> None:
    rules = keys.open_clip_keys()
    with pytest.raises(CheckpointError, match=r"no place for the tensor 'adapter\.weight'"):
        rules.tensors_to_original({"adapter.weight": torch.zeros(1)})
    alone = {"text_model.encoder.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match=r"Parts of the tensor 'transformer\.resblocks\.0"):
        rules.tensors_to_original(alone)
