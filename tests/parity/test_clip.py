"""The text encoder against transformers: same weights, random configurations, same numbers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

import sfumato
from sfumato.text.clip import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

ACTIVATIONS = ["quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "mish"]


def random_case(seed: int) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor | None]:
    """A configuration, ids, and on half the seeds a mask with padding on either side."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    heads = rng.choice([1, 2, 3, 4, 5])
    vocab, length = rng.randint(20, 300), rng.randint(2, 30)
    config = {
        "vocab_size": vocab,
        "hidden_size": heads * rng.choice([4, 7, 8, 16]),
        "intermediate_size": rng.randint(8, 90),
        "projection_dim": rng.randint(4, 40),
        "num_hidden_layers": rng.randint(1, 5),
        "num_attention_heads": heads,
        "max_position_embeddings": length + rng.randint(0, 5),
        "hidden_act": ACTIVATIONS[seed % len(ACTIVATIONS)] if seed % 3 else "quick_gelu",
        "layer_norm_eps": rng.choice([1e-5, 1e-6, 1e-3]),
        "attention_dropout": rng.choice([0.0, 0.3]),
        "initializer_factor": rng.choice([1.0, 3.0]),
        "eos_token_id": 2 if rng.random() < 0.4 else rng.randint(3, vocab + 20),
    }
    batch = rng.randint(1, 4)
    ids = torch.randint(0, vocab, (batch, length), generator=generator)
    if seed % 2:
        return config, ids, None
    mask = (torch.rand((batch, length), generator=generator) > 0.4).long()
    mask[0, 0] = 0  # the first token of a row sees nothing at all then
    return config, ids, mask


def randomised(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """No weight at its special initial value: biases and norms random too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((actual - expected).norm() <= 1e-5 * expected.norm())


@pytest.mark.parametrize("seed", range(60))
def test_all_outputs_equal_those_of_transformers(seed: int) -> None:
    config, ids, mask = random_case(seed)
    oracle = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**config, attn_implementation="eager")
    )
    randomised(oracle, seed)
    ours = CLIPTextModel.from_config(oracle.config.to_dict()).eval()
    ours.load_state_dict(oracle.state_dict())
    positions = torch.arange(ids.shape[1]).flip(0)[None] if seed % 5 == 0 else None
    flags = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        expected = oracle(ids, attention_mask=mask, position_ids=positions, **flags)
        actual = ours(ids, attention_mask=mask, position_ids=positions, **flags)
        plain = ours(ids, attention_mask=mask, position_ids=positions)
    assert list(actual.keys()) == list(expected.keys())
    assert close(actual.last_hidden_state, expected.last_hidden_state)
    assert close(actual.pooler_output, expected.pooler_output)
    assert len(actual.hidden_states) == len(expected.hidden_states)
    assert all(map(close, actual.hidden_states, expected.hidden_states))
    assert all(map(close, actual.attentions, expected.attentions))
    assert torch.equal(plain[0], actual[0])
    assert plain.hidden_states is None


@pytest.mark.parametrize("seed", range(8))
def test_projected_outputs_equal_those_of_transformers(seed: int) -> None:
    config, ids, mask = random_case(seed)
    oracle = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config))
    randomised(oracle, seed)
    ours = CLIPTextModelWithProjection(config).eval()
    ours.load_state_dict(oracle.state_dict())
    with torch.no_grad():
        expected = oracle(ids, attention_mask=mask, output_hidden_states=True)
        actual = ours(ids, attention_mask=mask, output_hidden_states=True)
    assert list(actual.keys()) == list(expected.keys())
    assert close(actual.text_embeds, expected.text_embeds)
    assert close(actual[1], expected[1])
    assert all(map(close, actual[-1], expected[-1]))


@pytest.mark.parametrize("seed", range(4))
def test_gradients_equal_those_of_transformers(seed: int) -> None:
    config, ids, mask = random_case(seed)
    config["attention_dropout"] = 0.0
    oracle = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    randomised(oracle, seed)
    ours = CLIPTextModel(config).train()
    ours.load_state_dict(oracle.state_dict())
    ours.enable_gradient_checkpointing()
    for model in (oracle, ours):
        model(ids, attention_mask=mask)[0].square().sum().backward()
    expected = {name: p.grad for name, p in oracle.named_parameters() if p.grad is not None}
    largest = max(gradient.norm() for gradient in expected.values())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        assert (parameter.grad - expected[name]).norm() <= 1e-5 * largest, name


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        # Stable Diffusion 1.x and 2.x
        ({"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}, 123_060_480),
        (
            {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_attention_heads": 16,
                "num_hidden_layers": 23,
                "hidden_act": "gelu",
            },
            340_387_840,
        ),
    ],
    ids=["sd1", "sd2"],
)
def test_official_sizes_have_the_names_and_shapes_of_transformers(
    config: dict[str, Any], parameters: int
) -> None:
    with torch.device("meta"):
        ours = CLIPTextModel(config)
        oracle = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in oracle.state_dict().items()}
    assert ours.num_parameters() == parameters


def test_defaults_are_those_of_transformers() -> None:
    theirs = transformers.CLIPTextConfig().to_dict()
    for name, value in CLIPTextConfig().items():
        assert theirs.get(name, False) == value, name


def test_initial_weights_are_as_spread_as_those_of_transformers() -> None:
    config = {
        "vocab_size": 500,
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
    }
    torch.manual_seed(0)
    oracle = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)).state_dict()
    for name, tensor in CLIPTextModel(config).state_dict().items():
        assert tensor.std().item() == pytest.approx(oracle[name].std().item(), rel=0.1), name
        assert tensor.mean().item() == pytest.approx(oracle[name].mean().item(), abs=5e-3), name


@pytest.mark.parametrize("kind", ["CLIPTextModel", "CLIPTextModelWithProjection"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folders_are_read_both_ways_bit_for_bit(
    tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    theirs, mine = getattr(transformers, kind), getattr(sfumato, kind)
    config, ids, _ = random_case(3)
    oracle = randomised(theirs(transformers.CLIPTextConfig(**config)), 3).to(dtype)
    oracle.save_pretrained(tmp_path / "theirs")
    ours = mine.from_pretrained(tmp_path / "theirs", torch_dtype=dtype)
    ours.save_pretrained(tmp_path / "ours")
    again = theirs.from_pretrained(tmp_path / "ours", torch_dtype=dtype)
    assert (tmp_path / "ours" / "model.safetensors").is_file()
    for model in (ours, again):
        assert model.dtype == dtype
        assert not model.training
        state = model.state_dict()
        assert state.keys() == oracle.state_dict().keys()
        for name, tensor in oracle.state_dict().items():
            assert torch.equal(state[name], tensor), name
    for name, value in config.items():
        assert getattr(again.config, name) == ours.config[name] == value
    assert again.config.model_type == "clip_text_model"
    assert again.config.architectures == [kind]
    assert torch.allclose(ours(ids)[0].float(), oracle(ids)[0].float(), atol=1e-5, rtol=0.05)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_old_checkpoints_with_a_position_buffer_load(tmp_path: Path, file: str) -> None:
    config, *_ = random_case(1)
    oracle = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    oracle.config.save_pretrained(tmp_path)
    positions = torch.arange(config["max_position_embeddings"])[None]
    weights = {**oracle.state_dict(), "text_model.embeddings.position_ids": positions}
    save = torch.save if file.endswith(".bin") else save_file
    save(weights, tmp_path / file)
    ours = sfumato.CLIPTextModel.from_pretrained(tmp_path)
    for name, tensor in oracle.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)
