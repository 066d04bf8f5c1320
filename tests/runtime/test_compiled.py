"""The engine "compile": what it computes, when it makes code anew, and what it leaves to torch.

The traced program, or one that answers zeros, runs in the place of machine code, which takes long
to make; `test_compiled_code` has that.
"""

from __future__ import annotations

import copy
import logging
import random
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.adapters.network import add, fuse, set_enabled
from sfumato.errors import InputError, MissingDependencyError, SfumatoError
from sfumato.models.unet import UNet2DConditionModel
from sfumato.pipelines.seamless import seamless
from sfumato.runtime import compiled, compiled_build
from sfumato.runtime.compiled import engine_for
from sfumato.runtime.compiled_build import has_compiler
from sfumato.runtime.compiled_code import Code
from sfumato.runtime.compiled_files import CompiledFiles
from tests.graph.cases import perturbed, residuals
from tests.parity.unet_configs import random_config, random_inputs
from tests.pipelines.tiny import tiny_pipeline, tiny_unet, tiny_vae
from tests.runtime.compiled_cases import LATENTS, SMALL, TEXT, by_torch, error, lora, predict


class Programs:
    """What stands in for compiled code: the traced program, or one that answers zeros.

    Attributes:
        built: the parts that were built, in order.
    """

    def __init__(self, tracing: bool) -> None:
        self.tracing = tracing
        self.built: list[str] = []
        self._by_path: dict[str, Callable[..., torch.Tensor]] = {}

    def build(
        self, network: Any, what: str, inputs: Any, use_kernels: bool, folder: Path
    ) -> tuple[Path, frozenset[str]]:
        self.built.append(what)
        path = folder / "compiled.pt2"
        path.touch()
        program = lambda inputs: torch.zeros_like(inputs["sample"])  # noqa: E731
        if self.tracing:
            program = compiled_build.trace(network, what, inputs, use_kernels).module()
        self._by_path[str(path)] = program
        return path, frozenset()

    def code(self, path: Path, *_: Any) -> Callable[..., torch.Tensor]:
        program = self._by_path[str(path)]
        return lambda inputs, state: program(inputs)

    def put_in_place(self, monkeypatch: pytest.MonkeyPatch) -> Programs:
        monkeypatch.setattr(compiled, "build", self.build)
        monkeypatch.setattr(compiled, "Code", self.code)
        monkeypatch.setattr(compiled, "has_compiler", lambda: True)
        monkeypatch.setattr(CompiledFiles, "find", lambda self, key: None)
        return self


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Programs:
    return Programs(tracing=True).put_in_place(monkeypatch)


@pytest.fixture
def zeros(monkeypatch: pytest.MonkeyPatch) -> Programs:
    return Programs(tracing=False).put_in_place(monkeypatch)


@pytest.fixture
def net(zeros: Programs, tmp_path: Path) -> UNet2DConditionModel:
    """A UNet whose engine answers zeros."""
    network = tiny_unet(**SMALL)
    network.engine = engine_for(network, folder=tmp_path)
    return network


# -- what it computes --------------------------------------------------------------------------


@torch.no_grad()
def test_a_random_unet_is_traced_as_torch_computes_it(traced: Programs, tmp_path: Path) -> None:
    rng = random.Random(3)
    config = random_config(rng)
    network = perturbed(UNet2DConditionModel(**config), 3)
    given = random_inputs(rng, config)
    given |= residuals(rng, network, given)
    expected = network(**given).sample
    network.engine = engine_for(network, folder=tmp_path)
    assert error(network(**given).sample, expected) < 1e-4
    assert traced.built == ["forward"]


