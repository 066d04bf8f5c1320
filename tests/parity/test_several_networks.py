"""Folders with several networks in the place of one, in both directions with diffusers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import diffusers
import pytest
import torch
from torch import nn

from sfumato.errors import InputError, ModelNotFoundError
from sfumato.models.controlnet import MultiControlNetModel
from sfumato.models.t2i_adapter import MultiAdapter, T2IAdapter
from sfumato.pipelines.base import DiffusionPipeline
from sfumato.pipelines.controlnet import StableDiffusionControlNetPipeline
from sfumato.pipelines.t2i_adapter import StableDiffusionAdapterPipeline
from tests.pipelines.tiny import seeded, tiny_controlnet, tiny_parts, tiny_unet

oracles = cast(Any, diffusers)


def _adapters(count: int) -> list[T2IAdapter]:
    torch.manual_seed(0)
    fields: dict[str, Any] = {"channels": (32, 64), "num_res_blocks": 1, "downscale_factor": 2}
    return [T2IAdapter(**fields).eval() for _ in range(count)]


def _pipeline(kind: str, count: int) -> Any:
    parts = tiny_parts(1)
    if kind == "controlnet":
        nets = [tiny_controlnet(index) for index in range(count)]
        return StableDiffusionControlNetPipeline(**parts, controlnet=nets)
    kinds = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    parts["unet"] = tiny_unet(7, **kinds)
    return StableDiffusionAdapterPipeline(**parts, adapter=_adapters(count))


def _equal(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][key]) for key, value in states[0].items()
    )


def _drawn(pipe: Any, kind: str) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    images = [torch.rand(1, 3, 16, 16, generator=seeded(i)) for i in range(2)]
    return pipe(
        "a boat",
        image=images,
        num_inference_steps=2,
        generator=seeded(1),
        output_type="latent",
        **({} if kind == "controlnet" else {"adapter_conditioning_scale": [0.5, 0.7]}),
    ).images


@pytest.mark.parametrize("kind", ["controlnet", "adapter"])
def test_a_pipeline_with_two_networks_is_saved_and_loaded_as_by_diffusers(
    kind: str, tmp_path: Path
) -> None:
    pipe = _pipeline(kind, 2)
    pipe.save_pretrained(tmp_path / "ours")
    assert (tmp_path / "ours" / f"{kind}_1" / "config.json").is_file()
    again: Any = DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert type(again) is type(pipe)
    assert _equal(getattr(again, kind), getattr(pipe, kind))
    theirs = oracles.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert torch.allclose(_drawn(again, kind), _drawn(theirs, kind), atol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    back: Any = DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert _equal(getattr(back, kind), getattr(pipe, kind))


def test_networks_are_loaded_beside_each_other(tmp_path: Path) -> None:
    nets = MultiControlNetModel([tiny_controlnet(i) for i in range(3)])
    nets.save_pretrained(tmp_path / "net", variant="fp16")
    loaded = MultiControlNetModel.from_pretrained(
        tmp_path / "net", variant="fp16", torch_dtype=torch.float16
    )
    assert loaded.dtype == torch.float16
    assert len(loaded.nets) == 3
    theirs = oracles.MultiControlNetModel.from_pretrained(str(tmp_path / "net"), variant="fp16")
    assert _equal(MultiControlNetModel.from_pretrained(tmp_path / "net", variant="fp16"), theirs)


@pytest.mark.parametrize("whole", [False, True])
def test_networks_of_an_earlier_save_are_not_loaded_with_later_ones(
    whole: bool, tmp_path: Path
) -> None:
    for count in (3, 2):
        pipe = _pipeline("adapter", count)
        if whole:
            pipe.save_pretrained(tmp_path)
        else:
            pipe.adapter.save_pretrained(tmp_path / "adapter")
    assert len(MultiAdapter.from_pretrained(tmp_path / "adapter").adapters) == 2


def test_missing_folders_and_links_out_of_the_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        MultiControlNetModel.from_pretrained(tmp_path / "net")
    _pipeline("controlnet", 2).save_pretrained(tmp_path / "model")
    shutil.move(tmp_path / "model" / "controlnet_1", tmp_path / "elsewhere")
    (tmp_path / "model" / "controlnet_1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises((OSError, ValueError)):
        DiffusionPipeline.from_pretrained(tmp_path / "model")


def test_one_adapter_is_none_of_several(tmp_path: Path) -> None:
    _adapters(1)[0].save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="single adapter"):
        MultiAdapter.from_pretrained(tmp_path / "adapter")
