"""Files of IP-Adapters: where they lie, how they are named, and what is wrong with some."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sfumato.errors import AdapterError, CheckpointError, InputError, UnknownKeywordError
from sfumato.models.ip_adapter import cross_attention_layers
from sfumato.pipelines import ip_adapter_methods
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from tests.pipelines.ip_adapters import (
    KINDS,
    Adapter,
    load,
    picture_pipeline,
    random_adapter,
    save_adapter,
    tiny_encoder,
)
from tests.pipelines.tiny import tiny_pipeline, tiny_unet


def _same(one: Any, other: Any) -> bool:
    states = one.unet.state_dict(), other.unet.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(tensor, states[1][name]) for name, tensor in states[0].items()
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder as the authors of IP-Adapter publish theirs."""
    unet = picture_pipeline().unet
    save_adapter(random_adapter(unet, "plain"), tmp_path / "models" / "ip-adapter_sd15.safetensors")
    save_adapter(random_adapter(unet, "plus", 1), tmp_path / "models" / "ip-adapter-plus_sd15.bin")
    tiny_encoder().save_pretrained(tmp_path / "models" / "image_encoder")
    tiny_encoder(9).save_pretrained(tmp_path / "others" / "image_encoder")
    return tmp_path


def test_adapters_and_their_image_encoder_load_from_a_folder(repository: Path) -> None:
    pipeline, expected = tiny_pipeline(), picture_pipeline()
    names = ["ip-adapter_sd15.safetensors", "ip-adapter-plus_sd15.bin"]
    pipeline.load_ip_adapter(repository, subfolder="models", weight_name=names)
    load(expected, random_adapter(expected.unet, "plain"), random_adapter(expected.unet, "plus", 1))
    assert _same(pipeline, expected)
    state = pipeline.image_encoder.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in tiny_encoder().state_dict().items())
    assert pipeline.feature_extractor.crop_size == {"height": 24, "width": 24}
    assert pipeline.config["image_encoder"][1] == "CLIPVisionModelWithProjection"


def test_a_file_loads_by_its_path_with_the_encoder_beside_it(repository: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.load_ip_adapter(str(repository / "models" / "ip-adapter-plus_sd15.bin"), "", "")
    assert pipeline.image_encoder is not None
    expected = picture_pipeline()
    load(expected, random_adapter(expected.unet, "plus", 1))
    assert _same(pipeline, expected)


def test_an_encoder_folder_with_a_slash_counts_from_the_top(repository: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.load_ip_adapter(
        repository, "models", "ip-adapter_sd15.safetensors", "others/image_encoder"
    )
    state = pipeline.image_encoder.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in tiny_encoder(9).state_dict().items())


def test_a_pipeline_keeps_the_image_encoder_that_it_has(repository: Path) -> None:
    pipeline = picture_pipeline()
    encoder = pipeline.image_encoder
    pipeline.load_ip_adapter(repository, "models", "ip-adapter_sd15.safetensors")
    assert pipeline.image_encoder is encoder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["flat", "safetensors", "bin", "training", "own"])
def test_every_layout_gives_the_same_adapter(kind: str, layout: str, tmp_path: Path) -> None:
    pipeline, expected = picture_pipeline(), picture_pipeline()
    adapter = random_adapter(pipeline.unet, kind, depth=2)
    load(expected, adapter)
    flat = {f"{table}.{k}": v for table, part in adapter.items() for k, v in part.items()}
    if layout in ("safetensors", "bin"):
        save_adapter(adapter, tmp_path / f"adapter.{layout}")
        pipeline.load_ip_adapter(tmp_path, "", f"adapter.{layout}")
    elif layout == "own":
        load(pipeline, {f"unet.{n}": t for n, t in expected.unet.state_dict().items()})
    elif layout == "training":
        names = {"image_proj.": "image_proj_model.", "ip_adapter.": "adapter_modules."}
        table = {f"{names[n[:11]]}{n[11:]}": t for n, t in flat.items()}
        load(pipeline, table)  # type: ignore[arg-type]
    else:
        load(pipeline, flat)  # type: ignore[arg-type]
    assert _same(pipeline, expected)


