"""Networks that no published model has come back from one file as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sfumato.checkpoints.original.notes import KEY
from sfumato.errors import ConfigError
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from tests.checkpoints.original.synthetic import networks, tiny_configs
from tests.pipelines.tiny import seeded, tiny_pipeline, tiny_scheduler, tiny_unet, tiny_vae


def _drawn(pipe: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = tiny_scheduler("DDIMScheduler")
    call: dict[str, Any] = {"num_inference_steps": 2, "height": 16, "width": 16}
    return pipe("a boat", **call, generator=seeded(1), output_type="pt").images


def test_an_unusual_model_draws_the_same_after_a_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unet = tiny_unet(3, norm_num_groups=4, attention_head_dim=2, norm_eps=1e-3, act_fn="gelu")
    pipe = tiny_pipeline(unet=unet, vae=tiny_vae(1, scaling_factor=0.5, norm_num_groups=4))
    pipe.save_single_file(tmp_path / "m.safetensors")
    assert "norm_num_groups" in caplog.text
    again = StableDiffusionPipeline.from_single_file(tmp_path / "m.safetensors")
    assert again.unet.config.to_dict() == unet.config.to_dict()
    assert again.vae.config.to_dict() == pipe.vae.config.to_dict()
    torch.testing.assert_close(_drawn(again), _drawn(pipe), atol=1e-5, rtol=1e-4)
    changed = StableDiffusionPipeline.from_single_file(
        tmp_path / "m.safetensors", unet=tiny_unet(norm_num_groups=8)
    )
    assert changed.unet.config.norm_num_groups == 8


def test_a_usual_model_has_no_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made: dict[str, Any] = networks(tiny_configs("stable-diffusion-v1"), 0)
    pipe = tiny_pipeline(**{name: made[name] for name in ("unet", "vae", "text_encoder")})
    pipe.save_single_file(tmp_path / "m.safetensors")
    assert "other programs" not in caplog.text


@pytest.mark.parametrize("text", ["[]", "{", '{"vae": 3}', '{"vae": {"norm_num_groups": 10**9}}'])
def test_a_hostile_note_is_refused(tmp_path: Path, text: str) -> None:
    pipe = tiny_pipeline()
    pipe.save_single_file(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert set(json.loads(file.metadata()[KEY])) >= {"unet", "vae"}
    tensors = load_file(tmp_path / "m.safetensors")
    save_file(tensors, tmp_path / "bad.safetensors", {KEY: text})
    with pytest.raises((ConfigError, OSError, ValueError)):
        AutoencoderKL.from_single_file(tmp_path / "bad.safetensors")
