"""Checkpoints of impossible shapes, files that are no checkpoints, paths that are no files."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from sfumato import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from sfumato.checkpoints.inspection import inspect_file
from sfumato.errors import CheckpointError, SfumatoError
from tests.faults.hostile_files import (
    entry,
    safetensors_bytes,
    within,
)

# Checkpoints whose tensors are not what their names promise


def tiny_header(shapes: dict[str, list[int]]) -> bytes:
    """A safetensors file with these tensors, in 16 bits."""
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = entry(position, position + size, shape, "F16")
        position += size
    return safetensors_bytes(header, bytes(position))


PREFIX = "model.diffusion_model."


@pytest.mark.parametrize(
    "shapes",
    [
        {"input_blocks.0.0.weight": []},
        {"input_blocks.0.0.weight": [0, 0, 0, 0]},
        {"input_blocks.0.0.weight": [4, 9, 3, 3]},
        {"input_blocks.0.0.weight": [4, 4, 3, 3], "out.2.weight": [4]},
        {"input_blocks.0.0.weight": [4, 4, 3, 3], "out.2.weight": [4, 4, 3, 3],
         "input_blocks.1.0.in_layers.2.weight": []},
        {"input_blocks.0.0.weight": [4, 4, 3, 3], "out.2.weight": [4, 4, 3, 3],
         "input_blocks.1.0.in_layers.2.weight": [7, 4, 3, 3]},
        {"input_blocks.0.0.weight": [4, 4, 3, 3], "out.2.weight": [4, 4, 3, 3],
         "input_blocks.1.0.in_layers.2.weight": [32, 4, 3, 3],
         **{f"input_blocks.1.1.transformer_blocks.{i}.norm1.weight": [1] for i in range(3000)}},
        {"input_blocks.0.0.weight": [4, 4, 3, 3], "out.2.weight": [4, 4, 3, 3],
         **{f"input_blocks.{i}.0.in_layers.2.weight": [32, 1, 1, 1] for i in range(1, 3000)}},
        {"input_blocks.0.0.weight": [4, 4, 3, 3], "out.2.weight": [4, 4, 3, 3],
         **{f"input_blocks.{i}.0.op.weight": [1] for i in range(1, 3000)}},
    ],
)  # fmt: skip
def test_impossible_shapes_end_in_one_error_and_allocate_nothing(
    tmp_path: Path, shapes: dict[str, list[int]]
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(tiny_header({PREFIX + name: shape for name, shape in shapes.items()}))
    for read in (StableDiffusionPipeline, UNet2DConditionModel):
        with within(), pytest.raises(SfumatoError) as caught:
            read.from_single_file(path)
        assert len(str(caught.value)) < 2000
    with within():
        assert inspect_file(path).kind == "checkpoint"


def test_an_autoencoder_of_impossible_shapes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for shapes in (
        {"encoder.down.0.block.0.conv1.weight": []},
        {"encoder.down.0.block.0.conv1.weight": [5, 5, 3, 3],
         "encoder.conv_in.weight": [5, 3, 3, 3], "decoder.conv_in.weight": [5, 4, 3, 3],
         "decoder.conv_out.weight": [3, 5, 3, 3]},
        {f"encoder.down.{i}.block.0.conv1.weight": [32, 1, 1, 1] for i in range(500)},
    ):  # fmt: skip
        path.write_bytes(tiny_header(shapes))
        with within(), pytest.raises(SfumatoError):
            AutoencoderKL.from_single_file(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "header too small"),
        (b"<!DOCTYPE html><html>404</html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (struct.pack("<Q", 2**63) + b"{}", "header too large"),
        (b"\x80\x02}q\x00.", "none that torch wrote"),
        (b"PK\x03\x04" + bytes(60), "damaged archive"),
    ],
)
def test_files_that_are_no_checkpoints_are_recognised(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with within(), pytest.raises(CheckpointError, match=words):
        StableDiffusionPipeline.from_single_file(path)


def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.ckpt")
    for path in (tmp_path, tmp_path / "pipe.ckpt", Path("/dev/zero"), tmp_path / "none.ckpt",
                 Path("a\0b.ckpt"), Path("x" * 5000)):  # fmt: skip
        with within(), pytest.raises(SfumatoError):
            StableDiffusionPipeline.from_single_file(path)
