"""What every pipeline can do with its components: hold, move, switch and share them."""

from __future__ import annotations

import importlib.util
import io
import logging
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sfumato.errors import InputError, MissingDependencyError, UnknownKeywordError
from sfumato.models.xformers_attention import XFormersAttnProcessor
from sfumato.pipelines import placement
from sfumato.pipelines.base import DiffusionPipeline
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from sfumato.runtime import pages
from tests.pipelines.tiny import seeded, tiny_parts, tiny_pipeline, tiny_scheduler, tiny_unet


def _latents(pipe: Any, **arguments: Any) -> torch.Tensor:
    call = {"num_inference_steps": 2, "generator": seeded(1), "output_type": "latent"}
    return pipe("a boat", **{**call, **arguments}).images


def test_components_can_be_handed_to_another_pipeline() -> None:
    pipe = tiny_pipeline()
    again = StableDiffusionPipeline(**pipe.components)
    assert again.components == pipe.components
    assert set(pipe.components) == {
        "vae",
        "text_encoder",
        "tokenizer",
        "unet",
        "scheduler",
        "safety_checker",
        "feature_extractor",
        "image_encoder",
    }


def test_components_that_were_not_registered_are_reported() -> None:
    class Half(DiffusionPipeline):
        def __init__(self, unet: Any, vae: Any) -> None:
            super().__init__()
            self.register_modules(unet=unet)

    with pytest.raises(ValueError, match=r"Expected \['unet', 'vae'\].*but \['unet'\]"):
        _ = Half(None, None).components


def test_the_configuration_follows_a_replaced_component() -> None:
    pipe = tiny_pipeline()
    assert pipe.config["scheduler"] == ("diffusers", "PNDMScheduler")
    pipe.scheduler = tiny_scheduler("EulerDiscreteScheduler")
    assert pipe.config.scheduler == ("diffusers", "EulerDiscreteScheduler")
    pipe.vae = None
    assert pipe.config["vae"] == (None, None)
    pipe.vae = tiny_parts()["vae"]
    assert pipe.config["vae"] == ("diffusers", "AutoencoderKL")
    assert pipe.config["text_encoder"] == ("transformers", "CLIPTextModel")
    assert pipe.config["tokenizer"] == ("transformers", "CLIPTokenizer")
    assert pipe.config["safety_checker"] == (None, None)


