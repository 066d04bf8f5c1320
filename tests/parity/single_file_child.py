"""Loads checkpoints in one file in a process that may not touch the network; see the test."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from sfumato import StableDiffusionPipeline

PROMPTS = ["a red apple", "on the table, (old) photo"]


def forbid_sockets(event: str, _: tuple[Any, ...]) -> None:
    """An audit hook under which nothing can be connected to, nor a name be asked for."""
    if event.startswith("socket."):
        raise RuntimeError(f"the network was touched: {event}")


def network_inputs(pipe: Any) -> dict[str, torch.Tensor]:
    """Inputs for the networks of a pipeline."""
    generator = torch.Generator().manual_seed(1)
    config = pipe.unet.config
    return {
        "sample": torch.randn(2, config.in_channels, 8, 8, generator=generator),
        "context": torch.randn(2, 7, config.cross_attention_dim, generator=generator),
        "labels": torch.tensor([3, 20]),
        "latents": torch.randn(1, 4, 4, 4, generator=generator),
        "image": torch.randn(1, 3, 32, 32, generator=generator),
        "ids": torch.randint(0, 49000, (2, 77), generator=generator),
    }


@torch.no_grad()
def network_outputs(pipe: Any) -> dict[str, torch.Tensor]:
    """What each network makes of `network_inputs`."""
    inputs = network_inputs(pipe)
    labels = {"class_labels": inputs["labels"]} if pipe.unet.config.num_class_embeds else {}
    text = pipe.text_encoder(inputs["ids"])
    return {
        "unet": pipe.unet(inputs["sample"], 37, inputs["context"], **labels).sample,
        "decoder": pipe.vae.decode(inputs["latents"]).sample,
        "encoder": pipe.vae.encode(inputs["image"]).latent_dist.mean,
        "text": text.last_hidden_state,
        "pooled": text.pooler_output,
    }


def latents(pipe: Any) -> torch.Tensor:
    """What the pipeline draws."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        PROMPTS,
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
    ).images


def main(files: list[Path], output: Path) -> None:
    """Load each file and save what its networks, and the pipeline where it can draw, give."""
    sys.addaudithook(forbid_sockets)
    results: dict[str, Any] = {}
    for file in files:
        pipe = StableDiffusionPipeline.from_single_file(file)
        results[file.name] = network_outputs(pipe)
        if pipe.unet.config.in_channels == 4:
            results[file.name]["drawn"] = latents(pipe)
    torch.save(results, output)


if __name__ == "__main__":
    main([Path(file) for file in json.loads(sys.argv[1])], Path(sys.argv[2]))
