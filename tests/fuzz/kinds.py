"""The kinds of file there are: how a damaged one is made, and the readers that it is fed to."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

from sfumato.checkpoints.components import load_component
from sfumato.checkpoints.fitting import build_without_memory
from sfumato.checkpoints.gguf.tensors import read_gguf
from sfumato.checkpoints.inspection import inspect_file
from sfumato.checkpoints.jsonfile import read_json
from sfumato.checkpoints.metadata import parse_infotext
from sfumato.checkpoints.model_index import read_model_index
from sfumato.checkpoints.original.original_config import read_original_config
from sfumato.checkpoints.pickle_machine import PickleError, read_pickle_data
from sfumato.checkpoints.pickles import read_pickle, read_pickled
from sfumato.checkpoints.picture_files import read_recipe
from sfumato.checkpoints.source import open_source
from sfumato.checkpoints.tensors import read_safetensors
from sfumato.checkpoints.torch_rebuild import call, storage_of
from sfumato.checkpoints.weight_files import find_weights
from sfumato.errors import CheckpointError
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.autoencoder_tiny import AutoencoderTiny
from sfumato.models.unet import UNet2DConditionModel
from sfumato.models.unet_2d import UNet2DModel
from sfumato.models.vq_autoencoder import VQModel
from sfumato.pipelines.ldm import LDMPipeline
from sfumato.safety.checker import StableDiffusionSafetyChecker
from sfumato.safety.image_processor import CLIPImageProcessor
from sfumato.schedulers.storage import all_classes
from sfumato.text.clip import CLIPTextModel
from sfumato.text.clip_vision import CLIPVisionModelWithProjection
from sfumato.text.embedding_files import read_embedding
from sfumato.text.tokenizer import CLIPTokenizer
from tests.fuzz import cache as hub_cache
from tests.fuzz import conditioned, texts, weights
from tests.pipelines.tiny import tiny_unet

Reader = Callable[[Path], Any]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        file: its name, below a folder of the kind's own.
        make: a damaged file, which follows from the generator alone.
        readers: a file is fed to the first, and every fourth to another.
        share: how often it is made, beside the others; what is slow to read is made rarely.
        around: sound files beside it, by name.
        arrange: makes of the file what it tells of; its readers look at that.
    """

    file: str
    make: Callable[[random.Random], bytes]
    readers: tuple[Reader, ...]
    share: float = 1
    around: Callable[[], Mapping[str, bytes]] = dict
    arrange: Callable[[Path], None] | None = None

    def write(self, path: Path, content: bytes) -> None:
        """Put a file where its readers look for it."""
        path.write_bytes(content)
        if self.arrange is not None:
            self.arrange(path)

    def readers_of(self, content: bytes) -> tuple[Reader, ...]:
        """The readers that this file is fed to."""
        first, *others = self.readers
        turn, fourth = divmod(crc32(content), 4)
        return (first, others[turn % len(others)]) if others and not fourth else (first,)


def inspect(path: Path) -> Any:
    return inspect_file(path, hashes=False)


def verify(path: Path) -> Any:
    return inspect_file(path, hashes=False, verify=True)


def inspect_folder(path: Path) -> Any:
    return inspect_file(path.parent, hashes=False)


def build(network: Any) -> Reader:
    """Read a configuration; every 32nd that is accepted is built, without memory."""

    def read(path: Path) -> None:
        config = network.config_class.from_dict(read_json(path))
        if crc32(path.read_bytes()) % 32 == 0:
            build_without_memory(network, config)

    return read


def schedule(path: Path) -> None:
    """Make a scheduler; every fourth chooses a few steps."""
    values = read_json(path)
    classes = all_classes()
    sum_ = crc32(path.read_bytes())
    scheduler = classes[sum_ % len(classes)].from_config(values)
    if sum_ // 64 % 4 == 0:
        scheduler.set_timesteps(5)


def tokenize(path: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(path.parent)
    ids = tokenizer("a cat, <x>", padding=True).input_ids
    assert all(0 <= i < len(tokenizer) for i in ids)


def process(path: Path) -> None:
    CLIPImageProcessor.from_pretrained(path.parent)


def original(path: Path) -> None:
    config = read_original_config(path)
    UNet2DConditionModel.config_class.from_dict(config.unet)
    AutoencoderKL.config_class.from_dict(config.vae)


def index(path: Path) -> None:
    found = read_model_index(path.parent)
    for name in list(found.components)[:6]:
        load_component(found, name)


def shards(path: Path) -> None:
    names = {True: "diffusion_pytorch_model", False: "diffusion_pytorch_model"}
    find_weights(path.parent, names)
    UNet2DConditionModel.from_pretrained(path.parent)


@cache
def unet() -> UNet2DConditionModel:
    return tiny_unet()


def program(path: Path) -> None:
    """The machine for pickles alone, with the names that torch's files have."""
    try:
        read_pickle_data(path.read_bytes(), call=call, persistent=storage_of)
    except PickleError as error:
        raise CheckpointError(str(error)) from None


def adapter(path: Path) -> None:
    """Load an adapter; whatever comes of it, the network is as before."""
    network = unet()
    try:
        network.load_lora_adapter(path)
    finally:
        network.unload_lora()
    from sfumato.adapters.state import state_of

    assert state_of(network) is None


def infotext(path: Path) -> None:
    parse_infotext(path.read_bytes().decode("utf-8", "replace"))


def from_single_file(network: Any) -> Reader:
    def read(path: Path) -> None:
        network.from_single_file(path)

    return read


_PICKLES: tuple[Reader, ...] = (read_pickle, read_pickled, inspect, read_embedding)
_CONFIGS: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "tiny vae": AutoencoderTiny,
    "codebook": VQModel,
    "unet without text": UNet2DModel,
    "text encoder": CLIPTextModel,
    "image encoder": CLIPVisionModelWithProjection,
    "safety checker": StableDiffusionSafetyChecker,
}

