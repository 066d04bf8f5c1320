"""What torch refuses of a folder, or mends in it, JAX refuses and mends in the same words."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato import StableDiffusionInpaintPipeline, StableDiffusionPipeline
from sfumato.errors import ConfigError, InputError, SfumatoError
from sfumato.models.unet import UNet2DConditionModel
from sfumato.quantization.network import quantize
from tests.pipelines.tiny import tiny_pipeline, tiny_unet

pytest.importorskip("jax")

from sfumato.jax.models import FlaxAutoencoderKL, FlaxUNet2DConditionModel
from sfumato.jax.pipeline import FlaxStableDiffusionPipeline
from sfumato.jax.with_pictures import FlaxStableDiffusionInpaintPipeline

Change = Callable[[Path], Any]
UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound")
    tiny_pipeline().save_pretrained(path)
    return path


def weights(change: Callable[[dict[str, Any]], dict[str, Any]], file: str = UNET) -> Change:
    def changed(folder: Path) -> None:
        save_file(change(load_file(folder / file)), folder / file, {"format": "pt"})

    return changed


def config(file: str, **values: Any) -> Change:
    """Set values of a JSON file; None takes one out."""

    def changed(folder: Path) -> None:
        found = {**json.loads((folder / file).read_text()), **values}
        kept = {name: value for name, value in found.items() if value is not None}
        (folder / file).write_text(json.dumps(kept))

    return changed


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {key: t for key, t in tensors.items() if name not in key}


def having(name: str, tensor: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {**tensors, name: tensor}


UNET_CONFIG, INDEX = "unet/config.json", "model_index.json"
REFUSED: dict[str, Change] = {
    "a weight is missing": weights(without("conv_in.weight")),
    "weights are missing": weights(without("conv_shortcut")),
    "a weight of another shape": weights(having("conv_in.weight", torch.zeros(32, 9, 3, 3))),
    "NaN": weights(having("conv_in.bias", torch.full((32,), torch.nan))),
    "infinity": weights(
        having("text_model.final_layer_norm.bias", torch.full((32,), torch.inf)), TEXT
    ),
    "truncated": lambda folder: (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-1]),
    "a web page": lambda folder: (folder / UNET).write_text("<!DOCTYPE html><html>"),
    "no folder of weights": lambda folder: shutil.rmtree(folder / "vae"),
    "no tokenizer": lambda folder: shutil.rmtree(folder / "tokenizer"),
    "no scheduler": lambda folder: shutil.rmtree(folder / "scheduler"),
    "no index": lambda folder: (folder / INDEX).unlink(),
    "an unknown class": config(INDEX, unet=["os", "system"]),
    "an unknown scheduler": config(INDEX, scheduler=["os", "system"]),
    "a configuration of another class": config("vae/config.json", _class_name="AutoencoderTiny"),
    "a configuration that is none": lambda folder: (folder / UNET_CONFIG).write_text("{"),
    "no heads": config(UNET_CONFIG, attention_head_dim=0),
    "huge": config(UNET_CONFIG, block_out_channels=[10**9] * 2),
    "no noise": config("scheduler/scheduler_config.json", beta_start=-1.0),
}


def outcome(pipeline_class: Any, folder: Path, **options: Any) -> tuple[str, list[str]]:
    """The error with its class, or nothing; and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        error = ""
        try:
            pipeline_class.from_pretrained(folder, **options)
        except SfumatoError as raised:
            # What torch alone offers as a way out is left out.
            said = str(raised).replace("; `check_finite=False` loads the file anyway", "")
            error = f"{type(raised).__name__}: {said}"
    own = [str(warning.message) for warning in caught if warning.category is FutureWarning]
    return error.replace("Flax", ""), [message.replace("Flax", "") for message in own]


