"""Random networks with what torch computes of them: what every backend of the graph has to match.

``test_numpy_ops.py`` shows how a backend's test uses them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from sfumato.graph.ops import Ops
from sfumato.graph.weights import Weights
from sfumato.models import unet_stages
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.unet import UNet2DConditionModel
from sfumato.text.clip import CLIPTextModelWithProjection
from sfumato.text.clip_vision import CLIPVisionModelWithProjection
from tests.parity.unet_configs import random_config, random_inputs

Array = np.ndarray[Any, Any]
Arrays = dict[str, Any]

UNET_SEEDS = range(60)
VAE_SEEDS = range(12)
TEXT_SEEDS = range(24)
VISION_SEEDS = range(8)


@dataclass
class Case:
    """A network of torch, what it is given, and what it gives.

    Attributes:
        config: a configuration of our own class.
        arrays: the weights.
        inputs: arrays by the names of the graph's function.
        expected: arrays by name.
    """

    config: Any
    arrays: Arrays
    inputs: Arrays
    expected: dict[str, Array]
    options: dict[str, Any] = field(default_factory=dict)

    def weights(self, convert: Callable[[Array], Any] = lambda a: a) -> Weights:
        """The weights as a scope, each through ``convert``."""
        return Weights({name: convert(array) for name, array in self.arrays.items()})


def arrays_of(network: torch.nn.Module) -> Arrays:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def perturbed(network: Any, seed: int) -> Any:
    """Norms and biases too become random, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def number(value: Any) -> Array:
    """An input as an array: float32, or integers."""
    array = value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return array if array.dtype.kind == "i" else array.astype(np.float32)


@torch.no_grad()
def unet_case(seed: int) -> Case:
    """A UNet with options drawn at random, now and then with residuals of adapters."""
    rng = random.Random(seed)
    config = random_config(rng)
    while not set(kinds(config)) <= set(unet_stages.KINDS):
        config = random_config(rng)
    torch.manual_seed(seed)
    network = perturbed(UNet2DConditionModel(**config), seed)
    given = random_inputs(rng, config)
    extra = residuals(rng, network, given)
    expected = network(**given, **extra).sample
    batch = given["sample"].shape[0]
    timesteps = number(given["timestep"]).astype(np.float32).reshape(-1)
    inputs: Arrays = {
        "sample": number(given["sample"]),
        "timesteps": np.broadcast_to(timesteps, (batch,)).copy(),
        "context": number(given["encoder_hidden_states"]),
        "added": {name: number(value) for name, value in given["added_cond_kwargs"].items()},
    }
    for ours, theirs in (("timestep_cond",) * 2, ("context_mask", "encoder_attention_mask")):
        if theirs in given:
            inputs[ours] = number(given[theirs]).astype(np.float32)
    if "class_labels" in given:
        labels = number(given["class_labels"])
        times = config.get("class_embed_type") == "timestep"
        inputs["class_labels"] = labels.astype(np.float32) if times else labels
    inputs["residuals"] = {
        "down": [number(r) for r in extra.get("down_block_additional_residuals", ())],
        "mid": [number(extra[k]) for k in ("mid_block_additional_residual",) if k in extra],
        "blocks": [number(r) for r in extra.get("down_intrablock_additional_residuals", ())],
    }
    return Case(network.config, arrays_of(network), inputs, {"sample": expected.numpy()})


