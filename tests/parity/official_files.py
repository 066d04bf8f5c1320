"""Synthetic checkpoints with the published names and shapes, and folders of configurations.

The names come from the original code, not from the rules under test; see the head of
``official_keys.txt.xz``.
"""

from __future__ import annotations

import json
import lzma
import math
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sfumato import CLIPTokenizer
from sfumato.checkpoints.original.families import family

Shape = tuple[int, ...]

#: The published checkpoints, and the family that each belongs to.
OFFICIAL = {
    "stable-diffusion-v1": "stable-diffusion-v1",
    "stable-diffusion-v1-ema": "stable-diffusion-v1",
    "stable-diffusion-v1-inpainting": "stable-diffusion-v1-inpainting",
    "instruct-pix2pix": "instruct-pix2pix",
    "stable-diffusion-v2": "stable-diffusion-v2",
    "stable-diffusion-v2-v": "stable-diffusion-v2-v",
    "stable-diffusion-v2-inpainting": "stable-diffusion-v2-inpainting",
    "stable-diffusion-x4-upscaler": "stable-diffusion-x4-upscaler",
}

#: What tells velocity from noise in Stable Diffusion 2: the spread of this tensor.
_TELLING = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


@cache
def official_shapes(name: str) -> dict[str, Shape]:
    """The names and shapes in a published checkpoint."""
    text = lzma.decompress((Path(__file__).parent / "official_keys.txt.xz").read_bytes()).decode()
    wanted = name.removesuffix("-v")
    block = next(b for b in text.split("\n# ") if b.startswith(f"{wanted}\n"))
    pairs = (line.split(" ") for line in block.splitlines()[1:])
    return {key: tuple(map(int, sizes.split(","))) if sizes else () for key, sizes in pairs}


def is_integer(key: str) -> bool:
    """Whether the tensor holds integers rather than 16-bit numbers."""
    return key.endswith(("position_ids", "num_updates"))


def write_holes(shapes: dict[str, Shape], path: Path) -> Path:
    """A 16-bit file of zeros that takes no disk."""
    header, position = {}, 0
    for key, shape in shapes.items():
        integer = is_integer(key)
        stop = position + (8 if integer else 2) * math.prod(shape)
        dtype = "I64" if integer else "F16"
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    return path


def write_random(name: str, path: Path) -> Path:
    """A 16-bit file of random numbers at which activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    pool = torch.randn(1 << 24, generator=generator)
    tensors = {
        key: _numbers(key, shape, pool, generator) for key, shape in official_shapes(name).items()
    }
    if "-v2" in name:
        spread = 0.1 if name.endswith("-v") else 0.08
        tensors[_TELLING] = spread * torch.tensor([1.0, -1.0]).repeat(160).half()
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors, "global_step": 875_000}, path)
    else:
        save_file(tensors, path)
    return path


def _numbers(key: str, shape: Shape, pool: Tensor, generator: torch.Generator) -> Tensor:
    if is_integer(key):
        return torch.arange(math.prod(shape)).reshape(shape)
    count = math.prod(shape)
    start = int(torch.randint(1 << 20, (), generator=generator))
    rounds = -(-(start + count) // pool.numel())
    numbers = (pool if rounds == 1 else pool.repeat(rounds))[start : start + count].reshape(shape)
    if len(shape) == 1 and key.endswith("weight"):
        return (1 + 0.1 * numbers).half()  # of a norm
    if len(shape) < 2:
        return (0.1 * numbers).half()
    return (numbers * math.prod(shape[1:]) ** -0.5).half()


def write_configs(name: str, folder: Path) -> Path:
    """A folder in diffusers' layout without weights, as published beside the checkpoint."""
    kind = family(OFFICIAL[name])
    classes = {
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "scheduler": ("diffusers", kind.scheduler["_class_name"]),
    }
    absent = ("safety_checker", "feature_extractor", "image_encoder")
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    index |= {name: [None, None] for name in absent}
    contents = {
        "unet/config.json": {"_class_name": "UNet2DConditionModel", **kind.unet},
        "vae/config.json": {"_class_name": "AutoencoderKL", **kind.vae},
        "text_encoder/config.json": {"architectures": ["CLIPTextModel"], **kind.text_encoder},
        "scheduler/scheduler_config.json": kind.scheduler,
        "model_index.json": {**index, **classes},
    }
    CLIPTokenizer(**kind.tokenizer).save_pretrained(folder / "tokenizer")
    for path, values in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(dict(values)))
    return folder