@pytest.mark.parametrize("what", REFUSED)
def test_both_refuse_it_in_the_same_words(what: str, sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    REFUSED[what](folder)
    found = outcome(FlaxStableDiffusionPipeline, folder)
    assert found == outcome(StableDiffusionPipeline, folder)
    assert found[0], "nothing was refused"


@pytest.mark.parametrize("options", [{"variant": "fp16"}, {"variant": "../x"}, {"revision": ".."}])
def test_both_refuse_the_same_options(options: dict[str, Any], sound: Path) -> None:
    found = outcome(FlaxStableDiffusionPipeline, sound, **options)
    assert found == outcome(StableDiffusionPipeline, sound, **options)
    assert found[0], "nothing was refused"


def test_numbers_that_are_no_fractions_and_quantised_weights_are_refused(
    sound: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    weights(having("conv_in.bias", torch.zeros(32, dtype=torch.int8)))(folder)
    with pytest.raises(SfumatoError, match=r"'conv_in\.bias' has the unsupported dtype I8"):
        FlaxStableDiffusionPipeline.from_pretrained(folder)
    network = UNet2DConditionModel(**{**dict(tiny_unet().config), "block_out_channels": (64, 64)})
    quantize(network, "int8-weights")
    network.save_pretrained(tmp_path / "quantised")
    with pytest.raises(ConfigError, match="the weights are quantised, which torch alone"):
        FlaxUNet2DConditionModel.from_pretrained(tmp_path / "quantised")


def test_a_component_that_the_index_lacks_can_be_passed(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    config(INDEX, vae=None)(folder)
    with pytest.raises(InputError, match=r"lacks \['vae'\].* Pass vae as keyword arguments"):
        FlaxStableDiffusionPipeline.from_pretrained(folder)
    vae, vae_params = FlaxAutoencoderKL.from_pretrained(sound, subfolder="vae")
    pipeline, params = FlaxStableDiffusionPipeline.from_pretrained(folder, vae=vae)
    assert pipeline.vae is vae and "vae" not in params and vae_params


def test_unknown_weights_and_keywords_are_passed_over_with_a_warning(
    sound: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    weights(having("foo.weight", torch.zeros(3)))(folder)
    weights(having("text_model.embeddings.position_ids", torch.arange(77)[None]), TEXT)(folder)
    said: list[list[str]] = []
    for pipeline_class in (StableDiffusionPipeline, FlaxStableDiffusionPipeline):
        caplog.clear()
        with caplog.at_level("WARNING"):
            loaded: Any = pipeline_class.from_pretrained(folder, safety_cheker=None, revision="x")
        said.append([record.getMessage().replace("Flax", "") for record in caplog.records])
    assert said[0] == said[1] and len(said[0]) == 2
    assert "foo.weight" not in loaded[1]["unet"]
    assert "text_model.embeddings.position_ids" not in loaded[1]["text_encoder"]


@pytest.mark.parametrize(
    ("change", "flax", "ours"),
    [
        (config(UNET_CONFIG, sample_size=32, _diffusers_version="0.6.0"),
         FlaxStableDiffusionPipeline, StableDiffusionPipeline),
        (config("scheduler/scheduler_config.json", steps_offset=None),
         FlaxStableDiffusionPipeline, StableDiffusionPipeline),
        (config("scheduler/scheduler_config.json", skip_prk_steps=None),
         FlaxStableDiffusionInpaintPipeline, StableDiffusionInpaintPipeline),
    ],
)  # fmt: skip
def test_what_early_checkpoints_have_wrong_is_mended_as_in_torch(
    change: Change, flax: Any, ours: Any, sound: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    change(folder)
    found = outcome(flax, folder)
    assert found == outcome(ours, folder)
    assert len(found[1]) == 1
    with pytest.warns(FutureWarning):
        pipeline, _ = flax.from_pretrained(folder)
    with pytest.warns(FutureWarning):
        pipe = ours.from_pretrained(folder)
    assert pipeline.unet.config.sample_size == pipe.unet.config.sample_size
    names = ("steps_offset", "skip_prk_steps")
    for name in names:
        assert pipeline.scheduler.config[name] == pipe.scheduler.config[name]
    assert pipeline.scheduler.plan(5).to_dict() == _plan(pipe.scheduler, 5).to_dict()


def _plan(scheduler: Any, steps: int) -> Any:
    scheduler.set_timesteps(steps)
    return scheduler.plan()
