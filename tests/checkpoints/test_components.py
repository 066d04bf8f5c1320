"""A pipeline's folder: components by name, overrides, variants, failures."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.checkpoints.classes import CLASSES, class_entry, find_class
from sfumato.checkpoints.components import load_component, save_components
from sfumato.checkpoints.model_index import read_model_index
from sfumato.errors import ConfigError, ModelNotFoundError
from sfumato.models.unet import UNet2DConditionModel
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from sfumato.schedulers import CLASS_NAMES, DDIMScheduler
from tests.checkpoints.tiny import UNET, tiny_pipeline


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sound"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def change(path: Path, **entries: Any) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **entries}))


def test_components_are_loaded_in_the_order_of_the_index(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(dict(reversed(index.items()))))
    with caplog.at_level(logging.INFO):
        StableDiffusionPipeline.from_pretrained(folder)
    loaded = [m for m in caplog.messages if m.startswith("Loaded")]
    assert loaded == [
        f"Loaded {name} as {kind} from `{name}` subfolder of {folder}."
        for name, kind in [
            ("vae", "AutoencoderKL"),
            ("unet", "UNet2DConditionModel"),
            ("tokenizer", "CLIPTokenizer"),
            ("text_encoder", "CLIPTextModel"),
            ("scheduler", "PNDMScheduler"),
        ]
    ]


def test_components_given_by_name_are_not_loaded(folder: Path) -> None:
    unet = UNet2DConditionModel(UNET)
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    shutil.rmtree(folder / "unet")
    change(folder / "model_index.json", unet=["diffusers", "SomethingOfTheFuture"])
    pipe = StableDiffusionPipeline.from_pretrained(folder, unet=unet, scheduler=scheduler)
    assert pipe.unet is unet and pipe.scheduler is scheduler


def test_data_types_can_be_given_by_name(folder: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype={"unet": torch.bfloat16, "default": torch.float64}
    )
    assert pipe.unet.dtype == torch.bfloat16
    assert pipe.vae.dtype == torch.float64 and pipe.text_encoder.dtype == torch.float64


def test_a_missing_component_is_an_error_with_the_wording_of_diffusers(folder: Path) -> None:
    values = json.loads((folder / "model_index.json").read_text())
    del values["vae"]
    (folder / "model_index.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"Pipeline StableDiffusionPipeline expected .*, but only"):
        StableDiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("safety_checker", ["stable_diffusion", "StableDiffusionSafetyChecker"]),
        ("feature_extractor", ["transformers", "CLIPImageProcessor"]),
        ("feature_extractor", ["transformers", "CLIPFeatureExtractor"]),
        ("image_encoder", ["transformers", "CLIPVisionModelWithProjection"]),
    ],
)
def test_optional_parts_whose_files_are_missing_can_be_done_without(
    folder: Path, name: str, entry: list[str]
) -> None:
    change(folder / "model_index.json", **{name: entry})
    with pytest.raises(ModelNotFoundError, match=f"pass `{name}=None`"):
        StableDiffusionPipeline.from_pretrained(folder)
    pipe = StableDiffusionPipeline.from_pretrained(folder, **{name: None})
    assert getattr(pipe, name) is None


def test_a_variant_falls_back_by_component_but_not_for_all(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load = StableDiffusionPipeline.from_pretrained
    with pytest.raises(ValueError, match=r"the model files of the `variant=fp16`, but no such"):
        load(folder, variant="fp16")
    other = UNet2DConditionModel(UNET)
    other.save_pretrained(folder / "unet", variant="fp16")
    pipe = load(folder, variant="fp16")
    assert torch.equal(pipe.unet.conv_in.weight, other.conv_in.weight)
    plain = [m for m in caplog.messages if "no files of the variant 'fp16'" in m]
    assert len(plain) == 2 and "vae" in plain[1] and "text_encoder" in plain[0]


def test_one_component_can_be_loaded_alone(folder: Path) -> None:
    index = read_model_index(folder)
    assert index.class_name == "StableDiffusionPipeline"
    assert index.settings == {"requires_safety_checker": False}
    assert load_component(index, "unet", torch_dtype=torch.float16).dtype == torch.float16
    assert load_component(index, "safety_checker") is None
    with pytest.raises(ConfigError, match="Did you mean 'unet'"):
        load_component(index, "unett")


def test_the_name_of_a_flax_pipeline_is_that_of_its_twin(folder: Path) -> None:
    change(folder / "model_index.json", _class_name="FlaxStableDiffusionPipeline")
    assert read_model_index(folder).class_name == "StableDiffusionPipeline"
    change(folder / "model_index.json", _class_name=["x"])
    with pytest.raises(ConfigError, match="_class_name"):
        read_model_index(folder)


def test_a_failure_in_one_component_leaves_the_saved_folder_whole(
    folder: Path, tmp_path: Path
) -> None:
    class Broken:
        def save_pretrained(self, path: Path) -> None:
            path.mkdir()
            (path / "half").write_text("written")
            raise OSError(28, "No space left on device")

    def content() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    before = content()
    parts = {"unet": UNet2DConditionModel(UNET), "scheduler": Broken()}
    for target in (folder, tmp_path / "new"):
        with pytest.raises(OSError, match="No space"):
            save_components(target, parts, index={"_class_name": "X"})
    assert content() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_cannot_be_saved_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_components(tmp_path / "x", {"safety_checker": object()}, index={"_class_name": "X"})
    index = json.loads((tmp_path / "x" / "model_index.json").read_text())
    assert index["safety_checker"] == [None, None]
    assert "`safety_checker` has no `save_pretrained`" in caplog.text


def test_all_classes_of_the_table_that_are_here_are_found_under_their_names() -> None:
    here = {"UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel", "CLIPTokenizer", *CLASS_NAMES}
    here |= {"AutoencoderTiny", "CLIPVisionModelWithProjection", "StableDiffusionSafetyChecker"}
    here |= {"CLIPImageProcessor", "CLIPFeatureExtractor"}
    assert here <= set(CLASSES)
    for name in here:
        assert find_class(name, "test").__name__ == name
        assert find_class(f"Flax{name}", "test").__name__ == name
    assert find_class("CLIPTokenizerFast", "test").__name__ == "CLIPTokenizer"
    assert class_entry(DDIMScheduler()) == ("diffusers", "DDIMScheduler")
    assert class_entry(None) == (None, None)


def test_a_subclass_is_saved_under_the_name_of_its_published_base() -> None:
    class Mine(UNet2DConditionModel):
        pass

    Mine.__module__ = "sfumato.models.unet"
    assert class_entry(Mine(UNET)) == ("diffusers", "UNet2DConditionModel")
