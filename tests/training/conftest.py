"""A folder of a few drawn pictures with captions, and a tiny architecture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "orange")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight 32x32 pictures: a disc and a square in each of four colours."""
    root = tmp_path_factory.mktemp("pictures")
    lines = []
    for colour in COLOURS:
        for shape in ("disc", "square"):
            image = Image.new("RGB", (32, 32), "white")
            draw = ImageDraw.Draw(image)
            (draw.ellipse if shape == "disc" else draw.rectangle)((6, 6, 25, 25), fill=colour)
            name = f"{colour}-{shape}.png"
            image.save(root / name)
            text = f"a {colour} {shape}"
            captions = [text, f"{shape}, {colour}"]
            lines.append({"file_name": name, "text": text, "captions": captions})
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.fixture(scope="session")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks so small that a step takes milliseconds."""
    root = tmp_path_factory.mktemp("architecture")
    vae = {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [8, 16],
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 32,
    }
    unet = {
        "sample_size": 16,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    text_encoder = {
        "vocab_size": 49408,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 12,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    }
    scheduler = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    for name, part in {
        "vae": vae,
        "unet": unet,
        "text_encoder": text_encoder,
        "scheduler": scheduler,
    }.items():
        (root / f"{name}.json").write_text(json.dumps(part))
    return root
