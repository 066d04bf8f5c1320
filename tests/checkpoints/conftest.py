"""Models in a hub's cache, and a hub on this machine, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.utils
import pytest
import torch

from tests.checkpoints.hub_server import Hub, files_below, running
from tests.checkpoints.tiny import tiny_pipeline

#: What a repository has besides: the same weights for other programs, and what people add.
CLUTTER = (
    "README.md",
    ".gitattributes",
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_flax_model.msgpack",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/model.onnx",
    "vae/diffusion_pytorch_model.bin",
    "text_encoder/pytorch_model.bin",
    "text_encoder/flax_model.msgpack",
    "text_encoder/openvino_model.bin",
    "tokenizer/tokenizer.json",
    "images/example.png",
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, which is the client's own; nobody is logged in."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client takes for the real one, and an empty cache."""
    forget = getattr(huggingface_hub, "close_session", None) or huggingface_hub.utils.reset_sessions
    with running() as server:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        forget()
        yield server
    forget()


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a tiny pipeline: safetensors, in float32."""
    folder = tmp_path_factory.mktemp("plain")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny_pipeline().save_pretrained(folder)
    return files_below(folder)


@pytest.fixture(scope="session")
def published(
    plain: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files of a repository: that pipeline, its half-precision variant, and clutter."""
    folder = tmp_path_factory.mktemp("published")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny_pipeline().to(torch.float16, silence_dtype_warnings=True).save_pretrained(
            folder, variant="fp16"
        )
    return {name: name.encode() for name in CLUTTER} | files_below(folder) | plain
