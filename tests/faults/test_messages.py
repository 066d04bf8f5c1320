"""What messages and logs quote of a hostile file: little, on one line, no control characters."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato import StableDiffusionPipeline, UNet2DConditionModel
from sfumato.adapters.guess import listed
from sfumato.checkpoints.inspection import inspect_file
from sfumato.checkpoints.metadata import from_json
from sfumato.checkpoints.original.original_config import read_original_config
from sfumato.checkpoints.tensors import save_safetensors
from sfumato.errors import SfumatoError, printable
from sfumato.schedulers import EulerDiscreteScheduler
from sfumato.text.embedding_files import read_embedding
from sfumato.text.tokenizer import CLIPTokenizer
from tests.adapters.files_like import kohya_file
from tests.checkpoints.tiny import UNET
from tests.faults.hostile_files import entry, safetensors_bytes
from tests.faults.test_tokenizer import VOCAB, write
from tests.pipelines.tiny import tiny_unet

#: Clears a terminal, begins a line that looks like one of the log, turns text around, and is long.
BAD = "\x1b[2J\r\x9b2J\u202e\x00\nERROR sfumato: all is lost " + "x" * 5000

_HARMFUL = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]|\nERROR")


def _safetensors(folder: Path, **shapes: Any) -> Path:
    path = folder / "m.safetensors"
    header = {name: entry(0, 0, shape) for name, shape in shapes.items()}
    path.write_bytes(safetensors_bytes(header))
    return path


def _unet(folder: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    """A UNet's folder with other tensors and settings besides."""
    model = UNet2DConditionModel(UNET)
    model.save_pretrained(folder)
    weights = folder / "diffusion_pytorch_model.safetensors"
    save_safetensors({**model.state_dict(), **(tensors or {})}, weights)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def _index(folder: Path, **values: Any) -> Path:
    (folder / "model_index.json").write_text(json.dumps(values))
    return folder


def _pickle(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "m.pt")
    return folder / "m.pt"


def _adapter(tensors: dict[str, Any]) -> None:
    """Beside tensors that fit, so that the odd ones are left out with a warning."""
    unet = tiny_unet()
    with suppress(SfumatoError):
        unet.load_lora_adapter({**kohya_file({"unet": unet}), **tensors})
    unet.load_lora_adapter(tensors)


READ: dict[str, Callable[[Path], Any]] = {
    "info": lambda d: inspect_file(_safetensors(d, **{BAD: [0, 4], BAD + "2": [0, 4]})),
    "embedding": lambda d: read_embedding(_safetensors(d, **{BAD: [0, 4], BAD + "2": [0, 4]})),
    "checkpoint": lambda d: StableDiffusionPipeline.from_single_file(_safetensors(d, **{BAD: [0]})),
    "damaged header": lambda d: inspect_file(_safetensors(d, **{BAD: ["x"]})),
    "adapter, strange": lambda d: _adapter({BAD: torch.ones(2)}),
    "adapter, no layer": lambda d: _adapter({f"lora_unet_{BAD}.lora_up.weight": torch.ones(2, 2)}),
    "adapter, wrong": lambda d: _adapter({f"lora_unet_mid_block.{BAD}": torch.ones(2)}),
    "unexpected tensor": lambda d: UNet2DConditionModel.from_pretrained(
        _unet(d, {BAD: torch.ones(2)})
    ),
    "class": lambda d: UNet2DConditionModel.from_pretrained(_unet(d, _class_name=BAD)),
    "setting": lambda d: UNet2DConditionModel.from_pretrained(_unet(d, **{BAD: 1})),
    **{
        f"{name} of a UNet": lambda d, name=name, value=value: UNet2DConditionModel.from_pretrained(
            _unet(d, **{name: value})
        )
        for name, value in {
            "act_fn": BAD,
            "norm_eps": BAD,
            "block_out_channels": BAD,
            "down_block_types": [BAD, BAD],
            "in_channels": BAD,
            "upcast_attention": [BAD],
            "class_embed_type": BAD,
        }.items()
    },
    **{
        f"{key} of a scheduler": lambda d, key=key: EulerDiscreteScheduler.from_config({key: BAD})
        for key in ("prediction_type", "beta_schedule", "beta_start", "trained_betas", "sigma_min")
    },
    "component": lambda d: StableDiffusionPipeline.from_pretrained(_index(d, **{BAD: ["a", "b"]})),
    "library": lambda d: StableDiffusionPipeline.from_pretrained(_index(d, unet=[BAD, "x"])),
    "class of the index": lambda d: StableDiffusionPipeline.from_pretrained(
        _index(d, unet=["diffusers", BAD])
    ),
    "token": lambda d: CLIPTokenizer.from_pretrained(write(d, {**VOCAB, BAD: -1})),
    "merge": lambda d: CLIPTokenizer.from_pretrained(write(d, merges=f"#version\n{BAD} a\n")),
    "special token": lambda d: CLIPTokenizer.from_pretrained(
        write(d, tokenizer_config={"bos_token": BAD})
    ),
    "padding side": lambda d: CLIPTokenizer.from_pretrained(
        write(d, tokenizer_config={"padding_side": BAD})
    ),
    "tensor with NaN": lambda d: read_embedding(_pickle(d, {BAD: torch.tensor([torch.nan])})),
    "file of two tables": lambda d: read_embedding(_pickle(d, {BAD: 1, "b": torch.ones(2)})),
    "recipe": lambda d: from_json(json.dumps({"prompt": "a", "seed": BAD})),
    "original configuration": lambda d: read_original_config(
        {"model": {"params": {"beta_schedule": BAD}}}
    ),
}


@pytest.mark.parametrize("what", READ)
def test_nothing_of_a_hostile_file_reaches_a_terminal_as_it_is(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    texts = []
    try:
        READ[what](tmp_path)
    except SfumatoError as error:
        texts = [str(error), error.message]
    texts += [record.getMessage() for record in caplog.records]
    assert texts or what == "info"
    for text in texts:
        assert not _HARMFUL.search(text), ascii(text)
        assert len(text) < 2500


def test_every_error_is_printable_whatever_it_was_given() -> None:
    error = SfumatoError("a\nlist:\n  \x1b[2J\ud800" + "x" * 10**6, hint="Do it.")
    assert str(error).startswith("a\nlist:\n  \\x1b[2J\\ud800xxx") and str(error).endswith("Do it.")
    assert len(str(error)) < 4100
    str(error).encode("utf-8")
    assert printable("ü 猫 a\nb\tc") == "ü 猫 a\\nb\\tc"
    assert printable(10**300) == "1" + "0" * 79
    assert listed({BAD: "a"}, 3).count("\n") == 1
