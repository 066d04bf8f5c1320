"""Pipelines from and to folders: what is loaded, overridden, left out and refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.checkpoints import folders
from sfumato.checkpoints.tensors import read_safetensors
from sfumato.errors import ConfigError, InputError, ModelNotFoundError
from sfumato.pipelines.base import DiffusionPipeline
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from tests.pipelines.tiny import tiny_pipeline, tiny_scheduler, tiny_vae


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def _change_index(folder: Path, **changes: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_brings_back_the_same_weights_and_settings(saved: Path) -> None:
    pipe, again = tiny_pipeline(), StableDiffusionPipeline.from_pretrained(saved)
    for name in ("unet", "vae", "text_encoder"):
        mine, other = (getattr(p, name).state_dict() for p in (pipe, again))
        assert all(torch.equal(mine[key], other[key]) for key in mine)
        assert not getattr(again, name).training
    for key, value in pipe.scheduler.config.items():
        assert key.startswith("_") or again.scheduler.config[key] == value
    assert again.config.requires_safety_checker is False
    assert again.name_or_path == str(saved)


def test_the_base_class_chooses_the_class_that_the_folder_names(saved: Path) -> None:
    assert type(DiffusionPipeline.from_pretrained(saved)) is StableDiffusionPipeline


@pytest.mark.parametrize("name", ["FlaxStableDiffusionPipeline", "StableDiffusionPipeline"])
def test_flax_folders_name_the_same_class(folder: Path, name: str) -> None:
    _change_index(folder, _class_name=name)
    assert type(DiffusionPipeline.from_pretrained(str(folder))) is StableDiffusionPipeline


@pytest.mark.parametrize("name", ["os.system", "StableDifusionPipeline", "", None])
def test_an_unknown_pipeline_is_refused(folder: Path, name: str | None) -> None:
    _change_index(folder, _class_name=name)
    with pytest.raises(ConfigError, match="unknown pipeline"):
        DiffusionPipeline.from_pretrained(folder)


def test_components_given_by_name_are_not_loaded(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    vae, scheduler = tiny_vae(3), tiny_scheduler("DDIMScheduler")
    pipe = StableDiffusionPipeline.from_pretrained(folder, vae=vae, scheduler=scheduler)
    assert pipe.vae is vae
    assert pipe.scheduler is scheduler
    without = StableDiffusionPipeline.from_pretrained(folder, vae=None, text_encoder=None)
    assert without.vae is without.text_encoder is None


def test_the_precision_can_differ_between_components(saved: Path) -> None:
    kinds = {"unet": torch.bfloat16, "default": torch.float64}
    pipe = StableDiffusionPipeline.from_pretrained(saved, torch_dtype=kinds)
    assert pipe.unet.dtype == torch.bfloat16
    assert pipe.vae.dtype == pipe.text_encoder.dtype == torch.float64
    half = StableDiffusionPipeline.from_pretrained(saved, dtype=torch.bfloat16, device_map="cpu")
    assert half.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="mean the same"):
        StableDiffusionPipeline.from_pretrained(
            saved, dtype=torch.float32, torch_dtype=torch.float32
        )


def test_a_misspelt_component_in_a_table_of_precisions_is_refused(
    saved: Path, tmp_path: Path
) -> None:
    tiny_pipeline().save_single_file(tmp_path / "m.safetensors")
    for load, path in (
        (StableDiffusionPipeline.from_pretrained, saved),
        (StableDiffusionPipeline.from_single_file, tmp_path / "m.safetensors"),
    ):
        with pytest.raises(ConfigError, match=r"'text_encodr'. Did you mean 'text_encoder'\?"):
            load(path, torch_dtype={"text_encodr": torch.float16})


def test_how_to_read_weights_is_passed_on_to_the_networks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def read(path: Path, **options: Any) -> dict[str, torch.Tensor]:
        asked.append((path.parent.name, options["mmap"], options["check_finite"]))
        return read_safetensors(path, **options)

    monkeypatch.setattr(folders, "read_safetensors", read)
    load = StableDiffusionPipeline.from_pretrained
    load(folder, disable_mmap=True, check_finite=False)
    load(folder)
    parts = ("text_encoder", "unet", "vae")
    assert sorted(asked[:3]) == [(part, False, False) for part in parts]
    assert sorted(asked[3:]) == [(part, None, None) for part in parts]


def test_a_variant_falls_back_to_plain_files_of_single_components(
    saved: Path, tmp_path: Path
) -> None:
    tiny_pipeline().save_pretrained(tmp_path, variant="fp16")
    shutil.rmtree(tmp_path / "vae")
    shutil.copytree(saved / "vae", tmp_path / "vae")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path, variant="fp16")
    weights = pipe.vae.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in tiny_vae(1).state_dict().items())
    with pytest.raises(OSError, match="variant"):
        StableDiffusionPipeline.from_pretrained(tmp_path)


def test_a_variant_that_no_component_has_is_an_error(saved: Path) -> None:
    with pytest.raises(ValueError, match="`variant=fp16`, but no such modeling files"):
        StableDiffusionPipeline.from_pretrained(saved, variant="fp16")


def test_pickles_are_refused_when_safetensors_are_insisted_on(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path, safe_serialization=False)
    assert StableDiffusionPipeline.from_pretrained(tmp_path).unet is not None
    with pytest.raises(OSError, match="safetensors"):
        StableDiffusionPipeline.from_pretrained(tmp_path, use_safetensors=True)


def test_a_missing_component_is_named(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    del index["unet"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"expected .*'unet'.*, but only .*Pass unet as"):
        StableDiffusionPipeline.from_pretrained(folder)


def test_a_component_that_is_absent_on_purpose_is_none(folder: Path) -> None:
    _change_index(folder, text_encoder=[None, None])
    assert StableDiffusionPipeline.from_pretrained(folder).text_encoder is None


def test_a_safety_checker_whose_files_are_missing_is_not_passed_over(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _change_index(
        folder,
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        requires_safety_checker=True,
    )
    with pytest.raises(ModelNotFoundError, match="To do without it, pass `safety_checker=None`"):
        StableDiffusionPipeline.from_pretrained(folder)
    caplog.clear()
    pipe = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False
    )
    assert pipe.safety_checker is None
    assert not caplog.records


def test_a_keyword_that_means_nothing_is_warned_of(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    StableDiffusionPipeline.from_pretrained(saved, safty_checker=None, local_files_only=True)
    assert [record.message for record in caplog.records] == [
        "Keyword arguments {'safty_checker'} are not expected by StableDiffusionPipeline and will"
        " be ignored. Did you mean 'safety_checker'?"
    ]


def test_loading_is_logged_component_by_component(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="sfumato")
    StableDiffusionPipeline.from_pretrained(saved)
    message = f"Loaded unet as UNet2DConditionModel from `unet` subfolder of {saved}."
    assert message in caplog.messages


def test_what_is_no_folder_is_an_error_of_both_kinds(tmp_path: Path) -> None:
    for name in ("nothing", "runwayml/stable-diffusion-v1-5", "a/b/c"):
        with pytest.raises(ModelNotFoundError, match="is not a folder") as caught:
            StableDiffusionPipeline.from_pretrained(tmp_path / name)
        assert isinstance(caught.value, OSError)
        assert isinstance(caught.value, ValueError)


def test_an_early_checkpoint_has_its_sample_size_mended(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "_diffusers_version": "0.6.0.dev0"})
    )
    with pytest.warns(FutureWarning, match="`sample_size` to 8"):
        pipe = StableDiffusionPipeline.from_pretrained(folder)
    assert pipe.unet.config.sample_size == 64


def test_what_cannot_be_saved_is_absent_from_the_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = tiny_pipeline(
        safety_checker=lambda images, clip_input: (images, [False]),
        feature_extractor=lambda pictures, return_tensors: None,
    )
    pipe.save_pretrained(tmp_path)
    assert "`safety_checker` has no `save_pretrained`" in caplog.text
    assert StableDiffusionPipeline.from_pretrained(tmp_path).safety_checker is None


def test_nothing_is_uploaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sfumato uploads nothing"):
        tiny_pipeline().save_pretrained(tmp_path, push_to_hub=True)
    assert not list(tmp_path.iterdir())


def test_the_device_can_be_given_while_loading(saved: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(saved, device_map="balanced")
    assert pipe.device.type in ("cpu", "cuda", "mps", "xpu")
    with pytest.raises(ValueError, match="`device_map` must be a string"):
        StableDiffusionPipeline.from_pretrained(saved, device_map={"unet": "cpu"})
