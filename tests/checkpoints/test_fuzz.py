"""Files damaged at random end in an error of this package, or are read as other readers read them.

``SFUMATO_FUZZ=100000 pytest tests/checkpoints/test_fuzz.py`` tries as many damaged files of each
kind; each run without the variable tries the same 1500. `tests.fuzz` looks for crashes and hangs.
"""

from __future__ import annotations

import io
import json
import os
import random
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save

from sfumato.checkpoints.jsonfile import parse_json
from sfumato.checkpoints.pickles import read_pickle
from sfumato.checkpoints.tensors import read_safetensors
from sfumato.errors import CheckpointError, ConfigError, SfumatoError
from sfumato.models.autoencoder import AutoencoderKLConfig
from sfumato.models.unet_config import UNet2DConditionConfig
from sfumato.schedulers.storage import all_classes
from sfumato.text.clip import CLIPTextConfig
from tests.checkpoints.tiny import TEXT, UNET, VAE
from tests.faults.hostile_files import safetensors_bytes, within
from tests.fuzz.damage import changed, flipped

TRIES = int(os.environ.get("SFUMATO_FUZZ", "1500"))

STATE = {
    "conv_in.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
    "conv_in.bias": torch.ones(2, dtype=torch.float16),
    "scale": torch.full((3,), 0.5, dtype=torch.float64),
    "position_ids": torch.arange(5)[None],
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(1.5),
}


def read_or_refuse(path: Path) -> dict[str, torch.Tensor] | None:
    with within():
        try:
            return read_safetensors(path, check_finite=False)
        except CheckpointError:
            return None


def agrees_with_the_library(data: bytes, loaded: dict[str, torch.Tensor] | None) -> None:
    """What is accepted here, the safetensors library accepts with the same content."""
    if loaded is not None:
        theirs = dict(safetensors.deserialize(data))
        assert set(theirs) == set(loaded)
        for name, tensor in loaded.items():
            assert list(tensor.shape) == theirs[name]["shape"]
            raw = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.zeros(0)
            assert bytes(raw.to(torch.uint8).numpy()) == bytes(theirs[name]["data"])


def test_safetensors_files_with_damaged_bytes_are_refused_or_read_like_the_library(
    tmp_path: Path,
) -> None:
    sound = save(STATE, {"format": "pt"})
    path = tmp_path / "m.safetensors"
    accepted = 0
    for seed in range(TRIES):
        data = flipped(random.Random(seed), sound)
        path.write_bytes(data)
        loaded = read_or_refuse(path)
        agrees_with_the_library(data, loaded)
        accepted += loaded is not None
    assert 0 < accepted < TRIES, "some damage lies in the numbers, where nobody can see it"


def test_safetensors_files_with_a_changed_header_are_refused_or_read_like_the_library(
    tmp_path: Path,
) -> None:
    sound = save(STATE, {"format": "pt"})
    length = int.from_bytes(sound[:8], "little")
    header, data = json.loads(sound[8 : 8 + length]), sound[8 + length :]
    path = tmp_path / "m.safetensors"
    accepted = 0
    for seed in range(TRIES):
        r = random.Random(seed)
        values = header
        for _ in range(r.choice([1, 1, 2, 3])):
            values = changed(r, values)
        damaged = safetensors_bytes(json.dumps(values), data)
        path.write_bytes(damaged)
        loaded = read_or_refuse(path)
        agrees_with_the_library(damaged, loaded)
        accepted += loaded is not None
    assert 0 < accepted < TRIES, "a renamed tensor, for one, leaves the file sound"


def agrees_with_torch(path: Path, loaded: dict[str, torch.Tensor]) -> None:
    """What torch, too, can make of the file is the same."""
    try:
        theirs = torch.load(path, weights_only=True)
    except Exception:
        return
    for name, tensor in loaded.items():
        other = theirs[name]
        assert tensor.shape == other.shape and tensor.dtype == other.dtype
        assert tensor.numpy().tobytes() == other.numpy().tobytes(), name


def test_damaged_pickles_are_refused_or_read_like_torch(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    for legacy in (False, True):
        buffer = io.BytesIO()
        torch.save(STATE, buffer, _use_new_zipfile_serialization=not legacy)
        sound = buffer.getvalue()
        for seed in range(TRIES // 4):
            path.write_bytes(flipped(random.Random(seed), sound))
            with within():
                try:
                    loaded = read_pickle(path, check_finite=False)
                except CheckpointError:
                    continue
            agrees_with_torch(path, loaded)


def test_damaged_json_is_parsed_as_python_does_or_refused() -> None:
    sound = json.dumps(
        {"a": [1, 2.5, {"b": None, "ü": "x\ud83d\ude00"}], "c": {"d": -1e-9}}, indent=1
    )
    accepted = 0
    for seed in range(TRIES):
        text = flipped(random.Random(seed), sound.encode()).decode("utf-8", "replace")
        with within():
            try:
                value = parse_json(text, "text")
            except ConfigError as error:
                assert "line " in str(error)
                continue
        assert value == json.loads(text)
        accepted += 1
    assert 0 < accepted < TRIES


def settings(scheduler_class: Any) -> dict[str, Any]:
    """The settings of a scheduler, none of them marked as default."""
    return {k: v for k, v in scheduler_class().config.items() if k[0] != "_"}


def test_configurations_changed_at_random_are_checked_before_they_are_used() -> None:
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (UNet2DConditionConfig.from_dict, UNet2DConditionConfig.from_dict(UNET).to_dict()),
        (AutoencoderKLConfig.from_dict, AutoencoderKLConfig.from_dict(VAE).to_dict()),
        (CLIPTextConfig.from_dict, CLIPTextConfig.from_dict(TEXT).to_dict()),
        *((cls.from_config, settings(cls)) for cls in all_classes()),
    ]
    for read, values in kinds:
        accepted = 0
        for seed in range(TRIES // 5):
            r = random.Random(seed)
            damaged = changed(r, values)
            if not isinstance(damaged, dict):
                continue
            with within():
                try:
                    read(damaged)
                except SfumatoError as error:
                    assert len(str(error)) < 2000, str(error)[:200]
                    continue
            accepted += 1
        assert accepted, read
