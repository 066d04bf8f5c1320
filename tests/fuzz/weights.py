"""Sound files of weights, and damaged ones made of them: safetensors, torch's files, pickles.

Each function that takes a generator makes the content of one damaged file.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints.original.saving import original_tensors
from sfumato.checkpoints.pickle_machine import read_pickle_data
from sfumato.checkpoints.tensors import TORCH_DTYPES
from sfumato.checkpoints.torch_rebuild import Storage, call, storage_of
from tests.adapters.files_like import FAMILIES, kohya_file, norm_file, peft_file
from tests.checkpoints.gguf.raw import RawFile, RawTensor, note, text
from tests.checkpoints.original.synthetic import (
    checkpoint_tensors,
    networks,
    small_configs,
)
from tests.faults import hostile_pickles
from tests.faults.hostile_files import in_legacy_torch, safetensors_bytes, torch_bytes
from tests.fuzz.damage import ODD, any_bytes, changed, changed_often, flipped, json_bytes
from tests.fuzz.programs import instructions, rewritten
from tests.pipelines.tiny import tiny_unet
from tests.pipelines.tiny_latent import tiny_unet_2d, tiny_vq

STATE = {
    "conv_in.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
    "conv_in.bias": torch.ones(2, dtype=torch.float16),
    "scale": torch.full((3,), 0.5, dtype=torch.float64),
    "position_ids": torch.arange(5)[None],
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(1.5),
}
VECTORS = {"<cat>": torch.linspace(-1, 1, 2 * 768).reshape(2, 768)}

#: What kohya's scripts and the ``modelspec`` standard write beside the tensors.
NOTES = {
    "ss_tag_frequency": json.dumps({"10_cat": {"cat": 7, "a hat": 2}}),
    "ss_datasets": json.dumps([{"tag_frequency": {"x": {"dog": 1}}}]),
    "ss_base_model_version": "sd_v1",
    "ss_network_dim": "4",
    "modelspec.architecture": "stable-diffusion-v1/lora",
    "modelspec.trigger_phrase": "cat, hat",
    "lora_adapter_metadata": json.dumps(
        {"unet.r": 4, "unet.lora_alpha": 2, "unet.alpha_pattern": {"mid": 3}}
    ),
}


# Safetensors


def parts_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a sound file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def saved(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """As `safetensors.torch.save`, whose order of metadata differs from process to process."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        offsets = [len(data), len(data) + len(raw)]
        dtype = _NAMES_OF_DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        data += raw
    return safetensors_bytes(header, data)


_NAMES_OF_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def damaged(r: random.Random, sound: bytes, other: bytes) -> bytes:
    if r.random() < 0.3:
        return any_bytes(r, sound, other)
    header, data = parts_of(sound)
    raw = safetensors_bytes(json_bytes(r, changed_often(r, header)), data)
    return struct.pack("<Q", r.choice(ODD_LENGTHS)) + raw[8:] if r.random() < 0.03 else raw


ODD_LENGTHS = (0, 1, 8, 2**31, 2**63, 2**64 - 1, 100_000_000, 100_000_001)


@cache
def _plain() -> bytes:
    return saved(STATE, {"format": "pt", **NOTES})


def safetensors(r: random.Random) -> bytes:
    return damaged(r, _plain(), _torch_files()[0])


def checkpoint(r: random.Random) -> bytes:
    """A Stable Diffusion checkpoint with other names and shapes."""
    return with_other_shapes(r, _stable_diffusion())


def latent_checkpoint(r: random.Random) -> bytes:
    """A checkpoint of an unconditional model of the latent diffusion paper, likewise."""
    return with_other_shapes(r, _latent_diffusion())


@cache
def _stable_diffusion() -> dict[str, Any]:
    return header_of(checkpoint_tensors(networks(small_configs("stable-diffusion-v1"))))


@cache
def _latent_diffusion() -> dict[str, Any]:
    unet = tiny_unet_2d(attention_head_dim=32, norm_num_groups=32, downsample_type="resnet")
    tensors = original_tensors("unet", unet) | original_tensors("vae", tiny_vq())
    return header_of({**tensors, "scale_factor": torch.tensor(0.2)})