def kinds(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The kinds of a configuration's blocks."""
    return (*config["down_block_types"], *config["up_block_types"])


def residuals(rng: random.Random, network: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Residuals of a ControlNet, of a T2I-Adapter, or none."""
    kind = rng.choice(["none", "none", "control", "adapter"])
    if kind == "none":
        return {}
    skips: list[torch.Tensor] = []
    blocks: list[torch.Tensor] = []

    def remember(block: Any, _: Any, output: Any) -> None:
        skips.extend(output[1])
        index = -1 if block.downsamplers is None or not block.has_cross_attention else -2
        blocks.append(output[1][index])

    hooks = [block.register_forward_hook(remember) for block in network.down_blocks]
    middle: list[torch.Tensor] = []
    if network.mid_block is not None:
        hooks.append(network.mid_block.register_forward_hook(lambda m, i, o: middle.append(o)))
    first = network.conv_in.register_forward_hook(lambda m, i, o: skips.append(o))
    network(**given)
    for hook in [*hooks, first]:
        hook.remove()
    if kind == "adapter":
        return {"down_intrablock_additional_residuals": [torch.randn_like(b) for b in blocks]}
    last = middle[0] if middle else skips[-1]
    return {
        "down_block_additional_residuals": [torch.randn_like(s) for s in skips],
        "mid_block_additional_residual": torch.randn_like(last),
    }


@torch.no_grad()
def vae_case(seed: int) -> Case:
    """An autoencoder; expects ``moments`` of ``images`` and ``images`` of ``latents``."""
    rng = random.Random(seed)
    blocks = rng.choice([1, 2, 3])
    config = {
        "in_channels": rng.choice([1, 3]),
        "out_channels": rng.choice([3, 4]),
        "block_out_channels": tuple(rng.choice([8, 16, 24]) for _ in range(blocks)),
        "down_block_types": tuple(
            rng.choice(["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]) for _ in range(blocks)
        ),
        "up_block_types": tuple(
            rng.choice(["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]) for _ in range(blocks)
        ),
        "layers_per_block": rng.choice([1, 2]),
        "latent_channels": rng.choice([3, 4, 6]),
        "norm_num_groups": rng.choice([4, 8]),
        "act_fn": rng.choice(["silu", "gelu", "relu", "mish"]),
        "use_quant_conv": rng.random() < 0.6,
        "use_post_quant_conv": rng.random() < 0.6,
        "mid_block_add_attention": rng.random() < 0.7,
    }
    torch.manual_seed(seed)
    network = perturbed(AutoencoderKL(**config), seed)
    batch, factor = rng.choice([1, 2]), 2 ** (blocks - 1)
    side = rng.randrange(2, 7), rng.randrange(2, 7)
    images = torch.randn(batch, config["in_channels"], side[0] * factor, side[1] * factor)
    latents = torch.randn(batch, config["latent_channels"], *side)
    return Case(
        network.config,
        arrays_of(network),
        {"images": images.numpy(), "latents": latents.numpy()},
        {
            "moments": network.encode(images).latent_dist.parameters.numpy(),
            "images": network.decode(latents).sample.numpy(),
        },
    )


@torch.no_grad()
def text_case(seed: int) -> Case:
    """A text encoder, with padding masked on half the seeds."""
    rng = random.Random(seed)
    heads, vocab, length = rng.choice([1, 2, 4]), rng.randint(20, 300), rng.randint(2, 30)
    acts = ("quick_gelu", "gelu", "gelu_new", "relu", "relu6", "leaky_relu", "mish", "tanh")
    config = {
        "vocab_size": vocab,
        "hidden_size": heads * rng.choice([4, 8, 16]),
        "intermediate_size": rng.randint(8, 90),
        "projection_dim": rng.randint(4, 40),
        "num_hidden_layers": rng.randint(1, 5),
        "num_attention_heads": heads,
        "max_position_embeddings": length + rng.randint(0, 5),
        "hidden_act": acts[seed % len(acts)],
        "layer_norm_eps": rng.choice([1e-5, 1e-6]),
        "eos_token_id": rng.choice([2, rng.randint(3, vocab - 1)]),
    }
    torch.manual_seed(seed)
    network = perturbed(CLIPTextModelWithProjection(**config), seed)
    ids = torch.randint(0, vocab, (rng.randint(1, 4), length))
    mask = (torch.rand(ids.shape) > 0.4).long() if seed % 2 else None
    out = network(ids, attention_mask=mask, output_hidden_states=True)
    skip = rng.choice([0, 0, 1])
    last = out.hidden_states[-1 - skip]
    last = network.text_model.final_layer_norm(last)
    expected = {"last_hidden_state": last.numpy()}
    if not skip:
        expected["text_embeds"] = out.text_embeds.numpy()
    inputs: Arrays = {"ids": ids.numpy()}
    if mask is not None:
        inputs["attention_mask"] = mask.numpy().astype(np.float32)
    return Case(network.config, arrays_of(network), inputs, expected, {"clip_skip": skip})


@torch.no_grad()
def vision_case(seed: int) -> Case:
    """A vision encoder."""
    rng = random.Random(seed)
    heads, patch = rng.choice([1, 2, 4]), rng.choice([2, 4])
    config = {
        "hidden_size": heads * 8,
        "intermediate_size": rng.randint(8, 90),
        "projection_dim": rng.randint(4, 40),
        "num_hidden_layers": rng.randint(1, 4),
        "num_attention_heads": heads,
        "image_size": patch * rng.randint(1, 4),
        "patch_size": patch,
        "hidden_act": rng.choice(["quick_gelu", "gelu"]),
    }
    torch.manual_seed(seed)
    network = perturbed(CLIPVisionModelWithProjection(**config), seed)
    pixels = torch.randn(rng.choice([1, 3]), 3, config["image_size"], config["image_size"])
    out = network(pixels, output_hidden_states=True)
    expected = {
        "last_hidden_state": out.last_hidden_state.numpy(),
        "penultimate": out.hidden_states[-2].numpy(),
        "image_embeds": out.image_embeds.numpy(),
    }
    return Case(network.config, arrays_of(network), {"pixels": pixels.numpy()}, expected)


def relative_error(actual: Any, expected: Array) -> float:
    """The largest difference, relative to the largest value."""
    actual = np.asarray(actual, np.float32)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def each_array(value: Any, convert: Callable[[Array], Any]) -> Any:
    """The same lists and dictionaries with every array through ``convert``."""
    if isinstance(value, np.ndarray):
        return convert(value)
    if isinstance(value, dict):
        return {key: each_array(part, convert) for key, part in value.items()}
    if isinstance(value, list):
        return [each_array(part, convert) for part in value]
    return value


def run_unet(
    ops: Ops[Any], case: Case, weights: Weights, convert: Callable[[Array], Any] = lambda a: a
) -> Any:
    """The prediction of ``case`` by a backend whose arrays ``convert`` makes."""
    from sfumato.graph.unet import Residuals, unet

    inputs = each_array(case.inputs, convert)
    given = inputs.pop("residuals")
    mid = given["mid"][0] if given["mid"] else None
    extra = Residuals(given["down"] or None, mid, given["blocks"])
    names = ("sample", "timesteps", "context")
    positional = [inputs.pop(name) for name in names]
    return unet(ops, weights, case.config, *positional, **inputs, residuals=extra)
