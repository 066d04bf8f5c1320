"""Sound pictures, configurations and vocabularies, and damaged ones made of them.

Each function that takes a generator makes the content of one damaged file.
"""

from __future__ import annotations

import base64
import json
import random
import struct
import tempfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from sfumato.checkpoints.exif import write_exif
from sfumato.checkpoints.metadata import Recipe, recipe_to_texts, to_infotext, to_json
from sfumato.models.unet import UNet2DConditionModel
from sfumato.safety.image_processor import CLIPImageProcessorConfig
from sfumato.schedulers.storage import all_classes, all_fields
from tests.checkpoints.original.synthetic import (
    original_yaml,
)
from tests.checkpoints.tiny import TEXT, UNET, VAE, tiny_pipeline
from tests.fuzz.damage import ODD, any_bytes, changed, changed_often, flipped, json_bytes

# Pictures


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A picture of one pixel with chunks of text, whatever is in them."""
    body = (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)), *chunks, (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in body
    )


@cache
def _recipe() -> Recipe:
    return Recipe(
        prompt="a (red:1.2) cat", negative_prompt="dogs", steps=20, sampler="Euler a",
        cfg_scale=7.0, seed=5, width=512, height=512, model="a, b", extra={"Face": "yes"},
    )  # fmt: skip


def _text_chunk(r: random.Random, keyword: bytes, text: bytes) -> tuple[bytes, bytes]:
    match r.randrange(4):
        case 0:
            return b"zTXt", keyword + b"\0\0" + zlib.compress(text, 1)
        case 1:
            return b"iTXt", keyword + b"\0\0\0\0\0" + text
        case 2:
            packed = flipped(r, zlib.compress(text, 1))
            return r.choice([(b"zTXt", keyword + b"\0\0" + packed),
                             (b"iTXt", keyword + b"\0\1\0\0\0" + packed)])  # fmt: skip
        case _:
            return b"tEXt", keyword + b"\0" + text


def picture(r: random.Random) -> bytes:
    exact = json_bytes(r, changed(r, json.loads(to_json(_recipe()))))
    chunks = [_text_chunk(r, b"sfumato", exact), _text_chunk(r, b"parameters", infotext(r))]
    r.shuffle(chunks)
    data = png(*chunks[: r.choice([1, 2, 2])])
    return any_bytes(r, data, png()) if r.random() < 0.4 else data


def jpeg(r: random.Random) -> bytes:
    """A JPEG without pixels, damaged anywhere or in its EXIF data."""
    data = _exif(r)
    segment = b"\xff\xe1" + struct.pack(">H", min(2 + len(data), 0xFFFF)) + data[:0xFFFD]
    text = b"parameters\0" + infotext(r)[:60_000]
    said = b"\xff\xfe" + struct.pack(">H", 2 + len(text)) + text
    parts = r.choice([[segment], [said], [said, segment], [segment, segment]])
    whole = b"\xff\xd8" + b"".join(parts) + b"\xff\xd9"
    return any_bytes(r, whole, png()) if r.random() < 0.4 else whole


def webp(r: random.Random) -> bytes:
    """A WebP without pixels, damaged anywhere or in its EXIF data or XMP."""
    xmp = b"<sdcpp:parameters>" + infotext(r) + b"&#xD800;&lt;</sdcpp:parameters>"
    chunks = [(b"EXIF", _exif(r)), (b"XMP ", flipped(r, xmp) if r.random() < 0.3 else xmp)]
    r.shuffle(chunks)
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
        for kind, data in chunks[: r.choice([1, 2])]
    )
    whole = b"RIFF" + struct.pack("<I", len(body)) + body
    return any_bytes(r, whole, png()) if r.random() < 0.4 else whole


def _exif(r: random.Random) -> bytes:
    texts = recipe_to_texts(_recipe())
    data = write_exif({name: texts[name] for name in r.sample(list(texts), r.choice([1, 2]))})
    head = r.choice([14, 60, 90])  # the tables, mostly
    return any_bytes(r, data[:head], data) + data[head:] if r.random() < 0.7 else data


_PIECES = (b"Steps: 1, ", b": ", b", ", b"\n", b'"', b"\\", b"Negative prompt: ",
           b"Seed: -1, " * 50, b"Size: 9999999x0, ", b'a: "', b" " * 2000,
           b"a" * 100_000)  # fmt: skip


def infotext(r: random.Random) -> bytes:
    text = to_infotext(_recipe()).encode()
    for _ in range(r.choice([1, 2, 3])):
        place = r.randrange(len(text) + 1)
        text = text[:place] + r.choice(_PIECES) + text[place:]
    return flipped(r, text)


def embedding_picture(r: random.Random) -> bytes:
    values = [[round(number, 3) for number in row] for row in torch.ones(2, 16).tolist()]
    content = {"string_to_param": {"*": {"TORCHTENSOR": values}}, "name": "<cat>", "step": 5}
    raw = json_bytes(r, changed_often(r, content))
    text = base64.b64encode(raw)
    data = png(_text_chunk(r, b"sd-ti-embedding", flipped(r, text) if r.random() < 0.1 else text))
    return any_bytes(r, data, png()) if r.random() < 0.2 else data


# Configurations


def config(network: Any) -> Callable[[random.Random], bytes]:
    """A maker of configurations of a network's class."""
    small = {"UNet2DConditionModel": UNET, "AutoencoderKL": VAE, "CLIPTextModel": TEXT}

    sound = network.config_class.from_dict(small.get(network.__name__, {})).to_dict()

    def make(r: random.Random) -> bytes:
        return json_bytes(r, changed_often(r, sound))

    return make


