"""The tiny autoencoder computes what diffusers' does, over random configurations and inputs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny as Oracle
from safetensors.torch import save_file

from sfumato.errors import ConfigError, WeightsMismatchError
from sfumato.models.autoencoder_tiny import AutoencoderTiny
from tests.parity.networks import relative_error, shapes, share_weights
from tests.parity.oracle_pipeline import oracle_of
from tests.pipelines.tiny import seeded, tiny_pipeline

Pair = tuple[Any, AutoencoderTiny]


def make_pair(config: dict[str, Any], seed: int = 0) -> Pair:
    torch.manual_seed(seed)
    oracle, ours = Oracle(**config), AutoencoderTiny(**config)
    assert list(shapes(ours).items()) == list(shapes(oracle).items())
    share_weights(oracle, ours, seed)
    return oracle, ours


def random_config(rng: random.Random) -> dict[str, Any]:
    config: dict[str, Any] = {
        "in_channels": rng.choice([1, 3, 4]),
        "out_channels": rng.choice([1, 3, 4]),
        "latent_channels": rng.choice([3, 4, 16]),
        "act_fn": rng.choice(["relu", "silu", "swish", "mish", "gelu"]),
        "upsample_fn": rng.choice(["nearest", "nearest-exact", "bilinear", "bicubic"]),
        "upsampling_scaling_factor": rng.choice([2, 2, 3]),
        "latent_magnitude": rng.choice([1, 3, 2.5]),
        "latent_shift": rng.choice([0.0, 0.5]),
    }
    for half in ("encoder", "decoder"):
        blocks = [rng.randint(0, 2) for _ in range(rng.randint(1, 4))]
        config[f"num_{half}_blocks"] = tuple(blocks)
        config[f"{half}_block_out_channels"] = (rng.choice([4, 8]),) * len(blocks)
    return config


SMALL: dict[str, Any] = {
    "encoder_block_out_channels": (8,) * 4,
    "decoder_block_out_channels": (8,) * 4,
    "num_encoder_blocks": (1, 1, 0, 1),
    "num_decoder_blocks": (1, 0, 1, 1),
}


@pytest.mark.parametrize("seed", range(20))
@torch.no_grad()
def test_a_random_network_encodes_and_decodes_as_diffusers(seed: int) -> None:
    rng = random.Random(seed)
    config = random_config(rng)
    oracle, ours = make_pair(config, seed)
    oracle.use_slicing = ours.use_slicing = rng.random() < 0.5
    image = torch.rand(2, config["in_channels"], rng.randint(8, 20), rng.randint(8, 20)) * 2 - 1
    expected, actual = oracle.encode(image).latents, ours.encode(image).latents
    assert relative_error(actual, expected) < 1e-5
    latents = 3 * torch.randn(2, config["latent_channels"], 3, 5)
    assert relative_error(ours.decode(latents).sample, oracle.decode(latents).sample) < 1e-5
    assert relative_error(ours.scale_latents(latents), oracle.scale_latents(latents)) < 1e-6
    assert relative_error(ours.unscale_latents(latents), oracle.unscale_latents(latents)) < 1e-6
    assert relative_error(ours(image, return_dict=False)[0], oracle(image).sample) < 1e-5


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_tiles_are_laid_as_in_diffusers(seed: int) -> None:
    rng = random.Random(seed)
    oracle, ours = make_pair(SMALL, seed)
    overlap = rng.choice([0.25, 0.5])
    for network in (oracle, ours):
        network.tile_sample_min_size, network.tile_latent_min_size = 64, 8
        network.tile_overlap_factor = overlap
        network.enable_tiling()
    height, width = (rng.randint(5, 20) for _ in range(2))
    latents = torch.randn(1, 4, height, width)
    assert relative_error(ours.decode(latents).sample, oracle.decode(latents).sample) < 1e-5
    image = torch.rand(1, 3, height * 8, width * 8) * 2 - 1
    tiled = ours.encode(image).latents
    assert relative_error(tiled, oracle.encode(image).latents) < 1e-5
    ours.disable_tiling()
    assert not torch.equal(ours.encode(image).latents, tiled) or max(height, width) <= 8


@torch.no_grad()
def test_tiling_takes_any_size_and_keeps_the_precision() -> None:
    network = AutoencoderTiny(**SMALL, latent_channels=16).to(torch.bfloat16)
    network.enable_tiling()
    network.tile_sample_min_size = 32
    latents = network.encode(torch.zeros(1, 3, 45, 83, dtype=torch.bfloat16)).latents
    assert latents.shape == (1, 16, 6, 11)
    assert latents.dtype == torch.bfloat16
    assert network.decode(latents).sample.shape == (1, 3, 48, 88)


def test_folders_go_both_ways(tmp_path: Path) -> None:
    oracle, ours = make_pair(SMALL)
    ours.save_pretrained(tmp_path / "ours")
    oracle.save_pretrained(tmp_path / "oracle")
    theirs: Any = Oracle.from_pretrained(tmp_path / "ours")
    back = AutoencoderTiny.from_pretrained(tmp_path / "oracle")
    latents = torch.randn(1, 4, 2, 2)
    with torch.no_grad():
        assert relative_error(back.decode(latents).sample, theirs.decode(latents).sample) < 1e-5
    assert back.config == ours.config


def test_it_decodes_for_a_pipeline_whose_folder_names_it(tmp_path: Path) -> None:
    fields = {**SMALL, "encoder_block_out_channels": (8,) * 2, "num_encoder_blocks": (1, 1)}
    fields |= {"decoder_block_out_channels": (8,) * 2, "num_decoder_blocks": (1, 1)}
    pipe: Any = tiny_pipeline(vae=make_pair(fields)[1])
    oracle: Any = oracle_of(pipe)
    options: dict[str, Any] = {"num_inference_steps": 2, "output_type": "pt"}
    expected = oracle("a boat", generator=seeded(0), **options).images
    pipe.save_pretrained(tmp_path)
    loaded: Any = type(pipe).from_pretrained(tmp_path, requires_safety_checker=False)
    assert isinstance(loaded.vae, AutoencoderTiny)
    for drawing in (pipe, loaded):
        images = drawing("a boat", generator=seeded(0), **options).images
        assert relative_error(images, expected) < 1e-4


def numbered(state: dict[str, torch.Tensor], half: str, prefix: str = "") -> dict[str, Any]:
    """Half of a network under the names in TAESD's own files."""
    result = {}
    for name, tensor in state.items():
        kind, _, number, rest = name.split(".", 3)
        if kind == half:
            result[f"{prefix}{int(number) + (half == 'decoder')}.{rest}"] = tensor.contiguous()
    return result


