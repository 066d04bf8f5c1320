"""Random IP-Adapters in the published layout, and what to feed them with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sfumato.models.ip_adapter import cross_attention_layers
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from sfumato.safety.image_processor import CLIPImageProcessor
from sfumato.text.clip_vision import CLIPVisionModelWithProjection
from tests.pipelines.tiny import seeded, tiny_pipeline

KINDS = ("plain", "plus", "full", "face", "face plus")

#: Width of the image encoder's tokens, of its projection, and of a face's vector.
HIDDEN, PROJECTED, FACE = 16, 12, 10
#: Tokens of the image encoder: nine patches and one for all.
TOKENS = 10

VISION: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
    "projection_dim": PROJECTED,
}

Adapter = dict[str, dict[str, Tensor]]


def random_adapter(
    unet: Any, kind: str = "plain", seed: int = 0, *, loras: bool = False, depth: int = 4
) -> Adapter:
    """Tensors of an adapter for a UNet of this package, named as published files do."""
    generator = seeded(seed)

    def rand(*shape: int) -> Tensor:
        return 0.2 * torch.randn(shape, generator=generator)

    layers: dict[str, Tensor] = {}
    width = 0
    for k, (path, layer) in enumerate(cross_attention_layers(unet).items()):
        assert layer.to_k is not None
        inner, width = layer.to_q.out_features, layer.to_k.in_features
        for x in "kv":
            layers[f"{2 * k + 1}.to_{x}_ip.weight"] = rand(inner, width)
        if loras:
            for i, own in enumerate((f"{path[:-1]}1", path)):
                layers |= _lora(2 * k + i, unet.get_submodule(own), rand)
    return {"image_proj": _PROJECTIONS[kind](rand, width, depth), "ip_adapter": layers}


def _lora(number: int, layer: Any, rand: Any) -> dict[str, Tensor]:
    tensors = {}
    for name in ("to_q", "to_k", "to_v", "to_out"):
        linear = layer.to_out[0] if name == "to_out" else getattr(layer, name)
        tensors[f"{number}.{name}_lora.down.weight"] = rand(2, linear.in_features)
        tensors[f"{number}.{name}_lora.up.weight"] = rand(linear.out_features, 2)
    return tensors


def _norm(name: str, width: int, rand: Any) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + rand(width), f"{name}.bias": rand(width)}


def _linear(name: str, rows: int, columns: int, rand: Any) -> dict[str, Tensor]:
    return {f"{name}.weight": rand(rows, columns), f"{name}.bias": rand(rows)}


def _plain(rand: Any, width: int, depth: int) -> dict[str, Tensor]:
    return _linear("proj", 4 * width, PROJECTED, rand) | _norm("norm", width, rand)


def _full(rand: Any, width: int, depth: int) -> dict[str, Tensor]:
    return {
        **_linear("proj.0", HIDDEN, HIDDEN, rand),
        **_linear("proj.2", width, HIDDEN, rand),
        **_norm("proj.3", width, rand),
    }


def _face(rand: Any, width: int, depth: int) -> dict[str, Tensor]:
    return {
        **_linear("proj.0", 2 * FACE, FACE, rand),
        **_linear("proj.2", 4 * width, 2 * FACE, rand),
        **_norm("norm", width, rand),
    }


def _resampler(rand: Any, inside: int, entry: int, width: int, depth: int) -> dict[str, Tensor]:
    tensors = {
        **_linear("proj_in", inside, entry, rand),
        **_linear("proj_out", width, inside, rand),
        **_norm("norm_out", width, rand),
    }
    for i in range(depth):
        tensors |= _norm(f"layers.{i}.0.norm1", inside, rand)
        tensors |= _norm(f"layers.{i}.0.norm2", inside, rand)
        tensors |= _norm(f"layers.{i}.1.0", inside, rand)
        tensors[f"layers.{i}.0.to_q.weight"] = rand(64, inside)
        tensors[f"layers.{i}.0.to_kv.weight"] = rand(128, inside)
        tensors[f"layers.{i}.0.to_out.weight"] = rand(inside, 64)
        tensors[f"layers.{i}.1.1.weight"] = rand(4 * inside, inside)
        tensors[f"layers.{i}.1.3.weight"] = rand(inside, 4 * inside)
    return tensors


def _plus(rand: Any, width: int, depth: int) -> dict[str, Tensor]:
    return {"latents": rand(1, 3, 20), **_resampler(rand, 20, HIDDEN, width, depth)}


def _face_plus(rand: Any, width: int, depth: int) -> dict[str, Tensor]:
    inner = _resampler(rand, width, HIDDEN, width, depth)
    return {
        **_linear("proj.0", 2 * FACE, FACE, rand),
        **_linear("proj.2", 4 * width, 2 * FACE, rand),
        **_norm("norm", width, rand),
        **{f"perceiver_resampler.{name}": tensor for name, tensor in inner.items()},
    }


_PROJECTIONS = {
    "plain": _plain,
    "plus": _plus,
    "full": _full,
    "face": _face,
    "face plus": _face_plus,
}


def random_embeds(kind: str, batch: int, pictures: int, seed: int = 0) -> Tensor:
    """What the image encoder, or a network for faces, would give."""
    shapes = {"plain": (PROJECTED,), "face": (FACE,), "face plus": (FACE,)}
    shape = (batch, pictures, *shapes.get(kind, (TOKENS, HIDDEN)))
    return torch.randn(shape, generator=seeded(seed))


def set_face_tokens(unet: Any, batch: int, pictures: int, shortcut: bool = False) -> None:
    """Give projections of the kind "face plus" the tokens that they need besides."""
    for layer in unet.encoder_hid_proj.image_projection_layers:
        if hasattr(layer, "clip_embeds"):
            shape = (batch, pictures, TOKENS, HIDDEN)
            layer.clip_embeds = torch.randn(shape, generator=seeded(5))
            layer.shortcut = shortcut


def tiny_encoder(seed: int = 8, **changes: Any) -> CLIPVisionModelWithProjection:
    """A random image encoder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLIPVisionModelWithProjection(**{**VISION, **changes}).eval()


def picture_pipeline(seed: int = 0, **changes: Any) -> StableDiffusionPipeline:
    """A tiny pipeline with an image encoder."""
    parts = {
        "image_encoder": tiny_encoder(),
        "feature_extractor": CLIPImageProcessor(size=24, crop_size=24),
    }
    return tiny_pipeline(seed, **{**parts, **changes})


def save_adapter(adapter: Adapter, path: Path) -> Path:
    """Write a file, ``.safetensors`` with flat names or a pickle with two tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        flat = {f"{table}.{k}": v for table, part in adapter.items() for k, v in part.items()}
        save_file(flat, path)
    else:
        torch.save(adapter, path)
    return path


def load(pipeline: Any, *adapters: Adapter, folder: str | None = None) -> None:
    """Load adapters from memory, into our pipeline or the oracle's."""
    pipeline.load_ip_adapter(
        list(adapters), [""] * len(adapters), ["x"] * len(adapters), image_encoder_folder=folder
    )
