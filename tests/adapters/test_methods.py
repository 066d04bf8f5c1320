"""diffusers' names for it all, on pipelines and networks."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.adapters.state import adapters_of, using
from sfumato.checkpoints.tensors import save_safetensors
from sfumato.errors import AdapterError, InputError, UnknownKeywordError
from tests.adapters.files_like import kohya_file, peft_file, same_weights, weights_of
from tests.adapters.test_network import distance, out
from tests.pipelines.tiny import seeded, tiny_pipeline, tiny_unet


@pytest.fixture
def pipe() -> Any:
    return tiny_pipeline()


def networks(pipe: Any) -> dict[str, Any]:
    return {"unet": pipe.unet, "text_encoder": pipe.text_encoder}


def draw(pipe: Any, **kwargs: Any) -> Tensor:
    arguments = {"num_inference_steps": 2, "generator": seeded(1), "output_type": "latent"}
    return pipe("a cat", **{**arguments, **kwargs}).images


def test_a_day_in_the_life_of_two_loras(pipe: Any, tmp_path: Path) -> None:
    before = {name: weights_of(network) for name, network in networks(pipe).items()}
    plain = draw(pipe)
    save_safetensors(kohya_file(networks(pipe), seed=1), tmp_path / "style.safetensors")
    pipe.load_lora_weights(tmp_path, weight_name="style.safetensors", adapter_name="style")
    style = draw(pipe)
    pipe.load_lora_weights(peft_file({"unet": pipe.unet}, seed=2), adapter_name="face")
    assert pipe.get_list_adapters() == {"unet": ["style", "face"], "text_encoder": ["style"]}
    assert pipe.get_active_adapters() == ["face"]
    pipe.set_adapters(["style", "face"], [1.0, 0.0])
    assert torch.equal(draw(pipe), style)
    pipe.set_adapters("style", 0.5)
    half = draw(pipe)
    pipe.set_adapters("style")
    assert distance(draw(pipe, cross_attention_kwargs={"scale": 0.5}), half) < 1e-5
    assert torch.equal(draw(pipe, cross_attention_kwargs={"scale": 0.0}), plain)
    pipe.disable_lora()
    assert torch.equal(draw(pipe), plain)
    pipe.enable_lora()
    pipe.fuse_lora(lora_scale=0.5)
    assert (pipe.fused_loras, pipe.num_fused_loras) == ({"style"}, 1)
    assert distance(draw(pipe), half) < 1e-4
    pipe.unfuse_lora()
    assert pipe.num_fused_loras == 0
    assert torch.equal(draw(pipe), style)
    pipe.delete_adapters("style")
    assert pipe.get_list_adapters() == {"unet": ["face"]}
    pipe.unload_lora_weights()
    assert pipe.get_list_adapters() == {}
    assert pipe.get_active_adapters() == []
    assert torch.equal(draw(pipe), plain)
    assert all(same_weights(network, before[name]) for name, network in networks(pipe).items())
    assert pipe.lora_scale == 1.0


def test_components_and_blocks_have_weights_of_their_own(
    pipe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pipe.load_lora_weights(kohya_file(networks(pipe)), adapter_name="a")
    pipe.load_lora_weights(peft_file({"unet": pipe.unet}), adapter_name="b")
    pipe.set_adapters(["a"], [{"text_encoder": 0.5, "unet": {"down": 0.0, "mid": 0.5}}])
    mix = pipe.unet._adapters.mix
    assert not mix.terms("down_blocks.1.attentions.0.proj_in")
    assert mix.terms("mid_block.attentions.0.proj_in")[0][1] == 0.5
    assert pipe.text_encoder._adapters.mix.layers
    caplog.clear()
    pipe.set_adapters(["b", "a"], [{"text_encoder": 0.5, "vae": 1.0}, 1.0])
    assert "'b' for 'vae' are ignored" in caplog.text
    assert "'b' for 'text_encoder' is ignored" in caplog.text


def test_wrong_weights_change_nothing(pipe: Any) -> None:
    pipe.load_lora_weights(kohya_file(networks(pipe)), adapter_name="a")
    expected = draw(pipe)
    for names, weights, message in (
        ("b", None, "not in the list of present adapters"),
        (["a"], [1.0, 2.0], "Length of adapter names"),
        ("a", float("nan"), "finite"),
        ("a", {"unet": 0.5, "text_encoder": float("inf")}, "finite"),
        ("a", {"unet": {"sideways": 1}}, "sideways"),
    ):
        with pytest.raises(InputError, match=message):
            pipe.set_adapters(names, weights)
    assert torch.equal(draw(pipe), expected)


def test_what_lora_state_dict_gives_can_be_loaded_into_one_network(
    pipe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    file = kohya_file(networks(pipe))
    pipe.load_lora_weights(file)
    expected = draw(pipe)
    pipe.unload_lora_weights()
    caplog.set_level(logging.WARNING)
    tensors, alphas = type(pipe).lora_state_dict(file, unet_config=pipe.unet.config)
    assert all(key.startswith(("unet.", "text_encoder.")) for key in tensors)
    pipe.load_lora_into_unet(tensors, alphas, pipe.unet, adapter_name="a", _pipeline=pipe)
    pipe.load_lora_into_text_encoder(tensors, alphas, pipe.text_encoder, adapter_name="a")
    assert not caplog.records
    assert distance(draw(pipe), expected) < 1e-6
    text_only = {k: v for k, v in tensors.items() if k.startswith("text_encoder.")}
    pipe.load_lora_into_unet(text_only, None, pipe.unet)
    assert "no adapters for the unet" in caplog.text
    as_is = type(pipe).lora_state_dict(tensors, return_lora_metadata=True)
    assert as_is == (tensors, None, None)


def test_a_text_encoder_may_have_another_prefix_and_a_scale(pipe: Any) -> None:
    tensors = peft_file({"text_encoder": pipe.text_encoder})
    pipe.load_lora_into_text_encoder(tensors, None, pipe.text_encoder, lora_scale=0.5)
    expected = draw(pipe)
    pipe.unload_lora_weights()
    renamed = {k.replace("text_encoder.", "te."): v for k, v in tensors.items()}
    pipe.load_lora_into_text_encoder(renamed, None, pipe.text_encoder, "te", lora_scale=0.5)
    assert torch.equal(draw(pipe), expected)


def test_a_network_takes_adapters_by_itself(tmp_path: Path) -> None:
    unet = tiny_unet()
    file = peft_file({"unet": unet}, seed=3)
    unet.load_lora_adapter(file, prefix="unet", adapter_name="a")
    expected = out(unet)
    bare = {key.removeprefix("unet."): tensor for key, tensor in file.items()}
    unet.load_lora_adapter(bare, adapter_name="b")
    assert torch.equal(out(unet), expected)
    renamed = {f"transformer.{key}": tensor for key, tensor in bare.items()}
    unet.load_lora_adapter(renamed, prefix="transformer", adapter_name="c")
    assert torch.equal(out(unet), expected)
    assert unet.active_adapters() == ["c"]
    unet.set_adapters(["a", "b"], [0.5, 0.5])
    assert distance(out(unet), expected) < 1e-5
    unet.set_adapter("a")
    assert distance(out(unet), expected) > 1e-4  # at the strength that it has
    unet.set_adapters("a")
    unet.fuse_lora(lora_scale=1.0)
    assert distance(out(unet), expected) < 1e-5
    unet.unfuse_lora()
    unet.disable_adapters()
    bare_out = out(unet)
    unet.enable_adapters()
    assert torch.equal(out(unet), expected)
    unet.save_lora_adapter(tmp_path, "a")
    unet.unload_lora()
    assert torch.equal(out(unet), bare_out)
    unet.load_lora_adapter(tmp_path)
    assert torch.equal(out(unet), expected)
    with pytest.raises(InputError, match="could not be found"):
        unet.set_adapter("z")
    with pytest.raises(AdapterError, match="empty"):
        unet.load_lora_adapter(file, prefix="transformer")


def test_hotswapping_through_the_pipeline(pipe: Any) -> None:
    pipe.enable_lora_hotswap(target_rank=16)
    pipe.load_lora_weights(peft_file({"unet": pipe.unet}, seed=1, rank=2), adapter_name="a")
    pipe.set_adapters("a", 0.5)
    pipe.load_lora_weights(
        peft_file({"unet": pipe.unet}, seed=2, rank=8), adapter_name="a", hotswap=True
    )
    swapped = draw(pipe)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(peft_file({"unet": pipe.unet}, seed=2, rank=8), adapter_name="b")
    pipe.set_adapters("b", 0.5)
    assert distance(draw(pipe), swapped) < 1e-5
    with pytest.raises(InputError, match="before loading the first"):
        pipe.enable_lora_hotswap()
    pipe.unet.enable_lora_hotswap(8, check_compiled="warn")


def test_saving_and_loading_both_networks(pipe: Any, tmp_path: Path) -> None:
    pipe.load_lora_weights(kohya_file(networks(pipe)), adapter_name="a")
    expected = draw(pipe)
    layers = {name: network.lora_state_dict("a") for name, network in networks(pipe).items()}
    for format in ("diffusers", "kohya"):
        type(pipe).save_lora_weights(
            tmp_path / format,
            unet_lora_layers=layers["unet"][0],
            text_encoder_lora_layers=layers["text_encoder"][0],
            unet_lora_adapter_metadata=layers["unet"][1],
            text_encoder_lora_adapter_metadata=layers["text_encoder"][1],
            format=format,
        )
        pipe.unload_lora_weights()
        pipe.load_lora_weights(tmp_path / format)
        assert distance(draw(pipe), expected) < 1e-6
    type(pipe).save_lora_weights(tmp_path / "no", layers["unet"][0], is_main_process=False)
    assert not (tmp_path / "no").exists()


def test_components_to_fuse_are_checked(pipe: Any) -> None:
    pipe.load_lora_weights(kohya_file(networks(pipe)))
    for components, message in (([], "empty list"), (["vae"], "vae is not found in")):
        with pytest.raises(InputError, match=message):
            pipe.fuse_lora(components=components)
        with pytest.raises(InputError, match=message):
            pipe.unfuse_lora(components=components)
    with pytest.raises(InputError, match=r"\['zzz'\] not in the list"):
        pipe.fuse_lora(adapter_names=["zzz"])
    pipe.fuse_lora(components=["text_encoder"], safe_fusing=True, adapter_names=["default_0"])
    assert not pipe.unet._adapters.fused
    assert pipe.text_encoder._adapters.fused
    with pytest.warns(FutureWarning, match="fuse_unet"):
        pipe.fuse_lora(fuse_unet=True)
    with pytest.warns(FutureWarning, match="unfuse_text_encoder"):
        pipe.unfuse_lora(unfuse_text_encoder=True)
    with pytest.raises(UnknownKeywordError, match="lora_scal"):
        pipe.fuse_lora(lora_scal=1.0)


def test_a_fusing_that_fails_in_one_network_undoes_the_other(pipe: Any) -> None:
    before = weights_of(pipe.unet)
    pipe.load_lora_weights(kohya_file(networks(pipe)), adapter_name="a")
    layers = adapters_of(pipe.text_encoder)["a"].layers
    next(iter(layers.values())).down.fill_(torch.inf)  # type: ignore[attr-defined]
    with pytest.raises(AdapterError, match="cannot be fused"):
        pipe.fuse_lora()
    assert same_weights(pipe.unet, before)
    assert not pipe.fused_loras


def test_pipelines_without_a_text_encoder_take_adapters_for_the_unet(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pipe = tiny_pipeline()
    file = kohya_file(networks(pipe))
    pipe.text_encoder = None
    pipe.load_lora_weights(file)
    assert pipe.get_list_adapters() == {"unet": ["default_0"]}
    assert "there is no `text_encoder`" in caplog.text
    pipe.set_lora_device("default_0", "cpu")


def test_adapters_switched_by_another_thread_wait_for_the_next_call(pipe: Any) -> None:
    pipe.load_lora_weights(kohya_file(networks(pipe), seed=1), adapter_name="a")
    expected = draw(pipe)

    def switch(*_: Any) -> dict[str, Any]:
        thread = threading.Thread(target=pipe.set_adapters, args=("a", 0.1))
        thread.start()
        thread.join()
        return {}

    assert torch.equal(draw(pipe, callback_on_step_end=switch), expected)
    assert distance(draw(pipe), expected) > 1e-4


def test_a_callback_may_change_the_strength_from_step_to_step(pipe: Any) -> None:
    pipe.load_lora_weights(kohya_file(networks(pipe), seed=1), adapter_name="a")
    expected = draw(pipe)

    def weaken(*_: Any) -> dict[str, Any]:
        pipe.set_adapters("a", 0.1)
        return {}

    assert distance(draw(pipe, callback_on_step_end=weaken), expected) > 1e-4


def test_every_picture_of_a_batch_may_have_its_own_adapters(pipe: Any) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        pipe.load_lora_weights(kohya_file(networks(pipe), seed=seed), adapter_name=name)
    rows: list[dict[str, Any]] = [{"a": 1.0}, {"a": -0.5, "b": 1.0}, {}]
    prompts = ["a cat", "a dog", "an apple"]
    arguments: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    alone = []
    for n, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        with using(pipe.unet, row), using(pipe.text_encoder, row):
            alone.append(pipe(prompt, generator=seeded(n), **arguments).images)
    with using(pipe.unet, rows), using(pipe.text_encoder, rows):
        together = pipe(prompts, generator=seeded(0, 1, 2), **arguments).images
    assert distance(together, torch.cat(alone)) < 1e-4
    assert distance(alone[0], pipe("a cat", generator=seeded(0), **arguments).images) > 1e-3


def test_pipelines_made_of_the_same_parts_share_the_adapters(pipe: Any) -> None:
    pipe.load_lora_weights(kohya_file(networks(pipe)), adapter_name="a")
    twin = type(pipe).from_pipe(pipe)
    twin.set_progress_bar_config(disable=True)
    assert twin.get_list_adapters() == pipe.get_list_adapters()
    assert torch.equal(draw(twin), draw(pipe))
