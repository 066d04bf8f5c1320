"""Damaged IP-Adapters and ControlNets, and the readers that they are fed to."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.models.controlnet import ControlNetModel
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from tests.checkpoints.original.test_controlnet import original_name
from tests.faults.hostile_files import safetensors_bytes
from tests.fuzz.damage import ODD, any_bytes, changed_often, json_bytes
from tests.fuzz.weights import damaged, header_of, parts_of, saved, with_other_shapes
from tests.pipelines.ip_adapters import KINDS, random_adapter
from tests.pipelines.tiny import tiny_controlnet, tiny_pipeline

# IP-Adapters


@cache
def _pipeline() -> StableDiffusionPipeline:
    return tiny_pipeline()


@cache
def _adapters() -> tuple[dict[str, dict[str, Tensor]], ...]:
    unet = _pipeline().unet
    return tuple(random_adapter(unet, kind, loras=kind == "face", depth=1) for kind in KINDS)


@cache
def _flat() -> tuple[bytes, ...]:
    return tuple(
        saved({f"{table}.{name}": t for table, part in one.items() for name, t in part.items()})
        for one in _adapters()
    )


def ip_adapter(r: random.Random) -> bytes:
    """A safetensors file with other bytes, a changed header, or tensors under other names."""
    sound = r.choice(_flat())
    if r.random() < 0.4:
        return damaged(r, sound, r.choice(_flat()))
    header, data = parts_of(sound)
    tensors = {name: (entry, data[slice(*entry["data_offsets"])]) for name, entry in header.items()}
    for _ in range(r.choice([0, 1, 1, 2, 4])):
        if not tensors:
            break
        name = r.choice(list(tensors))
        entry, raw = tensors.pop(name)
        match r.randrange(4):
            case 0:
                continue
            case 1:
                name = _renamed(r, name)
            case 2:
                entry = {**entry, "shape": entry["shape"][::-1]}
            case _:
                entry = {**entry, "dtype": r.choice(["I32", "U32", "F16", "C64", "BOOL"])}
        tensors[name] = entry, raw
    return _laid_out(r, tensors)


def _laid_out(r: random.Random, tensors: Mapping[str, tuple[dict[str, Any], bytes]]) -> bytes:
    header, position = {}, 0
    for name, (entry, raw) in tensors.items():
        header[name] = {**entry, "data_offsets": [position, position + len(raw)]}
        position += len(raw)
    return safetensors_bytes(json_bytes(r, header), b"".join(raw for _, raw in tensors.values()))


def _renamed(r: random.Random, name: str) -> str:
    others = ("to_k_ip", "to_v_ip", "proj.weight", "latents", "norm.bias", "to_q_lora.up.weight")
    table, _, rest = name.partition(".")
    number, _, leaf = rest.partition(".")
    return r.choice(
        [
            f"{table}.{r.choice(others)}",
            f"{table}.{r.choice(['1', '99', '-1', 'x', '٣', '1' * 5000])}.{leaf}",
            f"{r.choice(['image_proj', 'ip_adapter', '', 'unet'])}.{rest}",
            f"{table}.{number}.{r.choice(others)}.weight",
            str(r.choice(ODD)),
        ]
    )


def pickled_ip_adapter(r: random.Random) -> bytes:
    """A file of torch's in which a table, a name or a tensor is something else."""
    content: Any = {table: dict(part) for table, part in r.choice(_adapters()).items()}
    for _ in range(r.choice([0, 1, 2])):
        table = r.choice(list(content) or ["image_proj"])
        part = content.get(table)
        match r.randrange(4):
            case 0:
                content[table] = r.choice(ODD)
            case 1 if isinstance(part, dict) and part:
                part[r.choice(list(part))] = r.choice(ODD)
            case 2 if isinstance(part, dict) and part:
                name = r.choice(list(part))
                part[_renamed(r, f"{table}.{name}").partition(".")[2]] = part.pop(name)
            case _:
                content = {**content, r.choice(["image_proj", "extra", 3]): torch.ones(2)}
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=r.random() < 0.8)
    data = file.getvalue()
    return any_bytes(r, data, _flat()[0]) if r.random() < 0.3 else data


def read_ip_adapter(path: Path) -> None:
    """Load an adapter; whatever comes of it, the network is as before."""
    pipe = _pipeline()
    try:
        pipe.load_ip_adapter(str(path.parent), "", path.name, image_encoder_folder=None)
    finally:
        pipe.unload_ip_adapter()
    assert pipe.unet.encoder_hid_proj is None


# ControlNets


@cache
def _controlnet() -> ControlNetModel:
    return tiny_controlnet(conditioning_embedding_out_channels=(4, 8, 12, 16))


CONTROL_WEIGHTS = "diffusion_pytorch_model.safetensors"


@cache
def controlnet_weights() -> Mapping[str, bytes]:
    """Sound weights of a ControlNet's folder."""
    return {CONTROL_WEIGHTS: saved(dict(_controlnet().state_dict()))}


@cache
def controlnet_settings() -> Mapping[str, bytes]:
    """The sound configuration of a ControlNet's folder."""
    return {"config.json": json.dumps(_settings()).encode()}


def _settings() -> dict[str, Any]:
    return json.loads(json.dumps(_controlnet().config.to_dict()))


def controlnet_config(r: random.Random) -> bytes:
    return json_bytes(r, changed_often(r, _settings()))


def controlnet_folder(r: random.Random) -> bytes:
    return damaged(r, controlnet_weights()[CONTROL_WEIGHTS], _flat()[0])


def read_controlnet_folder(path: Path) -> None:
    ControlNetModel.from_pretrained(path.parent)


@cache
def _original() -> dict[str, Any]:
    net = _controlnet()
    return header_of({original_name(net, k): v for k, v in net.state_dict().items()})


def controlnet_file(r: random.Random) -> bytes:
    """A ControlNet in one file, in the original layout, with other names and shapes."""
    return with_other_shapes(r, _original())


def read_controlnet_file(path: Path) -> None:
    ControlNetModel.from_single_file(path)