@pytest.mark.parametrize("layout", ["two files", "one file", "pickles"])
def test_the_files_of_taesd_load(tmp_path: Path, layout: str) -> None:
    oracle, _ = make_pair({**SMALL, "latent_channels": 16})
    state = oracle.state_dict()
    decoder, encoder = tmp_path / "taesd_decoder", tmp_path / "taesd_encoder"
    if layout == "one file":
        both = numbered(state, "decoder", "decoder.") | numbered(state, "encoder", "encoder.")
        save_file(both | {"vae_scale": torch.ones(1)}, decoder)
        ours = AutoencoderTiny.from_taesd(decoder)
    else:
        save = torch.save if layout == "pickles" else save_file
        save(numbered(state, "decoder"), decoder)
        save(numbered(state, "encoder"), encoder)
        ours = AutoencoderTiny.from_taesd(decoder, encoder, torch_dtype=torch.float32)
        with pytest.raises(WeightsMismatchError, match="no encoder"):
            AutoencoderTiny.from_taesd(tmp_path / "taesd_decoder")
    assert ours.config.num_decoder_blocks == SMALL["num_decoder_blocks"]
    assert ours.config.num_encoder_blocks == SMALL["num_encoder_blocks"]
    assert all(torch.equal(t, state[name]) for name, t in ours.state_dict().items())
    assert ours.state_dict().keys() == state.keys()


def test_other_files_are_no_taesd(tmp_path: Path) -> None:
    save_file({"0.weight": torch.ones(2), "3.bias": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(WeightsMismatchError, match="convolutions"):
        AutoencoderTiny.from_taesd(tmp_path / "other", tmp_path / "other")


def test_gradients_are_the_same_with_checkpointing() -> None:
    network = AutoencoderTiny(**SMALL)
    image = torch.rand(1, 3, 16, 16)
    gradients = []
    for recompute in (False, True):
        network.zero_grad()
        if recompute:
            network.enable_gradient_checkpointing()
        network.encode(image).latents.square().sum().backward()
        gradients.append([p.grad for p in network.encoder.parameters()])
    assert network.is_gradient_checkpointing
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_encoder_blocks", (1, 2), "same length"),
        ("num_decoder_blocks", (1, 2, 3, -1), "integers from 0"),
        ("decoder_block_out_channels", (8, 8, 16, 8), "equal numbers"),
        ("act_fn", "tanh", "has to be one of"),
        ("upsample_fn", "linear", "has to be one of"),
        ("latent_magnitude", 0, "number from"),
        ("upsampling_scaling_factor", 0, "integer from 1"),
    ],
)
def test_impossible_configurations_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AutoencoderTiny(**{**SMALL, field: value})