def test_names_that_mean_nothing_are_logged_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    pipeline, expected = picture_pipeline(), picture_pipeline()
    adapter = random_adapter(pipeline.unet)
    load(expected, adapter)
    odd = {
        "image_proj": adapter["image_proj"] | {"pos_emb.weight": torch.ones(1)},
        "ip_adapter": adapter["ip_adapter"] | {"1.to_q_ip.weight": torch.ones(1)},
        "epoch": {"of": torch.ones(1)},
    }
    with caplog.at_level(logging.WARNING, "sfumato.pipelines.ip_adapter_build"):
        load(pipeline, odd)
    for name in ("pos_emb.weight", "1.to_q_ip.weight", "epoch"):
        assert f"{name}: unknown" in caplog.text
    assert _same(pipeline, expected)


def _without(table: str, name: str) -> Callable[[Adapter], Any]:
    def change(adapter: Adapter) -> Any:
        return {**adapter, table: {k: v for k, v in adapter[table].items() if k != name}}

    return change


def _with(table: str, name: str, tensor: Any) -> Callable[[Adapter], Any]:
    return lambda adapter: {**adapter, table: {**adapter[table], name: tensor}}


MISFITS: dict[str, tuple[str, Callable[[Adapter], Any], str]] = {
    "empty": ("plain", lambda a: {}, "Required keys are"),
    "a LoRA": ("plain", lambda a: {"x.lora_A.weight": torch.ones(1, 1)}, "Required keys are"),
    "one table": ("plain", lambda a: {"ip_adapter": a["ip_adapter"]}, "no `image_proj`"),
    "an empty table": ("plain", lambda a: {**a, "ip_adapter": {}}, "no `ip_adapter`"),
    "one flat table": ("plain", lambda a: {"image_proj.x": torch.ones(1)}, "no `ip_adapter`"),
    "no tensor": ("plain", _with("ip_adapter", "1.to_k_ip.weight", [1]), "no tensor with a name"),
    "integers": (
        "plain",
        _with("image_proj", "proj.weight", torch.ones(2, 2, dtype=torch.int8)),
        "unsupported dtype",
    ),
    "no layer": ("plain", _without("ip_adapter", "3.to_v_ip.weight"), "missing"),
    "a layer too many": (
        "plain",
        _with("ip_adapter", "99.to_k_ip.weight", torch.ones(64, 32)),
        "99.to_k_ip: this UNet has no such layer",
    ),
    "another width": (
        "plain",
        _with("ip_adapter", "1.to_k_ip.weight", torch.ones(64, 768)),
        r"\[64, 768\], not \[64, 32\]",
    ),
    "no norm": ("plain", _without("image_proj", "norm.weight"), "lacks the tensor `norm.weight`"),
    "no bias": ("plain", _without("image_proj", "norm.bias"), "norm.bias: missing"),
    "odd rows": ("plain", _with("image_proj", "proj.weight", torch.ones(33, 12)), "no multiple"),
    "a scalar": ("plus", _with("image_proj", "latents", torch.tensor(1.0)), "has the shape"),
    "no size": ("plus", _with("image_proj", "latents", torch.ones(1, 0, 20)), "has the shape"),
    "odd heads": (
        "plus",
        _with("image_proj", "layers.0.0.to_q.weight", torch.ones(65, 20)),
        "no multiple of 64",
    ),
    "half a layer": (
        "plus",
        _without("image_proj", "layers.1.0.to_kv.weight"),
        "layers.1.attn.to_k.weight: missing",
    ),
    "an unknown kind": ("plain", lambda a: {**a, "image_proj": {"x": torch.ones(1)}}, "no known"),
    "twice": (
        "plus",
        _with("image_proj", "layers.0.attn.to_q.weight", torch.ones(64, 20)),
        "twice",
    ),
    "a LoRA's half": (
        "face",
        _with("ip_adapter", "0.to_q_lora.down.weight", torch.ones(2, 64)),
        "other half is missing",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_misfit_is_refused_in_words_and_changes_nothing(name: str) -> None:
    kind, change, message = MISFITS[name]
    pipeline, expected = tiny_pipeline(), tiny_pipeline()
    for other in (pipeline, expected):
        load(other, random_adapter(other.unet, "plain", 9))
    before = pipeline.components
    processors = pipeline.unet.attn_processors
    with pytest.raises(AdapterError, match=message):
        load(pipeline, random_adapter(pipeline.unet), change(random_adapter(pipeline.unet, kind)))
    assert _same(pipeline, expected)
    assert pipeline.unet.attn_processors == processors and pipeline.components == before


def test_an_adapter_for_another_base_model_says_so() -> None:
    pipeline = picture_pipeline()
    with pytest.raises(AdapterError, match="looks like an IP-Adapter for SDXL"):
        load(pipeline, random_adapter(tiny_unet(cross_attention_dim=2048)))
    with pytest.raises(AdapterError, match="this UNet has no such layer"):
        load(pipeline, random_adapter(tiny_unet(layers_per_block=3)))


@pytest.mark.parametrize(
    "fields",
    [
        {
            "down_block_types": ("DownBlock2D", "SimpleCrossAttnDownBlock2D"),
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "UpBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        },
        {"encoder_hid_dim": 12, "encoder_hid_dim_type": "image_proj"},
    ],
)
def test_a_unet_of_another_kind_takes_no_adapter(fields: dict[str, Any]) -> None:
    pipeline = picture_pipeline(unet=tiny_unet(**fields))
    with pytest.raises(AdapterError, match="takes no IP-Adapter"):
        load(pipeline, random_adapter(tiny_unet()))


def test_a_failure_while_installing_leaves_all_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, expected = picture_pipeline(), picture_pipeline()
    for other in (pipeline, expected):
        load(other, random_adapter(other.unet, "face", 9, loras=True))
    processors, config = pipeline.unet.attn_processors, pipeline.unet.config

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(ip_adapter_methods.ip_adapter, "attach", fail)
    with pytest.raises(MemoryError):
        load(pipeline, random_adapter(pipeline.unet, "face", 1, loras=True))
    monkeypatch.undo()
    assert _same(pipeline, expected)
    assert pipeline.unet.attn_processors == processors and pipeline.unet.config is config
    assert pipeline.get_active_adapters() == ["faceid_0"]
    pipeline.unload_ip_adapter()
    assert _same(pipeline, picture_pipeline()) and not pipeline.get_list_adapters()


def test_files_that_are_missing_or_damaged_are_named(repository: Path) -> None:
    pipeline: StableDiffusionPipeline = tiny_pipeline()
    wrong: list[tuple[Any, ...]] = [
        (repository, "models", "ip-adapter.safetensors"),
        (repository, "nowhere", "ip-adapter_sd15.safetensors"),
        (repository / "nowhere", "models", "ip-adapter_sd15.safetensors"),
    ]
    for arguments in wrong:
        with pytest.raises(CheckpointError):
            pipeline.load_ip_adapter(*arguments)
    with pytest.raises(CheckpointError, match=r"image encoder is missing.*image_encoder_folder"):
        pipeline.load_ip_adapter(repository, "models", "ip-adapter_sd15.safetensors", "encoder")
    with pytest.raises(InputError, match="is no name of something in"):
        pipeline.load_ip_adapter(repository, "..", "ip-adapter_sd15.safetensors")
    with pytest.raises(InputError, match="is a state dict"):
        pipeline.load_ip_adapter(random_adapter(pipeline.unet), "", "")
    with pytest.raises(UnknownKeywordError, match="image_encoder_foldr"):
        pipeline.load_ip_adapter(repository, "models", "x.bin", image_encoder_foldr=None)
    with pytest.raises(InputError, match="has to be text"):
        pipeline.load_ip_adapter(repository, "models", 3)  # type: ignore[arg-type]
    assert pipeline.image_encoder is None and pipeline.feature_extractor is None
    assert not cross_attention_layers(pipeline.unet).keys() & pipeline.unet.state_dict().keys()


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    pipeline = picture_pipeline()
    adapter = random_adapter(pipeline.unet)
    adapter["image_proj"]["norm.weight"][0] = torch.nan
    for name in ("adapter.safetensors", "adapter.bin"):
        save_adapter(adapter, tmp_path / name)
        with pytest.raises(CheckpointError, match=r"norm\.weight|NaN"):
            pipeline.load_ip_adapter(tmp_path, "", name)


def test_a_file_of_another_kind_is_called_by_its_name(tmp_path: Path) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.ones(1, 1)}, tmp_path / "x.safetensors")
    with pytest.raises(AdapterError, match="The file looks like a LoRA"):
        picture_pipeline().load_ip_adapter(tmp_path, "", "x.safetensors")
