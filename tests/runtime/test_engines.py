"""Engines in the place of torch's networks: choosing one, what it computes, what it declines."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato import StableDiffusionPipeline
from sfumato.adapters.families import LowRank
from sfumato.adapters.network import Adapter, activate, add, fuse, remove
from sfumato.errors import InputError, MissingDependencyError
from sfumato.pipelines.stages import adapter_scale
from sfumato.quantization.network import quantize
from sfumato.runtime import compiled, engines
from sfumato.runtime.hindrances import arguments, hindrance
from tests.pipelines.tiny import tiny_pipeline

openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="needs the extra openvino")
LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
TEXT = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def pipe() -> StableDiffusionPipeline:
    return tiny_pipeline()


def predict(pipe: Any, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        return pipe.unet(LATENTS, 500, TEXT, return_dict=False, **more)[0]


def both(pipe: Any, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the engine and torch say of the same."""
    with_engine = predict(pipe, **more)
    engine, pipe.unet.engine = pipe.unet.engine, None
    try:
        return with_engine, predict(pipe, **more)
    finally:
        pipe.unet.engine = engine


def draw(pipe: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipe("a red apple", num_inference_steps=3, generator=generator, output_type="pt").images


def lora(network: torch.nn.Module, ending: str, rank: int = 2) -> Adapter:
    """Random factors for every layer of some name."""
    made = {}
    for path, layer in network.named_modules():
        if path.endswith(ending):
            weight: Any = layer.weight
            down = torch.randn(rank, *weight.shape[1:])
            up = torch.randn(len(weight), rank, *(1,) * (weight.ndim - 2))
            made[path] = LowRank(down=down * 0.2, up=up * 0.2, scale=0.5)
    assert made
    return Adapter(made)


def test_an_unknown_engine_or_option_is_refused() -> None:
    with pytest.raises(InputError, match=r"no engine 'openvin'; .*Did you mean 'openvino'"):
        engines.find("openvin", {})
    with pytest.raises(InputError, match="no option `thread`"):
        engines.find("openvino", {"thread": 1})
    with pytest.raises(InputError, match="'torch' has no option `dtype`"):
        engines.find("torch", {"dtype": "float32"})
    with pytest.raises(InputError, match="'compile' has no option `dtype`"):
        engines.find("compile", {"folder": "here", "kernels": False, "dtype": "float32"})


def test_an_absent_package_names_the_extra(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'sfumato\[openvino\]'"):
        StableDiffusionPipeline.from_pretrained(model, engine="openvino")


class Constant:
    """An engine that answers the UNet's calls with ones, and declines all others."""

    def call(self, what: str, args: Sequence[Any], kwargs: Any) -> Any:
        return (torch.ones_like(args[0]),) if what == "forward" else None


def test_what_an_engine_declines_is_computed_by_torch(pipe: StableDiffusionPipeline) -> None:
    decoded = pipe.vae.decode(LATENTS).sample
    pipe.unet.engine = pipe.vae.engine = Constant()
    assert torch.equal(predict(pipe), torch.ones_like(LATENTS))
    assert torch.equal(pipe.vae.decode(LATENTS).sample, decoded)
    pipe.use_engine("torch")
    assert pipe.unet.engine is None and pipe.vae.engine is None


def test_the_table_names_the_options_that_engines_have() -> None:
    for name, kind in engines.ENGINES.items():
        if kind is None or find_spec(kind.package) is None:
            assert name != "compile"
            continue
        _, *options = inspect.signature(import_module(kind.module).engine_for).parameters
        assert tuple(options) == kind.options, name


def test_an_engine_is_given_the_networks_and_options_that_are_asked_for(
    pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "has_compiler", lambda: True)
    pipe.use_engine("compile", networks=["vae"], folder=tmp_path, kernels=False)
    engine: Any = pipe.vae.engine
    assert pipe.unet.engine is None and isinstance(engine, compiled.CompiledAutoencoder)
    assert engine.files.folder == tmp_path.resolve() and not engine.use_kernels
    pipe.use_engine("compile", folder=tmp_path)
    assert isinstance(pipe.unet.engine, compiled.CompiledUNet) and pipe.vae.engine is not engine


@openvino
def test_a_picture_is_that_of_torch(model: Path) -> None:
    plain = StableDiffusionPipeline.from_pretrained(model)
    fast = StableDiffusionPipeline.from_pretrained(model, engine="openvino")
    assert plain.unet.engine is None and fast.unet.engine is not None
    assert (draw(fast) - draw(plain)).abs().max() < 1e-4


@openvino
def test_bfloat16_is_near(pipe: StableDiffusionPipeline) -> None:
    pipe.use_engine("openvino", dtype="bfloat16", threads=1)
    actual, expected = both(pipe)
    assert 1e-5 < (actual - expected).norm() / expected.norm() < 0.03


@openvino
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_16_bits_answers_in_its_type(
    pipe: StableDiffusionPipeline, dtype: torch.dtype
) -> None:
    expected = predict(pipe)
    pipe.unet.to(dtype)
    pipe.use_engine("openvino")
    with torch.no_grad():
        actual = pipe.unet(LATENTS.to(dtype), 500, TEXT.to(dtype)).sample
    assert actual.dtype == dtype
    assert (actual.float() - expected).norm() / expected.norm() < 0.03


@openvino
def test_loras_are_inputs_of_one_graph(pipe: StableDiffusionPipeline) -> None:
    pipe.use_engine("openvino")
    torch.manual_seed(0)
    add(pipe.unet, "a", lora(pipe.unet, "to_q"))
    actual, expected = both(pipe)
    assert torch.allclose(actual, expected, atol=1e-4)
    engine: Any = pipe.unet.engine
    graph = engine.graph()
    add(pipe.unet, "b", lora(pipe.unet, "to_q", rank=3), alone=False)
    activate(pipe.unet, ["a", "b"], [0.3, -1.2])
    changed, expected = both(pipe)
    assert torch.allclose(changed, expected, atol=1e-4) and not torch.allclose(changed, actual)
    assert engine.graph() is graph and len(graph.compiled._graphs) == 1
    scaled, expected = both(pipe, cross_attention_kwargs={"scale": 0.5})
    assert torch.allclose(scaled, expected, atol=1e-4) and not torch.allclose(scaled, changed)
    with adapter_scale(pipe.unet, 0.0):
        assert torch.allclose(*both(pipe), atol=1e-4)
    remove(pipe.unet)
    assert torch.allclose(*both(pipe), atol=1e-4)


@openvino
@pytest.mark.parametrize("ending", ["conv1", "proj_in", "time_emb_proj", "ff.net.2"])
def test_loras_on_all_kinds_of_layers_act(pipe: StableDiffusionPipeline, ending: str) -> None:
    pipe.use_engine("openvino")
    before = predict(pipe)
    torch.manual_seed(0)
    add(pipe.unet, "a", lora(pipe.unet, ending))
    actual, expected = both(pipe)
    assert torch.allclose(actual, expected, atol=1e-4)
    assert not torch.allclose(actual, before, atol=1e-3)


@openvino
def test_changed_weights_make_a_new_graph(pipe: StableDiffusionPipeline) -> None:
    pipe.use_engine("openvino")
    before = predict(pipe)
    add(pipe.unet, "a", lora(pipe.unet, "to_v"))
    fuse(pipe.unet)
    actual, expected = both(pipe)
    assert torch.allclose(actual, expected, atol=1e-4)
    assert not torch.allclose(actual, before, atol=1e-3)


@openvino
def test_torch_computes_what_the_graph_cannot(
    pipe: StableDiffusionPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    pipe.use_engine("openvino")
    with caplog.at_level(logging.WARNING, logger="sfumato"):
        pipe.unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
        assert torch.equal(*both(pipe))
        assert torch.equal(*both(pipe))
        pipe.unet.disable_freeu()
        assert torch.equal(*both(pipe, attention_mask=torch.ones(2, 16)))
        pipe.unet.requires_grad_(True)
        assert pipe.unet(LATENTS, 500, TEXT).sample.requires_grad
    messages = [record.message for record in caplog.records]
    assert messages == [
        "OpenVINO leaves UNet2DConditionModel to torch: FreeU is on.",
        "OpenVINO leaves UNet2DConditionModel to torch: `attention_mask` is given.",
        "OpenVINO leaves UNet2DConditionModel to torch: gradients are asked for.",
    ]
    assert not torch.equal(*both(pipe)), "the graph computes again"


@pytest.fixture
def replaced(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """A pipeline with a layer whose ``forward`` somebody replaced."""
    layer = pipe.unet.conv_in
    layer.forward = lambda x: 2 * torch.nn.Conv2d.forward(layer, x)
    return pipe


def test_what_an_engine_cannot_know_of_stands_in_its_way(replaced: StableDiffusionPipeline) -> None:
    given = {"sample": LATENTS}
    with torch.no_grad():
        assert hindrance(replaced.unet, given) == "a layer's `forward` is replaced"
        del replaced.unet.conv_in.forward
        assert hindrance(replaced.unet, given) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert hindrance(replaced.unet, given) == "autocast is on"
        told: list[str | None] = []
        torch.func.vmap(lambda x: told.append(hindrance(replaced.unet, {"sample": x})) or x)(
            LATENTS
        )
        assert told == ["a transform of torch.func is at work"]


def test_gradients_of_an_input_are_gradients(pipe: StableDiffusionPipeline) -> None:
    pipe.unet.requires_grad_(False)
    residuals = [torch.zeros(1, requires_grad=True)]
    assert hindrance(pipe.unet, {"sample": LATENTS}) is None
    given = {"sample": LATENTS, "down_block_additional_residuals": residuals}
    assert hindrance(pipe.unet, given) == "gradients are asked for"
    with torch.no_grad():
        assert hindrance(pipe.unet, given) is None


def test_arguments_without_names_are_known_by_their_place(pipe: StableDiffusionPipeline) -> None:
    added = {"text_embeds": TEXT}
    args = (LATENTS, 500, TEXT, None, None, None, None, added)
    found = arguments(pipe.unet, args, {"return_dict": False})
    assert found is not None and found["added_cond_kwargs"] is added
    assert list(found)[:3] == ["sample", "timestep", "encoder_hidden_states"]
    assert found["return_dict"] is False and "self" not in found
    assert arguments(pipe.unet, (LATENTS,), {}) is None, "torch says what is missing"
    assert arguments(pipe.unet, args, {"smaple": 1}) is None


@openvino
def test_chosen_networks_alone_have_the_engine(pipe: StableDiffusionPipeline) -> None:
    pipe.use_engine("openvino", networks=["unet"])
    assert pipe.unet.engine is not None and pipe.vae.engine is None
    with pytest.raises(InputError, match="computes unet and vae, and no 'text_encoder'"):
        pipe.use_engine("openvino", networks=["text_encoder"])


@openvino
def test_quantised_networks_are_left_to_torch(pipe: StableDiffusionPipeline) -> None:
    quantize(pipe.unet, "int8-weights")
    pipe.use_engine("openvino")
    assert torch.equal(*both(pipe))


@openvino
def test_networks_as_they_are_stored_draw_the_same(model: Path, tmp_path: Path) -> None:
    StableDiffusionPipeline.from_pretrained(model).to(torch.float16).save_pretrained(tmp_path)
    types = {"default": torch.bfloat16, "unet": "auto", "vae": "auto"}
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path, torch_dtype=types, engine="openvino")
    assert pipe.unet.dtype == pipe.vae.dtype == torch.float16
    plain = draw(StableDiffusionPipeline.from_pretrained(model))
    assert (draw(pipe).float() - plain).abs().mean() < 0.03


@openvino
def test_a_copied_network_has_no_engine(pipe: StableDiffusionPipeline) -> None:
    pipe.use_engine("openvino")
    assert copy.deepcopy(pipe.unet).engine is None