def test_the_configuration_is_read_only_and_says_what_is_missing() -> None:
    pipe = tiny_pipeline()
    with pytest.raises(TypeError, match="read-only"):
        pipe.config["vae"] = None
    with pytest.raises(TypeError, match="read-only"):
        pipe.config.vae = None
    with pytest.raises(AttributeError, match="nothing"):
        _ = pipe.config.nothing
    assert dict(pipe.config)["requires_safety_checker"] is False
    assert '"StableDiffusionPipeline"' in repr(pipe)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((torch.bfloat16,), {}),
        (("cpu", torch.bfloat16), {}),
        ((torch.device("cpu"),), {"dtype": torch.bfloat16}),
        ((), {"device": "cpu", "dtype": torch.bfloat16}),
        ((None, torch.bfloat16), {}),
    ],
)
def test_all_ways_to_convert_convert_all_networks(args: Any, kwargs: Any) -> None:
    pipe = tiny_pipeline()
    assert pipe.to(*args, **kwargs) is pipe
    assert pipe.dtype == torch.bfloat16
    assert pipe.vae.dtype == pipe.text_encoder.dtype == pipe.unet.dtype == torch.bfloat16
    assert _latents(pipe).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((torch.float32, "cpu"), {}, "the first corresponds to `device`"),
        (("cpu", torch.float32, 1), {}, "at most two arguments"),
        ((torch.float32,), {"dtype": torch.float32}, "`dtype` both as an argument"),
        (("cpu",), {"device": "cpu"}, "`device` both as an argument"),
        (("cpu", "float32"), {}, "`dtype` has to be a torch.dtype"),
    ],
)
def test_contradicting_places_are_value_errors(args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_pipeline().to(*args, **kwargs)


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    with pytest.raises(InputError, match=r"There is no device 'cuda:3' here.*Use 'cpu'"):
        tiny_pipeline().to("cuda:3")


def test_an_empty_pipeline_is_on_the_cpu_in_float32() -> None:
    parts = dict.fromkeys(tiny_parts())
    parts["requires_safety_checker"] = False
    pipe = StableDiffusionPipeline(**parts)
    assert pipe.device == pipe._execution_device == torch.device("cpu")
    assert pipe.dtype == torch.float32
    assert pipe.vae_scale_factor == 8


def test_float16_on_the_cpu_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    pipe = tiny_pipeline()
    pipe.to(torch.float16)
    assert [r.levelname for r in caplog.records if "float16" in r.message] == ["WARNING"]
    caplog.clear()
    pipe.to(torch.float16, silence_dtype_warnings=True)
    assert not caplog.records


def test_a_pipeline_made_of_another_keeps_its_precision_and_settings() -> None:
    pipe = tiny_pipeline().to(torch.bfloat16)
    again = StableDiffusionPipeline.from_pipe(pipe)
    assert again.dtype == torch.bfloat16
    assert again.unet is pipe.unet
    assert again.config.requires_safety_checker is False
    other = tiny_unet(9)
    wider = StableDiffusionPipeline.from_pipe(pipe, unet=other, torch_dtype=torch.float32)
    assert wider.unet is other
    assert wider.dtype == torch.float32


def test_settings_that_a_class_does_not_have_travel_along_privately() -> None:
    class Other(DiffusionPipeline):
        def __init__(self, unet: Any, scheduler: Any, strength: float = 0.5) -> None:
            super().__init__()
            self.register_modules(unet=unet, scheduler=scheduler)
            self.register_to_config(strength=strength)

    pipe = tiny_pipeline()
    other = Other.from_pipe(pipe, strength=0.25)
    assert other.config.strength == 0.25
    assert other.config["_requires_safety_checker"] is False
    back = StableDiffusionPipeline.from_pipe(
        other, vae=pipe.vae, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer
    )
    assert back.config.requires_safety_checker is False
    assert back.config["_strength"] == 0.25
    with pytest.raises(ValueError, match=r"expected .* but only \['scheduler', 'unet'\]"):
        StableDiffusionPipeline.from_pipe(other)
    with pytest.raises(UnknownKeywordError, match=r"'strenght'. Did you mean 'strength'\?"):
        Other.from_pipe(pipe, strenght=1.0)


def test_the_progress_bar_is_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    pipe = tiny_pipeline()
    for file, drawn in ((io.StringIO(), False), (Terminal(), True)):
        pipe.set_progress_bar_config(file=file, desc="drawing")
        _latents(pipe)
        assert ("drawing" in file.getvalue()) == drawn
    hidden = Terminal()
    pipe.set_progress_bar_config(file=hidden, disable=True)
    _latents(pipe)
    assert hidden.getvalue() == ""


def test_the_progress_bar_needs_a_total_or_an_iterable() -> None:
    pipe = tiny_pipeline()
    assert list(pipe.progress_bar([1, 2])) == [1, 2]
    for arguments in ({}, {"iterable": [1], "total": 1}):
        with pytest.raises(ValueError, match="Either `total` or `iterable`"):
            pipe.progress_bar(**arguments)


def test_arrays_become_pictures() -> None:
    pictures = StableDiffusionPipeline.numpy_to_pil(np.full((2, 8, 8, 3), 0.5))
    assert [picture.getpixel((0, 0)) for picture in pictures] == [(128, 128, 128)] * 2


@pytest.mark.parametrize("size", ["auto", "max", 1])
def test_attention_in_slices_gives_the_same_picture(size: Any) -> None:
    pipe = tiny_pipeline()
    whole = _latents(pipe)
    pipe.enable_attention_slicing(size)
    assert torch.allclose(_latents(pipe), whole, atol=1e-3)
    pipe.disable_attention_slicing()
    assert torch.equal(_latents(pipe), whole)


def test_decoding_in_slices_and_tiles_is_passed_on_to_the_autoencoder() -> None:
    pipe = tiny_pipeline()
    call: dict[str, Any] = {"output_type": "pt", "num_images_per_prompt": 2}
    whole = _latents(pipe, **call)
    pipe.enable_vae_slicing()
    assert pipe.vae.use_slicing
    assert torch.allclose(_latents(pipe, **call), whole, atol=1e-5)
    pipe.disable_vae_slicing()
    assert not pipe.vae.use_slicing
    pipe.enable_vae_tiling()
    assert pipe.vae.use_tiling
    pipe.disable_vae_tiling()
    assert not pipe.vae.use_tiling


def test_freeu_changes_the_picture_until_it_is_switched_off() -> None:
    pipe = tiny_pipeline()
    plain = _latents(pipe)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert not torch.allclose(_latents(pipe), plain, atol=1e-2)
    pipe.disable_freeu()
    assert torch.equal(_latents(pipe), plain)


def test_fused_projections_give_the_same_picture(caplog: pytest.LogCaptureFixture) -> None:
    pipe = tiny_pipeline()
    plain = _latents(pipe, output_type="pt")
    pipe.fuse_qkv_projections()
    assert pipe.fusing_unet
    assert pipe.fusing_vae
    assert torch.allclose(_latents(pipe, output_type="pt"), plain, atol=1e-4)
    pipe.unfuse_qkv_projections()
    assert torch.equal(_latents(pipe, output_type="pt"), plain)
    pipe.unfuse_qkv_projections()
    assert sum("was not fused" in record.message for record in caplog.records) == 2


def test_a_switch_for_a_missing_network_says_so() -> None:
    pipe = tiny_pipeline()
    pipe.vae = pipe.unet = None
    for switch in (pipe.enable_vae_slicing, pipe.disable_freeu, pipe.fuse_qkv_projections):
        with pytest.raises(ValueError, match=r"The pipeline must have `(vae|unet)`"):
            switch()


def test_fusing_needs_an_autoencoder_that_can() -> None:
    pipe = tiny_pipeline()
    pipe.vae = nn.Identity()
    with pytest.raises(ValueError, match="needs another class of `vae`"):
        pipe.fuse_qkv_projections(unet=False)


def test_xformers_is_refused_where_it_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipeline()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="xformers is not installed"):
        pipe.enable_xformers_memory_efficient_attention()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"torch\.cuda\.is_available\(\) should be True"):
        pipe.unet.enable_xformers_memory_efficient_attention()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(MissingDependencyError, match="does not load"):
        pipe.enable_xformers_memory_efficient_attention()
    pipe.disable_xformers_memory_efficient_attention()