def header_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The header of a file with these tensors in float16."""
    header, position = {}, 0
    for name, tensor in tensors.items():
        size = 2 * tensor.numel()
        offsets = [position, position + size]
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": offsets}
        position += size
    return header


def with_other_shapes(r: random.Random, sound: Mapping[str, Any]) -> bytes:
    """Names and shapes of a checkpoint, some of them changed; offsets mostly follow the shapes."""
    names = sorted(sound)
    header: dict[str, Any] = {name: list(entry["shape"]) for name, entry in sound.items()}
    for _ in range(r.choice([1, 1, 2, 5, 300])):
        name = r.choice(names)
        match r.randrange(5):
            case 0:
                header.pop(name, None)
            case 1:
                header[name.replace(r.choice("0123"), r.choice(["4", "99", "x"]))] = [1]
            case _:
                header[name] = _other_shape(r, sound[name]["shape"])
    position, table = 0, {}
    for name, shape in header.items():
        size = 2
        for length in shape:
            size *= length
        table[name] = {"dtype": "F16", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    position = min(position, 2**26)
    return safetensors_bytes(table, bytes(position))


def _other_shape(r: random.Random, shape: list[int]) -> list[int]:
    choices = [[], [0], [1], shape[::-1], [*shape, 1], shape[:-1], [3] * len(shape), [2] * 9]
    return r.choice(choices)


# Torch's files


def _lightning() -> dict[str, Any]:
    """A checkpoint as training programs leave it, with everything beside the weights."""
    callback = OrderedDict(monitor="val/loss", best=0.25, steps=[1, 2, 3], when=(True, None))
    return {
        "epoch": 3,
        "global_step": 470000,
        "state_dict": OrderedDict(STATE),
        "callbacks": {"ModelCheckpoint": callback},
        "optimizer_states": [{"state": {0: {"step": 5, "exp_avg": STATE["scale"]}}}],
        "set": {1, 2},
        "bytes": b"\0\xff",
    }


def _a1111() -> dict[str, Any]:
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": VECTORS["<cat>"]},
        "name": "<cat>",
        "step": 500,
        "sd_checkpoint": None,
        "sd_checkpoint_name": "v1-5",
    }


@cache
def _contents() -> tuple[Any, ...]:
    module = torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS["<cat>"])})
    view = {"a": STATE["conv_in.weight"][:, 1], "b": STATE["conv_in.weight"].mT[0]}
    return (
        STATE,
        _lightning(),
        _a1111(),
        {"string_to_param": module},
        VECTORS,
        view,
        VECTORS["<cat>"],
    )


@cache
def _torch_files() -> tuple[bytes, ...]:
    return tuple(torch_bytes(content) for content in _contents())


@cache
def _archives() -> tuple[dict[str, bytes], ...]:
    """Members of each archive by name."""
    archives = []
    for data in _torch_files():
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archives.append({name: archive.read(name) for name in archive.namelist()})
    return tuple(archives)


@cache
def _legacy_files() -> tuple[bytes, ...]:
    return tuple(_as_legacy(members) for members in _archives())


def _as_legacy(members: Mapping[str, bytes]) -> bytes:
    """The content of an archive in the older layout, in which torch writes addresses as names."""
    pickled = members["archive/data.pkl"]
    storages: dict[str, Storage] = {}

    def keep(reference: Any) -> Storage:
        storage = storage_of(reference)
        return storages.setdefault(storage.key, storage)

    read_pickle_data(pickled, call=call, persistent=keep)
    start = in_legacy_torch(pickled).removesuffix(pickle.dumps([], 2))
    numbers = (
        struct.pack("<Q", storage.size) + members[f"archive/data/{key}"]
        for key, storage in storages.items()
    )
    return start + pickle.dumps(list(storages), 2) + b"".join(numbers)


@cache
def _programs() -> tuple[list[bytes], ...]:
    """Pickles cut into opcodes: those of sound files, of every protocol, and hostile ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sound = [archive[name] for archive in _archives() for name in archive if "pkl" in name]
        plain = [pickle.dumps(_plain_values(), protocol) for protocol in range(6)]
    ways = hostile_pickles.calls("touch canary").values()
    hostile = [hostile_pickles.result(body) for body in ways]
    return tuple(instructions(program) for program in [*sound * 3, *plain * 2, *_readable(hostile)])


def _readable(programs: list[bytes]) -> list[bytes]:
    """Those whose opcodes can be told apart, which a few do not allow."""
    readable = []
    for program in programs:
        try:
            instructions(program)
        except ValueError:
            continue
        readable.append(program)
    return readable


def _plain_values() -> dict[str, Any]:
    table = {k: v for k, v in _lightning().items() if k not in ("state_dict", "optimizer_states")}
    return {**table, "text": "ü\n'\\", "float": -1.5e-9, "long": 2**70, "negative": -7}


def program(r: random.Random) -> bytes:
    programs = _programs()
    pickled = rewritten(r, r.choice(programs), r.choice(programs))
    return flipped(r, pickled) if r.random() < 0.1 else pickled


def torch_zip(r: random.Random) -> bytes:
    """An archive damaged without regard to its format, or with its members in disorder."""
    if r.random() < 0.5:
        sound = _torch_files()
        return any_bytes(r, r.choice(sound), r.choice(sound))
    return _archive(r, list(r.choice(_archives()).items()), damage=True)


def program_in_zip(r: random.Random) -> bytes:
    """A sound archive around a mutated pickle."""
    members = dict(r.choice(_archives()))
    pickled = next(name for name in members if name.endswith("data.pkl"))
    return _archive(r, [*{**members, pickled: program(r)}.items()], damage=r.random() < 0.05)


