"""A rank-32 LoRA for networks of Stable Diffusion 1.5's size: sfumato beside diffusers and PEFT.

    python -m benchmarks.lora --rounds 3

Both load the same file in kohya's layout, switch its strength, fuse and unfuse it; rounds alternate
and medians of the processor's time are compared. Needs diffusers, transformers and peft (extra
``test``), and some 10 GB of memory.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import StableDiffusionPipeline, UNet2DConditionModel
from sfumato.checkpoints.fitting import build_without_memory
from sfumato.checkpoints.tensors import save_safetensors
from sfumato.text.clip import CLIPTextModel

UNET = {"sample_size": 64, "cross_attention_dim": 768}
TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}


def filled(network: nn.Module) -> nn.Module:
    """The network with small random weights in memory."""
    network = network.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return network


def write_lora(folder: Path, networks: dict[str, nn.Module], rank: int) -> Path:
    """A file as kohya's scripts write it by default: attention, feed-forward, projections."""
    randn = torch.Generator().manual_seed(1)
    tensors: dict[str, Tensor] = {}
    for name, network in networks.items():
        for path, layer in network.named_modules():
            wide = isinstance(layer, nn.Linear) and any(p in path for p in ("attn", "ff.", "mlp"))
            if not wide and not path.endswith(("proj_in", "proj_out")):
                continue
            out, inputs, *kernel = layer.weight.shape
            key = PREFIXES[name] + path.replace(".", "_")
            shapes = {"lora_down": (rank, inputs, *kernel), "lora_up": (out, rank, *kernel)}
            for leaf, shape in shapes.items():
                value = 0.02 * torch.randn(shape, generator=randn)
                tensors[f"{key}.{leaf}.weight"] = value.half()
            tensors[f"{key}.alpha"] = torch.tensor(rank / 2)
    path = folder / "lora.safetensors"
    save_safetensors(tensors, path)
    print(f"{len(tensors) // 3} layers of rank {rank}, {path.stat().st_size / 1e6:.0f} MB")
    return path


def our_pipeline() -> Any:
    """The two networks that a LoRA changes, in a pipeline."""
    return StableDiffusionPipeline(
        vae=None,
        text_encoder=filled(build_without_memory(CLIPTextModel, TEXT)),
        tokenizer=None,
        unet=filled(build_without_memory(UNet2DConditionModel, UNET)),
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def oracle_pipeline() -> Any:
    """The same of diffusers and transformers."""
    import diffusers
    import transformers

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**UNET)
        text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT))
    return diffusers.StableDiffusionPipeline(
        vae=None,
        text_encoder=filled(text),
        tokenizer=None,
        unet=filled(unet),
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def seconds(action: Callable[[], Any]) -> float:
    """The processor's time that it takes."""
    start = time.process_time()
    action()
    return time.process_time() - start


def one_round(pipe: Any, file: Path) -> dict[str, float]:
    """What each step took; the pipeline is as it was before at the end."""
    both = ["unet", "text_encoder"]
    place = {"weight_name": file.name}
    return {
        "load": seconds(lambda: pipe.load_lora_weights(file.parent, adapter_name="a", **place)),
        "switch strength": seconds(lambda: pipe.set_adapters("a", 0.7)),
        "fuse": seconds(lambda: pipe.fuse_lora(components=both)),
        "unfuse": seconds(lambda: pipe.unfuse_lora(components=both)),
        "unload": seconds(pipe.unload_lora_weights),
    }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    pipes = {"sfumato": our_pipeline(), "diffusers": oracle_pipeline()}
    with tempfile.TemporaryDirectory() as folder:
        ours = pipes["sfumato"]
        networks = {"unet": ours.unet, "text_encoder": ours.text_encoder}
        file = write_lora(Path(folder), networks, options.rank)
        rounds = [{k: one_round(p, file) for k, p in pipes.items()} for _ in range(options.rounds)]
    print(f"{'':16}{'sfumato':>12}{'diffusers':>12}{'ratio':>8}")
    for step in rounds[0]["sfumato"]:
        mine, other = (statistics.median(r[k][step] for r in rounds) for k in pipes)
        print(f"{step:16}{mine:>10.3f} s{other:>10.3f} s{mine / other:>8.2f}")


if __name__ == "__main__":
    main()
