"""Drawing in JAX needs no torch: neither to import the modules nor to read, draw and write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sfumato.jax
from sfumato import CLIPImageProcessor, StableDiffusionSafetyChecker
from tests.pipelines.tiny import tiny_controlnet, tiny_pipeline

pytest.importorskip("jax")

#: In a process where importing torch fails.
WITHOUT = """
import sys, importlib.abc

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("there is no torch here")

sys.meta_path.insert(0, Refuse())
"""
DRAW = """
import importlib, jax, numpy as np
for name in {names!r}:
    importlib.import_module(name)
from PIL import Image
from sfumato import FlaxControlNetModel, FlaxStableDiffusionImg2ImgPipeline
from sfumato import FlaxStableDiffusionPipeline
folder = {folder!r}
key = jax.random.PRNGKey(0)
pipeline, params = FlaxStableDiffusionPipeline.from_pretrained(folder)
images = pipeline(pipeline.prepare_inputs(["a cat"]), params, key, 2, jit=True).images
assert images.shape == (1, 16, 16, 3)
pipeline.save_pretrained(folder + "/again", params)
pipeline, params = FlaxStableDiffusionImg2ImgPipeline.from_pretrained(folder + "/again")
ids, picture = pipeline.prepare_inputs("a cat", Image.new("RGB", (16, 16)))
pipeline(ids, picture, params, key, num_inference_steps=2)
net, control = FlaxControlNetModel.from_pretrained(folder + "/controlnet")
assert net.init_weights(key).keys() == control.keys()
assert pipeline.unet.init_weights(key).keys() == params["unet"].keys()
"""


def test_a_folder_is_drawn_from_where_there_is_no_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "projection_dim": 8,
    }  # fmt: skip
    checker = StableDiffusionSafetyChecker(vision_config=vision, projection_dim=8)
    extractor = CLIPImageProcessor(size=16, crop_size=16)
    pipe = tiny_pipeline(safety_checker=checker, feature_extractor=extractor)
    pipe.save_pretrained(tmp_path)
    tiny_controlnet().save_pretrained(tmp_path / "controlnet")
    folder = Path(sfumato.jax.__path__[0])
    names = [f"sfumato.jax.{path.stem}" for path in folder.glob("*.py")]
    assert len(names) > 15
    code = WITHOUT + DRAW.format(names=names, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
