"""Loading and drawing import nothing that takes long and is not needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

#: What torch imports when a random number or a sum is asked for of a tensor without memory.
COMPILER = ("torch._dynamo", "torch._inductor", "sympy")


def run(code: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)


def test_a_network_without_memory_needs_no_compiler_of_torch() -> None:
    run(f"""
import json, sys, torch
from pathlib import Path
import sfumato
from sfumato.checkpoints.fitting import build_without_memory

folder = Path(sfumato.__file__).parent / "assets" / "architecture"
for name, cls in (("unet", sfumato.UNet2DConditionModel), ("vae", sfumato.AutoencoderKL)):
    config = cls.config_class.from_dict(json.loads((folder / f"{{name}}.json").read_text()))
    network = build_without_memory(cls, config)
    assert all(p.is_meta for p in network.parameters())
assert not [m for m in {COMPILER} if m in sys.modules]
""")


def test_other_networks_without_memory_need_none_either() -> None:
    run(f"""
import sys, torch
from sfumato.checkpoints.fitting import build_without_memory
from sfumato.models import image_projections
from sfumato.models.controlnet import ControlNetModel
from sfumato.models.embeddings import GaussianFourierProjection
from sfumato.text.clip_vision import CLIPVisionModelWithProjection

for cls in (ControlNetModel, CLIPVisionModelWithProjection):
    build_without_memory(cls, cls.config_class())
for name in ("Full", "FaceID", "Plus", "FaceIDPlus"):
    cls = getattr(image_projections, f"IPAdapter{{name}}ImageProjection")
    network = build_without_memory(lambda _: cls(), None)
    assert all(p.is_meta for p in network.parameters())
build_without_memory(lambda _: GaussianFourierProjection(8, flip_sin_to_cos=True), None)
assert not [m for m in {COMPILER} if m in sys.modules]
""")


def test_a_picture_needs_no_compiler_of_torch(model: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from sfumato.cli import main
assert main(sys.argv[1:]) == 0
assert not [m for m in {COMPILER} if m in sys.modules]
"""
    run(code, "a", "-m", str(model), "--steps", "2", "-o", str(tmp_path / "a.png"))