@pytest.mark.parametrize("kernels", [True, False])
@torch.no_grad()
def test_both_halves_of_an_autoencoder_are_traced_as_torch_computes_them(
    kernels: bool, traced: Programs, tmp_path: Path
) -> None:
    network = tiny_vae(use_post_quant_conv=kernels, layers_per_block=1 + kernels)
    pictures = torch.randn(2, 3, 16, 24)
    moments = network.encode(pictures).latent_dist.parameters
    images = network.decode(LATENTS).sample
    network.engine = engine_for(network, folder=tmp_path, kernels=kernels)
    assert error(network.encode(pictures).latent_dist.parameters, moments) < 1e-4
    assert error(network.decode(LATENTS).sample, images) < 1e-4
    assert traced.built == ["encode", "decode"]


def test_what_is_traced_calls_the_kernels_and_the_norms_bring_their_activation() -> None:
    inputs = {"z": LATENTS}
    network = tiny_vae()
    program = compiled_build.trace(network, "decode", inputs, use_kernels=True)
    targets = [str(node.target) for node in program.graph.nodes]
    used = {name.split(".")[1] for name in targets if name.startswith("sfumato.")}
    assert used == {"convolve", "linear", "attend", "group_norm"}
    assert not any("silu" in name or "aten.group_norm" in name for name in targets)
    half = {name for name in network.state_dict() if not name.startswith(("encoder", "quant"))}
    assert compiled_build.weights_read(program) == half
    program = compiled_build.trace(network, "decode", inputs, use_kernels=False)
    assert not any("sfumato" in str(node.target) for node in program.graph.nodes)


def test_in_inference_mode_and_with_pictures_it_draws_what_torch_draws(
    traced: Programs, tmp_path: Path
) -> None:
    pipe = tiny_pipeline(unet=tiny_unet(3, **SMALL))
    again = {"num_inference_steps": 2, "output_type": "pt"}
    draw = lambda: pipe("a", generator=torch.Generator().manual_seed(3), **again).images  # noqa: E731
    expected = draw()
    pipe.use_engine("compile", folder=tmp_path)
    with torch.inference_mode():
        assert (draw() - expected).abs().max() < 1e-4
    assert sorted(traced.built) == ["decode", "forward"]


# -- when code is made -------------------------------------------------------------------------


def test_code_is_made_once_whatever_the_numbers_are(
    net: UNet2DConditionModel, zeros: Programs
) -> None:
    assert not predict(net).any()
    predict(net, LATENTS.flip(0).contiguous(memory_format=torch.channels_last))
    with torch.no_grad():
        net.conv_in.weight.mul_(2)
        net.conv_in.bias = torch.nn.Parameter(torch.zeros_like(net.conv_in.bias))
    add(net, "a", lora(net))
    fuse(net)
    predict(net)
    assert zeros.built == ["forward"]


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.to(memory_format=torch.channels_last),
        lambda net: net.set_attention_slice(1),
        lambda net: net.fuse_qkv_projections(),
        lambda net: net.conv_in.train(),
        lambda net: torch.set_num_threads(torch.get_num_threads() + 1),
        lambda net: setattr(net, "config", net.config.replace(center_input_sample=True)),
    ],
    ids=["layout", "slices", "projections", "mode", "threads", "config"],
)
def test_code_is_made_anew_for_what_it_depends_on(
    change: Callable[[Any], object], net: UNet2DConditionModel, zeros: Programs
) -> None:
    predict(net)
    threads = torch.get_num_threads()
    try:
        change(net)
        predict(net)
    finally:
        torch.set_num_threads(threads)
    assert zeros.built == ["forward"] * 2
    predict(net, LATENTS.double()[:1].float())
    assert zeros.built == ["forward"] * 3, "another batch"