def test_xformers_computes_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign(nn.Module):
        calls: list[Any] = []  # noqa: RUF012

        def set_use_memory_efficient_attention_xformers(self, valid: bool, op: Any) -> None:
            self.calls.append((valid, op))

    ops: list[Any] = []

    def attention(q: Any, k: Any, v: Any, attn_bias: Any, op: Any, scale: float) -> Any:
        """xformers' function; tokens come before heads."""
        ops.append(op)
        assert attn_bias is None or attn_bias.stride(-2) % 8 == 0
        heads = (t.transpose(1, 2) for t in (q, k, v))
        mixed = nn.functional.scaled_dot_product_attention(*heads, attn_mask=attn_bias, scale=scale)
        return mixed.transpose(1, 2)

    module = types.ModuleType("xformers.ops")
    module.memory_efficient_attention = attention  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    pipe = tiny_pipeline()
    plain = _latents(pipe)
    assert not ops
    pipe.safety_checker = Foreign()
    pipe.enable_xformers_memory_efficient_attention("op")
    assert type(pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor) is (
        XFormersAttnProcessor
    )
    pipe.safety_checker = None
    assert torch.allclose(_latents(pipe), plain, atol=1e-5)
    assert set(ops) == {"op"}
    masked: dict[str, Any] = {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": 3,
        "encoder_hidden_states": torch.randn(2, 7, 32),
        "encoder_attention_mask": torch.tensor([[1] * 4 + [0] * 3] * 2),
    }
    with torch.no_grad():
        ours = pipe.unet(**masked).sample
        pipe.disable_xformers_memory_efficient_attention()
        assert torch.allclose(ours, pipe.unet(**masked).sample, atol=1e-5)
    assert torch.equal(_latents(pipe), plain)
    assert Foreign.calls == [(True, "op")]


@pytest.mark.parametrize("name", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
@pytest.mark.parametrize("pages_come_and_go", [True, False])
def test_offloading_without_accelerator_draws_the_same_picture(
    name: str,
    pages_come_and_go: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    if not pages_come_and_go:
        monkeypatch.setattr(pages, "works", lambda: False)
    elif not pages.works():
        pytest.skip("this system keeps its pages to itself")
    pipe = tiny_pipeline()
    plain = _latents(pipe)
    caplog.set_level(logging.WARNING)
    getattr(pipe, name)()
    said = [record.message for record in caplog.records]
    assert [f"`{name}` changes nothing" in text for text in said] == [True] * (
        1 - pages_come_and_go
    )
    assert bool(pages.off_files(pipe.unet.parameters())) != pages_come_and_go
    assert torch.allclose(_latents(pipe), plain, rtol=0, atol=1e-4)
    pipe.maybe_free_model_hooks()
    pipe.remove_all_hooks()


def test_both_spellings_of_the_precision_together_are_an_error() -> None:
    with pytest.raises(ValueError, match="`torch_dtype` and `dtype` mean the same"):
        placement.one_dtype(torch.float32, torch.float32)
