"""Files with the names and shapes of the published checkpoints, at full size.

Those that run by default are files of holes: they have the published size, but take no disk, and
since large files are mapped, no memory either. ``pytest -m full_size`` compares files of random
numbers with diffusers; each takes minutes, 4 GB of disk and 8 GB of memory.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

from sfumato import StableDiffusionPipeline
from sfumato.checkpoints.inspection import inspect_file
from sfumato.checkpoints.original.families import family
from tests.checkpoints.original.synthetic import CLASSES, SCHEDULE_BUFFERS, full_configs
from tests.checkpoints.original.synthetic import checkpoint_tensors as original_tensors
from tests.parity.networks import relative_error, shapes
from tests.parity.official_files import (
    OFFICIAL,
    official_shapes,
    write_configs,
    write_holes,
    write_random,
)
from tests.parity.oracle_pipeline import distance

ROOT = Path(__file__).parents[2]


def oracle_shapes(name: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """What diffusers and transformers make of the published configurations."""
    kind = family(OFFICIAL[name])
    text = {k: v for k, v in kind.text_encoder.items() if not k.startswith("_")}
    with torch.device("meta"):
        networks = {
            "unet": diffusers.UNet2DConditionModel.from_config(dict(kind.unet)),
            "vae": diffusers.AutoencoderKL.from_config(dict(kind.vae)),
            "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)),
        }
    return {part: shapes(network) for part, network in networks.items()}


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_file_of_the_published_size_becomes_the_published_networks(
    name: str, tmp_path: Path
) -> None:
    listed = official_shapes(name)
    path = write_holes(listed, tmp_path / "m.safetensors")
    pipe = StableDiffusionPipeline.from_single_file(path, torch_dtype="auto", check_finite=False)
    for part, expected in oracle_shapes(name).items():
        network = getattr(pipe, part)
        assert shapes(network) == expected
        assert network.dtype == torch.float16
        usual = family(OFFICIAL[name].removesuffix("-v"))  # zeros tell of no velocity
        assert network.config == type(network.config).from_dict(getattr(usual, part))
    info = inspect_file(path, hashes=False)
    assert info.averaged_weights == any(key.startswith("model_ema.diffusion") for key in listed)
    assert info.parameters == sum(torch.Size(shape).numel() for shape in listed.values())


@pytest.mark.parametrize("name", [n for n in OFFICIAL if "ema" not in n and "pix2pix" not in n])
def test_saving_gives_every_network_the_published_names(name: str) -> None:
    with torch.device("meta"):
        made = {part: CLASSES[part](c) for part, c in full_configs(OFFICIAL[name]).items()}  # type: ignore[call-arg]
        saved = {key: tuple(t.shape) for key, t in original_tensors(made, extras=False).items()}
    last_layer = "cond_stage_model.model.transformer.resblocks.23."
    left_out = ("low_scale_model.", last_layer, *SCHEDULE_BUFFERS)
    unused = ("logit_scale", "text_projection")
    expected = {
        key: shape
        for key, shape in official_shapes(name).items()
        if not key.startswith(left_out) and not key.endswith(unused)
    }
    assert saved == expected


def run(library: str, file: Path, configs: Path, *more: str) -> dict[str, Any]:
    """What a process of its own makes of the file."""
    output = file.with_suffix(f".{library}.pt")
    subprocess.run(
        [sys.executable, "-m", "tests.parity.official_child", library]
        + [str(path) for path in (file, configs, output)]
        + list(more),
        check=True,
        cwd=ROOT,
    )
    return torch.load(output, weights_only=True)


@pytest.mark.full_size
@pytest.mark.parametrize("name", OFFICIAL)
def test_random_weights_of_full_size_draw_what_diffusers_draws(name: str, tmp_path: Path) -> None:
    suffix = ".ckpt" if "inpainting" in name else ".safetensors"
    file = write_random(name, tmp_path / f"m{suffix}")
    configs = write_configs(name, tmp_path / "configs")
    try:
        ours, theirs = (run(library, file, configs) for library in ("sfumato", "diffusers"))
        report = {key: ours[key] for key in ("seconds", "peak")}
        for key in ("prediction_type", "scheduler"):
            assert ours[key] == theirs[key]
        tensors = [key for key, value in theirs.items() if isinstance(value, torch.Tensor)]
        assert len(tensors) == 6
        for key in tensors:
            compare = distance if key == "drawn" else relative_error
            report[key] = compare(ours[key], theirs[key])
            assert report[key] < 1e-4, key
        print(name, {key: float(f"{value:.3g}") for key, value in report.items()})
    finally:
        file.unlink()