_LATENT_FILES = tuple(from_single_file(kind) for kind in (LDMPipeline, UNet2DModel, VQModel))
_SINGLE_FILES = tuple(
    from_single_file(network) for network in (UNet2DConditionModel, AutoencoderKL, CLIPTextModel)
)

KINDS: dict[str, Kind] = {
    "safetensors": Kind("m.safetensors", weights.safetensors, (read_safetensors, verify), 6),
    "checkpoint": Kind("m.safetensors", weights.checkpoint, (inspect, *_SINGLE_FILES), 0.005),
    "latent checkpoint": Kind(
        "m.safetensors", weights.latent_checkpoint, (inspect, *_LATENT_FILES), 0.005
    ),
    "gguf": Kind("m.gguf", weights.gguf, (read_gguf, verify), 4),
    "program": Kind("m.pkl", weights.program, (program,), 6),
    "bare pickle": Kind("m.bin", weights.program, (read_pickle, inspect), 2),
    "pickle in a zip": Kind("m.ckpt", weights.program_in_zip, (*_PICKLES, open_source), 2),
    "torch zip": Kind("m.ckpt", weights.torch_zip, _PICKLES, 1.5),
    "legacy pickle": Kind("m.pt", weights.legacy, _PICKLES, 2),
    "adapter": Kind("m.safetensors", weights.adapter, (adapter, inspect), 0.2),
    "ip-adapter": Kind(
        "ip_adapter.safetensors",
        conditioned.ip_adapter,
        (conditioned.read_ip_adapter, inspect),
        0.2,
    ),
    "pickled ip-adapter": Kind(
        "ip_adapter.bin", conditioned.pickled_ip_adapter, (conditioned.read_ip_adapter,), 0.1
    ),
    "controlnet config of a folder": Kind(
        "config.json",
        conditioned.controlnet_config,
        (conditioned.read_controlnet_folder, inspect_folder),
        0.1,
        conditioned.controlnet_weights,
    ),
    "controlnet folder": Kind(
        conditioned.CONTROL_WEIGHTS,
        conditioned.controlnet_folder,
        (conditioned.read_controlnet_folder, inspect_folder),
        0.1,
        conditioned.controlnet_settings,
    ),
    "controlnet file": Kind(
        "m.safetensors",
        conditioned.controlnet_file,
        (conditioned.read_controlnet_file, inspect),
        0.05,
    ),
    "hub cache": Kind(
        "wish.json", hub_cache.damage, (hub_cache.read,), 0.1, arrange=hub_cache.arrange
    ),
    "embedding": Kind("m.safetensors", weights.embedding, (read_embedding, inspect)),
    "embedding in a picture": Kind("m.png", texts.embedding_picture, (read_embedding,)),
    "picture": Kind("m.png", texts.picture, (read_recipe,), 2),
    "jpeg": Kind("m.jpg", texts.jpeg, (read_recipe,), 2),
    "webp": Kind("m.webp", texts.webp, (read_recipe,), 2),
    "infotext": Kind("m.txt", texts.infotext, (infotext,), 0.5),
    "original config": Kind("m.yaml", texts.original_config, (original,), 0.05),
    "model index": Kind(
        "model_index.json", texts.model_index, (index, inspect_folder), 0.03, texts.folder
    ),
    "shard index": Kind(
        texts.SHARD_INDEX, texts.shard_index, (shards, inspect_folder), 0.1, texts.shards
    ),
    "scheduler": Kind("scheduler_config.json", texts.scheduler, (schedule,), 0.7),
    "vocabulary": Kind("vocab.json", texts.vocabulary, (tokenize,), 1, texts.tokenizer),
    "merges": Kind("merges.txt", texts.merges, (tokenize,), 0.5, texts.tokenizer),
    "tokenizer settings": Kind(
        "tokenizer_config.json", texts.tokenizer_settings, (tokenize,), 1, texts.tokenizer
    ),
    "tokenizer.json": Kind("tokenizer.json", texts.tokenizer_json, (tokenize,), 0.5),
    "image processor": Kind("preprocessor_config.json", texts.image_processor, (process,)),
    **{
        f"{name} config": Kind("config.json", texts.config(network), (build(network),), 1.5)
        for name, network in _CONFIGS.items()
    },
}


def make_input(seed: int, number: int, kinds: Sequence[str] = ()) -> tuple[str, bytes]:
    """The kind and content of an input, of one of ``kinds`` or, without them, of any."""
    r = random.Random(f"{seed} {number}")
    names = kinds or list(KINDS)
    name = r.choices(names, [KINDS[name].share for name in names])[0]
    return name, KINDS[name].make(r)


def prepare(folder: Path) -> dict[str, Path]:
    """The sound files around each kind's, in a folder of its own; where its file belongs."""
    places = {}
    for number, (name, kind) in enumerate(KINDS.items()):
        place = folder / str(number)
        for other, content in kind.around().items():
            (place / other).parent.mkdir(parents=True, exist_ok=True)
            (place / other).write_bytes(content)
        place.mkdir(parents=True, exist_ok=True)
        places[name] = place / kind.file
    return places
