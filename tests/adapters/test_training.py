"""New adapters to train: parameters, gradients, saving."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sfumato.adapters.files import read_adapter_file
from sfumato.adapters.loading import load
from sfumato.adapters.network import fuse, unfuse
from sfumato.errors import InputError
from tests.adapters.files_like import kohya_file, same_weights, weights_of
from tests.adapters.test_network import TEXT, X, distance, out
from tests.pipelines.tiny import tiny_text_encoder, tiny_unet


@pytest.fixture
def unet() -> Any:
    return tiny_unet()


def trainable(network: Any) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def step(unet: Any) -> None:
    """One step that makes the output smaller."""
    optimizer = torch.optim.SGD(trainable(unet).values(), lr=0.5)
    unet(X, 10, TEXT).sample.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_only_the_new_factors_are_trained(unet: Any, tmp_path: Path) -> None:
    before, plain = weights_of(unet), out(unet)
    unet.add_adapter({"r": 2, "lora_alpha": 4, "target_modules": ["to_q", "conv1"]}, "new")
    assert torch.equal(out(unet), plain)
    names = trainable(unet)
    assert all(name.endswith(("lora_A.new.weight", "lora_B.new.weight")) for name in names)
    assert "mid_block.resnets.0.conv1.lora_A.new.weight" in names
    for _ in range(2):
        step(unet)
    learnt = out(unet)
    assert distance(learnt, plain) > 1e-5
    assert learnt.square().mean() < plain.square().mean()
    unet.save_lora_adapter(tmp_path, "new")
    fuse(unet)
    assert distance(out(unet), learnt) < 1e-5
    unfuse(unet)
    unet.delete_adapters("new")
    assert same_weights(unet, before)
    load({"unet": unet}, read_adapter_file(tmp_path), "back")
    assert distance(out(unet), learnt) < 1e-6


def test_other_adapters_act_while_one_is_trained(unet: Any) -> None:
    unet.load_lora_adapter(kohya_file({"unet": unet}, "loha"), adapter_name="a")
    unet.add_adapter({}, "new")
    unet.set_adapters(["a", "new"])
    first = out(unet)
    step(unet)
    step(unet)
    assert distance(out(unet), first) > 1e-6
    assert all(".new." in name for name in trainable(unet))
    unet.unload_lora()
    assert not any("lora" in name for name in unet.state_dict())


def test_configurations_of_peft_are_understood(unet: Any) -> None:
    config = SimpleNamespace(
        r=8,
        lora_alpha=16,
        target_modules=r".*attn1\.to_[qk]",
        rank_pattern={"to_k": 2},
        alpha_pattern={"mid_block.*to_q": 4},
        use_rslora=False,
        init_lora_weights="gaussian",
    )
    unet.add_adapter(config)
    layers = unet.lora_state_dict("default")[0]
    middle = "mid_block.attentions.0.transformer_blocks.0.attn1"
    assert layers[f"{middle}.to_q.lora_A.weight"].shape == (8, 64)
    assert layers[f"{middle}.to_k.lora_A.weight"].shape == (2, 64)
    assert not any("attn2" in key or "to_v" in key for key in layers)
    adapter = unet._adapters.adapters["default"]
    assert adapter.layers[f"{middle}.to_q"].scale == 0.5
    assert adapter.layers[f"{middle}.to_k"].scale == 8
    assert 0.05 < layers[f"{middle}.to_q.lora_A.weight"].std() < 0.3  # 1 / rank


def test_a_text_encoder_is_trained_alike() -> None:
    text = tiny_text_encoder()
    text.add_adapter({"r": 2})
    assert len(trainable(text)) == 3 * 4 * 2
    text(torch.tensor([[49406, 320, 49407]]))[0].sum().backward()
    factor = trainable(text)["text_model.encoder.layers.0.self_attn.q_proj.lora_B.default.weight"]
    assert factor.grad is not None
    assert factor.grad.abs().max() > 0


def test_checkpointing_of_activations_gives_the_same_gradients(unet: Any) -> None:
    unet.add_adapter({"r": 2})
    gradients = []
    for _ in range(2):
        unet(X, 10, TEXT).sample.square().mean().backward()
        found = [p.grad.clone() for p in trainable(unet).values() if p.grad is not None]
        gradients.append(found)
        unet.zero_grad()
        unet.enable_gradient_checkpointing()
    assert gradients[0]
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        ({"r": 0}, "a", "`r`"),
        ({"r": 2, "rank_pattern": {"to_q": 0}}, "a", "rank_pattern"),
        ({"target_modules": ["nothing"]}, "a", "No layer"),
        ({"use_dora": True}, "a", "loaded, not trained"),
        ({"init_lora_weights": "pissa"}, "a", "pissa"),
        ({}, "a.b", "without dots"),
        ({}, "", "without dots"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    unet: Any, config: dict[str, Any], name: str, message: str
) -> None:
    before = weights_of(unet)
    with pytest.raises(InputError, match=message):
        unet.add_adapter(config, name)
    assert same_weights(unet, before)
    assert all(p.requires_grad for p in unet.parameters())
