"""Checkpoints in the original layout with random weights, at full or at tiny width.

The names come from an independent place where it matters: `test_keys` compares the rules that make
these files with diffusers' own converters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.checkpoints.original.families import family
from sfumato.checkpoints.original.parts import averaged_name
from sfumato.checkpoints.original.saving import original_tensors
from sfumato.checkpoints.tensors import save_safetensors
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.unet import UNet2DConditionModel
from sfumato.text.clip import CLIPTextModel

CLASSES: dict[str, type[nn.Module]] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
}

#: Buffers of the original code that published files hold beside the weights.
SCHEDULE_BUFFERS = (
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "betas",
    "log_one_minus_alphas_cumprod",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_variance",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
)

_TINY_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
}


def tiny_configs(name: str) -> dict[str, dict[str, Any]]:
    """Configurations of a family's networks at a width that takes no time."""
    published = family(name)
    blocks = len(published.unet["block_out_channels"])
    widths = [32, 64, 64, 64][:blocks]
    unet = {**published.unet, "block_out_channels": widths, "cross_attention_dim": 64}
    if isinstance(published.unet["attention_head_dim"], list):
        unet["attention_head_dim"] = [max(1, width // 64) for width in widths]
    vae_blocks = len(published.vae["block_out_channels"])
    vae = {**published.vae, "block_out_channels": [32, 32, 64, 64][:vae_blocks]}
    return {"unet": unet, "vae": vae, "text_encoder": {**published.text_encoder, **_TINY_TEXT}}


def full_configs(name: str) -> dict[str, dict[str, Any]]:
    """The published configurations."""
    published = family(name)
    return {component: dict(getattr(published, component)) for component in CLASSES}


def networks(configs: dict[str, dict[str, Any]], seed: int = 0) -> dict[str, nn.Module]:
    """Networks with random weights, none of which is at its initial one or zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = {name: CLASSES[name](configs[name]).eval() for name in configs}  # type: ignore[call-arg]
        with torch.no_grad():
            for network in made.values():
                for parameter in network.parameters():
                    if parameter.ndim == 1:
                        parameter += 0.1 * torch.randn_like(parameter)
    return made


def checkpoint_tensors(made: dict[str, nn.Module], *, extras: bool = True) -> dict[str, Tensor]:
    """The tensors of a checkpoint in one file, with what published ones hold besides."""
    tensors: dict[str, Tensor] = {}
    for name, network in made.items():
        tensors |= original_tensors(name, network)
    if not extras:
        return tensors
    for name in SCHEDULE_BUFFERS:
        tensors[name] = torch.rand(1000)
    layers = {n.partition(".ln_1")[0] for n in tensors if n.endswith("ln_1.weight")}
    if layers:  # OpenCLIP: a last layer that Stable Diffusion leaves out, and a projection
        first = min(layers)
        unused = first.rpartition(".")[0] + ".23"
        for name in [n for n in tensors if n.startswith(first + ".")]:
            tensors[name.replace(first, unused)] = tensors[name] * 0 + 7
        prefix = first.partition("transformer.")[0]
        width = tensors[f"{prefix}ln_final.weight"].shape[0]
        tensors[f"{prefix}text_projection"] = torch.rand(width, width)
        tensors[f"{prefix}logit_scale"] = torch.tensor(4.6)
    return tensors


def with_average(tensors: dict[str, Tensor], seed: int = 9) -> dict[str, Tensor]:
    """The tensors, and other ones as the averaged weights of the UNet."""
    generator = torch.Generator().manual_seed(seed)
    average = {
        averaged_name(name): tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in tensors.items()
        if name.startswith("model.diffusion_model.")
    }
    counts = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    return {**tensors, **average, **counts}


def predicting(tensors: dict[str, Tensor], velocity: bool) -> dict[str, Tensor]:
    """The tensors with the statistic that tells velocity from noise in Stable Diffusion 2."""
    name = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    size = tensors[name].shape[0]
    signs = torch.tensor([1.0, -1.0]).repeat(size)[:size]
    return {**tensors, name: signs * (0.1 if velocity else 0.08)}


def write(tensors: dict[str, Tensor], path: Path, **metadata: str) -> Path:
    """The tensors as a file, safetensors or a pickle as the name says."""
    if path.suffix == ".safetensors":
        save_safetensors(tensors, path, metadata)
    else:
        torch.save({"state_dict": tensors}, path)
    return path


def small_configs(name: str) -> dict[str, dict[str, Any]]:
    """As `tiny_configs`, with a small vocabulary."""
    configs = tiny_configs(name)
    configs["text_encoder"]["vocab_size"] = 50
    return configs


def assert_same(network: nn.Module, expected: nn.Module | dict[str, Tensor]) -> None:
    state = expected.state_dict() if isinstance(expected, nn.Module) else expected
    found = network.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


def original_yaml(**changes: Any) -> dict[str, Any]:
    """The content of the YAML file that fits `small_configs` of Stable Diffusion 1."""
    params: dict[str, Any] = {
        "linear_start": 0.001,
        "linear_end": 0.015,
        "timesteps": 900,
        "image_size": 48,
        "scale_factor": 0.2,
        "unet_config": {
            "target": "os.system",
            "params": {
                "in_channels": 4,
                "out_channels": 4,
                "model_channels": 32,
                "attention_resolutions": [4, 2, 1],
                "num_res_blocks": 2,
                "channel_mult": [1, 2, 2, 2],
                "num_heads": 4,
                "transformer_depth": 1,
                "context_dim": 64,
            },
        },
        "first_stage_config": {
            "params": {
                "ddconfig": {
                    "z_channels": 4,
                    "in_channels": 3,
                    "out_ch": 3,
                    "ch": 32,
                    "ch_mult": [1, 1, 2, 2],
                    "num_res_blocks": 2,
                }
            }
        },
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
    }
    return {"model": {"params": params | changes}}