@cache
def _schedulers() -> tuple[dict[str, Any], ...]:
    return tuple({k: v for k, v in c().config.items() if k[0] != "_"} for c in all_classes())


def scheduler(r: random.Random) -> bytes:
    values = dict(r.choice(_schedulers()))
    if r.random() < 0.3:
        values[r.choice(sorted(all_fields()))] = r.choice(ODD)
    return json_bytes(r, changed_often(r, values))


def image_processor(r: random.Random) -> bytes:
    return json_bytes(r, changed_often(r, CLIPImageProcessorConfig().to_dict()))


def original_config(r: random.Random) -> bytes:
    if r.random() < 0.5:
        return json_bytes(r, changed_often(r, original_yaml()))
    import yaml  # not every installation has it

    values = changed_often(r, original_yaml(cond_stage_config=None, first_stage_config=None))
    text = yaml.safe_dump(_printable(values), default_flow_style=r.choice([True, False, None]))
    tricks = [
        "&a [*a]",
        "!!python/object/apply:os.system ['x']",
        "*a",
        "!!binary x",
        "1e400",
        "&a " + "[" * 300,
        "2001-99-01",
        "0o7",
        "!!set {a, b}",
        "? [a]\n: b",
        "%TAG ! x",
    ]
    if r.random() < 0.4:
        text = text.replace(r.choice(["4", "32", "model", "null"]), r.choice(tricks), 1)
    return flipped(r, text.encode()) if r.random() < 0.4 else text.encode()


def _printable(value: Any) -> Any:
    """The value without lone surrogates, which YAML cannot write."""
    return json.loads(json.dumps(value).replace("\\ud800", "?"))


# Folders


@cache
def folder() -> Mapping[str, bytes]:
    """A pipeline's folder without its index, and with the weights of the UNet alone."""
    with tempfile.TemporaryDirectory() as place:
        tiny_pipeline().save_pretrained(place)
        files = [path for path in Path(place).rglob("*") if path.is_file()]
        return {
            str(path.relative_to(place)): path.read_bytes()
            for path in files
            if path.name != "model_index.json" and path.parent.name not in ("vae", "text_encoder")
        }


def model_index(r: random.Random) -> bytes:
    sound = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.35.2",
        "scheduler": ["diffusers", "PNDMScheduler"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "safety_checker": [None, None],
        "requires_safety_checker": True,
    }
    return json_bytes(r, changed_often(r, sound))


SHARD_INDEX = "diffusion_pytorch_model.safetensors.index.json"


@cache
def shards() -> Mapping[str, bytes]:
    """A tiny UNet in two files, without the index that says what is where."""
    state = UNet2DConditionModel(UNET).state_dict()
    halves: list[dict[str, Tensor]] = [{}, {}]
    for number, (name, tensor) in enumerate(state.items()):
        halves[number % 2][name] = tensor
    files = {_shard(n): save(half) for n, half in enumerate(halves)}
    return {**files, "config.json": json.dumps(UNET).encode()}


def _shard(number: int) -> str:
    return f"diffusion_pytorch_model-{number + 1:05}-of-00002.safetensors"


@cache
def _weight_map() -> dict[str, str]:
    state = UNet2DConditionModel(UNET).state_dict()
    return {name: _shard(number % 2) for number, name in enumerate(state)}


def shard_index(r: random.Random) -> bytes:
    weight_map: Any = dict(_weight_map())
    for _ in range(r.choice([0, 1, 2])):
        name = r.choice(list(weight_map))
        weight_map[name] = r.choice(["../x", "/etc/passwd", _shard(0), "config.json", *ODD])
    return json_bytes(
        r, changed_often(r, {"metadata": {"total_size": 5}, "weight_map": weight_map})
    )


# Tokenizers


def _tokens() -> dict[str, int]:
    tokens = [*"abc,<>x", "a</w>", "b</w>", "c</w>", "ab", "ab</w>", "<|startoftext|>",
              "<|endoftext|>"]  # fmt: skip
    return {token: index for index, token in enumerate(tokens)}


_MERGES = b"#version: 0.2\na b\na b</w>\n"


def tokenizer() -> Mapping[str, bytes]:
    """The files of a tokenizer's folder."""
    settings = json.dumps({"model_max_length": 77}).encode()
    return {
        "vocab.json": json.dumps(_tokens()).encode(),
        "merges.txt": _MERGES,
        "tokenizer_config.json": settings,
    }


def vocabulary(r: random.Random) -> bytes:
    return json_bytes(r, changed_often(r, _tokens()))


def merges(r: random.Random) -> bytes:
    return flipped(r, _MERGES * r.choice([1, 1, 200]))


def tokenizer_settings(r: random.Random) -> bytes:
    token = {"content": "<x>", "lstrip": False, "normalized": False, "special": True}
    sound = {
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": {"content": "<|endoftext|>"},
        "pad_token": "<|endoftext|>",
        "padding_side": "right",
        "added_tokens_decoder": {str(len(_tokens())): token},
        "additional_special_tokens": ["<x>"],
    }
    return json_bytes(r, changed_often(r, sound))


def tokenizer_json(r: random.Random) -> bytes:
    added = [{"id": len(_tokens()), "content": "<x>", "special": True}]
    model = {"type": "BPE", "vocab": _tokens(), "merges": ["a b", ["a", "b</w>"]]}
    return json_bytes(r, changed_often(r, {"model": model, "added_tokens": added}))
