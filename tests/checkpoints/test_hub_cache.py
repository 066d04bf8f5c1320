"""Models that are in a hub's cache already: no network is needed, and none is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch

from sfumato import (
    HubError,
    ModelNotFoundError,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from sfumato.checkpoints.hub import open_model
from sfumato.checkpoints.hub_names import HubOptions, hub_file, hub_name
from tests.checkpoints.hub_server import commit_of, lay_out

NAME = "someone/tiny"

#: Opens a model in a process of its own, where any connection ends it and torch is not wanted.
CHILD = """
import sys
sys.addaudithook(lambda event, _: sys.exit(event) if event.startswith("socket.conn") else None)
from sfumato.checkpoints.hub import open_model
from sfumato.checkpoints.hub_names import HubOptions
model = open_model("someone/tiny", HubOptions())
print(model.fetch(["a/config.json"]).name, sorted(model.files), "torch" in sys.modules)
"""


def test_a_whole_model_in_the_cache_is_loaded_offline(
    cache: Path, published: dict[str, bytes]
) -> None:
    lay_out(cache, NAME, published)
    for options in ({}, {"local_files_only": True}):  # HF_HUB_OFFLINE is set for all tests
        pipe = StableDiffusionPipeline.from_pretrained(NAME, **options)
        assert pipe.unet.dtype == torch.float32
    half = StableDiffusionPipeline.from_pretrained(NAME, variant="fp16", torch_dtype="auto")
    assert half.unet.dtype == torch.float16


def test_the_environment_alone_keeps_a_process_offline(tmp_path: Path) -> None:
    lay_out(tmp_path, NAME, {"a/config.json": b"{}"})
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**kept, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    commit = commit_of({"a/config.json": b"{}"})
    assert done.stdout == f"{commit} ['a/config.json'] False\n", done.stderr


def test_revisions_in_the_cache_are_told_apart(cache: Path) -> None:
    old, new = {"a.json": b"old"}, {"a.json": b"new"}
    lay_out(cache, NAME, old, "v1")
    lay_out(cache, NAME, new)
    for revision, content in ((None, b"new"), ("v1", b"old"), (commit_of(old), b"old")):
        model = open_model(NAME, HubOptions(revision=revision))
        assert model.get("a.json").read_bytes() == content
    for revision in ("v2", "0" * 40):
        with pytest.raises(ModelNotFoundError, match=f"at the revision '{revision}' in the hub's"):
            open_model(NAME, HubOptions(revision=revision))


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ],
)
def test_a_part_of_a_model_in_the_cache_says_which_file_is_missing(
    cache: Path, plain: dict[str, bytes], missing: str
) -> None:
    lay_out(cache, NAME, {name: data for name, data in plain.items() if name != missing})
    with pytest.raises(ModelNotFoundError) as caught:
        StableDiffusionPipeline.from_pretrained(NAME)
    text = str(caught.value)
    assert f"The cache has only a part of 'someone/tiny': '{missing}' is missing." in text
    assert "Load it once without `local_files_only` and HF_HUB_OFFLINE." in text


def test_a_link_whose_content_is_gone_is_a_missing_file(
    cache: Path, plain: dict[str, bytes]
) -> None:
    folder = lay_out(cache, NAME, plain)
    (folder / "snapshots" / commit_of(plain) / "unet" / "config.json").resolve().unlink()
    with pytest.raises(ModelNotFoundError, match=r"'unet/config\.json' is missing"):
        UNet2DConditionModel.from_pretrained(NAME, subfolder="unet")


def test_a_model_that_is_not_in_the_cache_is_said(cache: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        StableDiffusionPipeline.from_pretrained(NAME)
    assert "no file or folder 'someone/tiny' on this machine" in str(caught.value)
    assert "without HF_HUB_OFFLINE" in str(caught.value)
    with pytest.raises(ModelNotFoundError, match="without `local_files_only`"):
        StableDiffusionPipeline.from_pretrained(NAME, local_files_only=True)


@pytest.mark.parametrize("content", ["", "main", "../../outside", "0" * 39, "\N{SNOWMAN}"])
def test_a_damaged_note_of_a_revision_is_no_model(cache: Path, content: str) -> None:
    folder = lay_out(cache, NAME, {"a.json": b"{}"})
    (folder / "refs" / "main").write_text(content, "utf-8")
    with pytest.raises(ModelNotFoundError, match="nor a model of that name"):
        open_model(NAME, HubOptions())


@pytest.mark.skipif(os.name != "posix", reason="has neither such devices nor pipes")
@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "loop"])
def test_what_is_no_file_in_place_of_such_a_note_is_not_read(cache: Path, kind: str) -> None:
    """A device has no end, and a pipe no beginning."""
    note = lay_out(cache, NAME, {"a.json": b"{}"}) / "refs" / "main"
    note.unlink()
    if kind == "pipe":
        os.mkfifo(note)
    elif kind == "folder":
        note.mkdir()
    else:
        note.symlink_to("/dev/zero" if kind == "device" else note)
    with pytest.raises(ModelNotFoundError, match="nor a model of that name"):
        open_model(NAME, HubOptions())


def test_an_unreachable_hub_is_not_asked_for_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a path was looked for on the hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", never)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.chdir(tmp_path)
    for path in ("./a/b", "/a/b", "../a/b", "~/a/b", "C:\\a\\b", "C:/a", "a/b/c", "ab", "a/b/"):
        with pytest.raises(ModelNotFoundError, match="not a folder on this machine"):
            StableDiffusionPipeline.from_pretrained(path)
    with pytest.raises(HubError, match="a path was looked for"):
        StableDiffusionPipeline.from_pretrained("a/b")


def test_names_are_told_from_paths_by_their_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["a/b", "Some-One/sd_v1.5", "https://huggingface.co/a/b", "http://hf.co/a/b/"]
    assert [hub_name(name) for name in names] == ["a/b", "Some-One/sd_v1.5", "a/b", "a/b"]
    paths = ["a", "a/b/c", "./a", "a//b", "a/../b", "a/b.ckpt", "a--b/c", "a/b.git", "a b/c", ""]
    paths += ["https://huggingface.co/datasets/a", "https://other.org/a/b", "a/b\n", "é/b"]
    assert [name for name in paths if hub_name(name)] == []
    assert hub_name(Path("a/b")) is None and hub_name(7) is None
    for name in ("a/b/c.safetensors", "a/blob/main/x", "a/b/blob/main", "C:\\a\\blob\\main\\x"):
        assert hub_file(name) is None
    for unsafe in ("a/b/blob/main/../x", "a/b/blob/main//etc/passwd", "a/b/blob/main/%2e%2e/x"):
        assert hub_file(unsafe) is None
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert hub_name("a/b") is None