_NAMES = ("archive/data.pkl", "archive/data/0", "../x", "/x", "archive/constants.pkl", "data.pkl",
          "archive/../x", "C:\\x", "x/byteorder", "archive\\data.pkl", "", "x" * 300)  # fmt: skip


def _archive(r: random.Random, members: list[tuple[str, bytes]], *, damage: bool) -> bytes:
    buffer = io.BytesIO()
    stored = zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", stored) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, content in _disordered(r, members) if damage else members:
            info = zipfile.ZipInfo(name)
            if damage and r.random() < 0.05:
                info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    data = buffer.getvalue()
    return flipped(r, data) if damage and r.random() < 0.3 else data


def _disordered(r: random.Random, members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    members = list(members)
    for _ in range(r.choice([1, 1, 2])):
        place = r.randrange(len(members))
        name, content = members[place]
        match r.randrange(5):
            case 0:
                del members[place]
            case 1:
                members.append((name, flipped(r, content)))
            case 2:
                members[place] = (r.choice(_NAMES), content)
            case 3:
                members[place] = (name, flipped(r, content))
            case _:
                r.shuffle(members)
        if not members:
            break
    return members


def legacy(r: random.Random) -> bytes:
    sound = _legacy_files()
    match r.randrange(4):
        case 0:
            return in_legacy_torch(program(r))
        case 1:
            return in_legacy_torch(program(r)) + r.choice(sound)[-200:]
        case _:
            return any_bytes(r, r.choice(sound), r.choice(sound))


# Adapters and embeddings


@cache
def _adapters() -> tuple[bytes, ...]:
    unet = {"unet": tiny_unet()}
    made = [kohya_file(unet, family) for family in FAMILIES]
    made += [peft_file(unet), norm_file(unet["unet"])]
    files = []
    for tensors in made:
        some = {name: t for name, t in tensors.items() if "mid_block" in name}
        files.append(saved(dict(list(some.items())[:24]), NOTES))
    return tuple(files)


def adapter(r: random.Random) -> bytes:
    sound = r.choice(_adapters())
    if r.random() < 0.3:
        return damaged(r, sound, r.choice(_adapters()))
    header, data = parts_of(sound)
    for _ in range(r.choice([1, 2, 4])):
        name = r.choice(list(header))
        entry = header[name]
        match r.randrange(5):
            case 0:  # another name, which may be another part of the same layer
                stem, _, leaf = name.partition(".")
                other = r.choice([leaf, "alpha", "lora_up.weight", "hada_w1_a", "lokr_w2", "diff"])
                header[r.choice([f"{stem}.{other}", name[:-3], str(r.choice(ODD))])] = header.pop(
                    name
                )
            case 1 if isinstance(entry, dict) and isinstance(entry.get("shape"), list):
                entry["shape"] = entry["shape"][::-1]
            case 2 if isinstance(entry, dict):
                entry["dtype"] = r.choice(["F16", "I32", "C64", "BF16", "F64", "BOOL", "F8_E4M3"])
            case 3:
                data = flipped(r, data)[: len(data)].ljust(len(data), b"\xff")
            case _:
                header = changed(r, header)
                if not isinstance(header, dict) or not header:
                    return safetensors_bytes(json.dumps(header))
    return safetensors_bytes(json_bytes(r, header), data)


@cache
def _embeddings() -> tuple[bytes, ...]:
    return tuple(saved(table) for table in (
        VECTORS, {"emb_params": VECTORS["<cat>"]}, {"clip_l": torch.ones(1, 768),
        "clip_g": torch.ones(1, 1280)}, {"a": torch.ones(1024)},
    ))  # fmt: skip


def embedding(r: random.Random) -> bytes:
    if r.random() < 0.3:
        return any_bytes(r, r.choice(_torch_files()[2:]), r.choice(_embeddings()))
    return damaged(r, r.choice(_embeddings()), r.choice(_torch_files()))


# GGUF


@cache
def _gguf() -> bytes:
    """A few tensors of several types, notes of all kinds."""
    kinds = [(0, [3, 2], 24), (8, [32, 2], 68), (2, [64], 36), (12, [256], 144), (1, [5], 10)]
    tensors, data = [], b""
    for number, (kind, sizes, length) in enumerate(kinds):
        tensors.append(RawTensor(f"blocks.{number}.weight", sizes, kind, len(data)))
        data += bytes(range(length)) + bytes(-length % 32)
    notes = [
        note("general.name", 8, text("a model")),
        note("general.alignment", 4, struct.pack("<I", 32)),
        note("comfy.gguf.orig_shape.blocks.0.weight", 9, struct.pack("<IQ2i", 5, 2, 3, 2)),
        note("tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("bc")),
        note("numbers", 9, struct.pack("<IQ6f", 6, 6, *range(6))),
    ]
    return RawFile(tensors, notes, data=data).content()


def gguf(r: random.Random) -> bytes:
    return _gguf() if r.random() < 0.02 else any_bytes(r, _gguf(), _plain())