def test_other_types_and_processors_have_other_code(
    net: UNet2DConditionModel, zeros: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []
    monkeypatch.setattr(CompiledFiles, "find", lambda self, key: keys.append(key))
    predict(net)
    predict(net.bfloat16(), LATENTS.bfloat16())
    predict(net.float())
    assert len(zeros.built) == 2 and len(set(keys)) == 2
    compiled._of_process.cache_clear()
    monkeypatch.setattr(compiled, "machine_flags", lambda: frozenset({"sse2"}))
    net.engine = engine_for(net)
    predict(net)
    compiled._of_process.cache_clear()
    assert len(set(keys)) == 3


def test_threads_that_ask_at_once_wait_for_one_to_build(
    net: UNet2DConditionModel, zeros: Programs
) -> None:
    barrier = threading.Barrier(4)

    def ask(_: int) -> torch.Tensor:
        barrier.wait()
        return predict(net)

    with ThreadPoolExecutor(4) as pool:
        assert not any(answer.any() for answer in pool.map(ask, range(4)))
    assert zeros.built == ["forward"]


def test_other_threads_compute_with_the_network_while_it_is_traced() -> None:
    """The tracer puts tensors without numbers into a network, so it is given a twin."""
    network = tiny_unet(**SMALL)
    add(network, "a", lora(network))
    fuse(network)
    before = dict(network.named_parameters())
    twin = compiled_build._twin(network)
    assert twin is not network and twin.conv_in is not network.conv_in
    assert all(parameter is before[name] for name, parameter in twin.named_parameters())
    layer = network.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert twin.get_submodule(path).slot.original is layer.slot.original


# -- what goes wrong ---------------------------------------------------------------------------


def test_what_cannot_be_compiled_is_tried_once_and_computed_by_torch(
    net: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[str] = []

    def fail(network: Any, what: str, *_: Any) -> Path:
        tried.append(what)
        raise SfumatoError("The UNet cannot be compiled: no.", hint="Rest.")

    monkeypatch.setattr(compiled, "build", fail)
    with caplog.at_level(logging.WARNING, logger="sfumato"):
        first, second = predict(net), predict(net)
    expected = by_torch(net, lambda: predict(net))
    assert torch.equal(first, expected) and torch.equal(second, expected)
    assert tried == ["forward"]
    assert [record.message for record in caplog.records] == [
        "The compiled UNet2DConditionModel leaves a call to torch: The UNet cannot be compiled: no."
    ]


@pytest.mark.parametrize("reason", [RuntimeError("CppCompileError: g++\nlong"), ValueError()])
def test_whatever_the_compiler_raises_is_one_line(
    reason: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise reason

    monkeypatch.setattr(compiled_build, "has_compiler", lambda: True)
    monkeypatch.setattr(compiled_build, "trace", fail)
    with pytest.raises(SfumatoError, match=r"cannot be compiled: (CppComp.*|ValueError)$"):
        compiled_build.build(tiny_unet(**SMALL), "forward", {}, True, tmp_path)


def test_without_a_compiler_only_what_was_compiled_before_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not has_compiler()
    network = tiny_unet(**SMALL)
    with pytest.raises(MissingDependencyError, match=r"no no-such-compiler.*CXX"):
        engine_for(network, folder=tmp_path)
    CompiledFiles(tmp_path).keep("aa", lambda path: path.touch())
    network.engine = engine_for(network, folder=tmp_path)
    expected = by_torch(network, lambda: predict(network))
    with caplog.at_level(logging.WARNING, logger="sfumato"):
        assert torch.equal(predict(network), expected)
    assert "there is no C++ compiler" in caplog.text


def test_a_disk_that_refuses_costs_the_file_alone(
    net: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: CompiledFiles, key: str, write: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CompiledFiles, "keep", full)
    with caplog.at_level(logging.WARNING, logger="sfumato"):
        assert not predict(net).any()
    assert "is not kept for later" in caplog.text and "No space" in caplog.text


def test_a_file_that_is_no_code_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zeros: Programs
) -> None:
    foreign = tmp_path / "foreign.pt2"
    foreign.write_bytes(b"PK\x03\x04 no code")
    with pytest.raises(SfumatoError, match=r"foreign\.pt2' cannot be loaded"):
        Code(foreign, {})
    monkeypatch.setattr(CompiledFiles, "find", lambda self, key: foreign)

    def code(path: Path, *more: Any) -> Any:
        return Code(path, *more) if path == foreign else zeros.code(path)

    monkeypatch.setattr(compiled, "Code", code)
    network = tiny_unet(**SMALL)
    network.engine = engine_for(network, folder=tmp_path / "kept")
    assert not predict(network).any()
    assert not foreign.exists() and zeros.built == ["forward"]


def test_code_that_fails_is_tried_once_and_torch_computes(
    net: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[Path] = []

    def code(path: Path, *_: Any) -> Any:
        def fail(inputs: Any, state: Any) -> Any:
            tried.append(path)
            raise RuntimeError("run_func_ API call failed\nat a line")

        return fail

    monkeypatch.setattr(compiled, "Code", code)
    expected = by_torch(net, lambda: predict(net))
    with caplog.at_level(logging.WARNING, logger="sfumato"):
        assert torch.equal(predict(net), expected) and torch.equal(predict(net), expected)
    assert len(tried) == 1
    assert "failed (run_func_ API call failed)." in caplog.text


# -- what is left to torch ---------------------------------------------------------------------


def test_adapters_outside_of_the_weights_and_seamless_pictures_are_left_to_torch(
    net: UNet2DConditionModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="sfumato"):
        with seamless(True):
            assert predict(net).any()
        add(net, "a", lora(net))
        assert predict(net).any()
        fuse(net)
        assert not predict(net).any(), "they are in the weights"
        set_enabled(net, False)
        assert predict(net).any(), "the weights of before are asked for"
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "something stands in for torch's functions.",
        "adapters act that are not fused.",
    ]


def test_arguments_that_are_no_tensors_are_left_to_torch(net: UNet2DConditionModel) -> None:
    with torch.no_grad():
        assert net(LATENTS, 500, TEXT, added_cond_kwargs={"note": "three"}).sample.any()
        with pytest.raises((RuntimeError, InputError)):
            net(LATENTS, torch.arange(3), TEXT)
        with pytest.raises(TypeError, match="encoder_hidden_states"):
            net(LATENTS, 500)


def test_weights_that_are_no_plain_tensors_in_memory_are_left_to_torch(
    net: UNet2DConditionModel, zeros: Programs, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(torch.Tensor):
        pass

    plain = net.conv_in.weight
    net.conv_in.weight = torch.nn.Parameter(plain.detach().as_subclass(Odd), requires_grad=False)
    with caplog.at_level(logging.WARNING, logger="sfumato"):
        assert predict(net).any()
        net.conv_in.weight = torch.nn.Parameter(plain.to("meta"), requires_grad=False)
        predict(net)
    (record,) = caplog.records
    assert "conv_in.weight is no plain tensor in memory" in record.message
    assert zeros.built == []


def test_options_of_a_wrong_type_are_refused(zeros: Programs) -> None:
    with pytest.raises(InputError, match="`folder` has to be a path, not int"):
        engine_for(tiny_vae(), folder=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`kernels` has to be True or False, not str"):
        engine_for(tiny_vae(), kernels="no")  # type: ignore[arg-type]


def test_only_the_very_classes_are_compiled(zeros: Programs, tmp_path: Path) -> None:
    class Other(UNet2DConditionModel):
        pass

    assert engine_for(Other(tiny_unet(**SMALL).config), folder=tmp_path) is None
    assert engine_for(torch.nn.Linear(1, 1), folder=tmp_path) is None
    assert isinstance(engine_for(tiny_vae(), folder=tmp_path), compiled.CompiledAutoencoder)


def test_the_engine_keeps_no_network_in_memory_and_is_not_copied(
    zeros: Programs, tmp_path: Path
) -> None:
    network = tiny_unet(**SMALL)
    engine = network.engine = engine_for(network, folder=tmp_path)
    predict(network)
    assert copy.deepcopy(network).engine is None
    alive = weakref.ref(network)
    del network
    assert alive() is None and engine is not None
