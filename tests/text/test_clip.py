"""The text encoder on its own: configuration, outputs, embeddings table, training."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch

from sfumato.errors import ConfigError, InputError
from sfumato.text.clip import CLIPTextConfig, CLIPTextModel

TINY: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "eos_token_id": 49,
}


@pytest.fixture
def model() -> CLIPTextModel:
    torch.manual_seed(0)
    return CLIPTextModel(TINY).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(1))


def test_the_output_reads_by_attribute_key_and_position(
    model: CLIPTextModel, ids: torch.Tensor
) -> None:
    out = model(ids, output_hidden_states=True)
    assert out[0] is out.last_hidden_state is out["last_hidden_state"]
    assert out[1] is out.pooler_output
    assert out[-1] is out.hidden_states
    assert len(out.hidden_states) == 3
    as_tuple = model(ids, output_hidden_states=True, return_dict=False)
    assert type(as_tuple) is tuple
    assert torch.equal(as_tuple[0], out[0])


def test_later_tokens_do_not_change_earlier_states(model: CLIPTextModel, ids: torch.Tensor) -> None:
    changed = ids.clone()
    changed[:, 8:] = (changed[:, 8:] + 7) % 50
    before, after = model(ids)[0], model(changed)[0]
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def test_a_prompt_of_the_old_vocabulary_encodes_the_same_after_resizing(
    model: CLIPTextModel, ids: torch.Tensor
) -> None:
    before = model(ids)[0]
    rows = model.get_input_embeddings().weight.detach().clone()
    table = model.resize_token_embeddings(60)
    assert table is model.get_input_embeddings()
    assert model.config.vocab_size == table.num_embeddings == 60
    assert torch.equal(table.weight[:50], rows)
    assert torch.allclose(table.weight[50:], rows.mean(dim=0), atol=1e-7)
    assert table.weight.requires_grad
    assert torch.equal(model(ids)[0], before)
    assert model.resize_token_embeddings(20).weight.shape == (20, 16)
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    with pytest.raises(InputError, match="at least 1"):
        model.resize_token_embeddings(0)


def test_resizing_keeps_a_frozen_half_precision_table_so(model: CLIPTextModel) -> None:
    model.requires_grad_(False).to(torch.bfloat16)
    table = model.resize_token_embeddings(53)
    assert table.weight.dtype == torch.bfloat16
    assert not table.weight.requires_grad


def test_the_position_buffer_of_old_checkpoints_is_no_obstacle(model: CLIPTextModel) -> None:
    key = "text_model.embeddings.position_ids"
    weights = {**model.state_dict(), key: torch.zeros(1, 12)}
    fresh = CLIPTextModel(TINY)
    fresh.load_state_dict(weights, strict=True)
    assert torch.equal(fresh.state_dict()["text_model.final_layer_norm.weight"], torch.ones(16))
    assert key in weights, "the caller's dictionary is left alone"
    assert key not in fresh.state_dict()


def test_gradient_checkpointing_gives_the_same_gradients(ids: torch.Tensor) -> None:
    torch.manual_seed(0)
    plain = CLIPTextModel(TINY).train()
    thrifty = copy.deepcopy(plain)
    thrifty.enable_gradient_checkpointing()
    assert thrifty.is_gradient_checkpointing
    for network in (plain, thrifty):
        network(ids).pooler_output.square().sum().backward()
    for a, b in zip(plain.parameters(), thrifty.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)


def test_dropout_acts_in_training_only(ids: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = CLIPTextModel(TINY, attention_dropout=0.5)
    assert not torch.equal(model.train()(ids)[0], model(ids)[0])
    assert torch.equal(model.eval()(ids)[0], model(ids)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_float_type_runs_with_and_without_a_mask(
    model: CLIPTextModel, ids: torch.Tensor, dtype: torch.dtype
) -> None:
    expected = model(ids)[0]
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    model.to(dtype)
    out = model(ids)[0]
    assert out.dtype == model.dtype == dtype
    assert torch.allclose(out.float(), expected, atol=0.1)
    assert torch.isfinite(model(ids, attention_mask=mask)[0]).all()


def test_shapes_are_known_on_the_meta_device(ids: torch.Tensor) -> None:
    with torch.device("meta"):
        model = CLIPTextModel(TINY)
    out = model(ids.to("meta"), attention_mask=torch.ones(3, 12, device="meta"))
    assert out.last_hidden_state.shape == (3, 12, 16)
    assert out.pooler_output.shape == (3, 16)
    assert model.device.type == "meta"


def test_the_model_survives_pickling(model: CLIPTextModel, ids: torch.Tensor) -> None:
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin(ids)[0], model(ids)[0])
    twin.load_state_dict({**model.state_dict(), "text_model.embeddings.position_ids": ids})


def test_more_tokens_than_positions_are_refused(model: CLIPTextModel) -> None:
    with pytest.raises(InputError, match="at most 12"):
        model(torch.zeros(1, 13, dtype=torch.long))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", 15),  # not a multiple of the heads
        ("hidden_size", "16"),
        ("hidden_size", 2**40),
        ("num_attention_heads", 0),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 10**6),
        ("vocab_size", True),
        ("vocab_size", 10**12),
        ("max_position_embeddings", 77.0),
        ("hidden_act", "gelu_newest"),
        ("hidden_act", ["gelu"]),
        ("layer_norm_eps", -1e-5),
        ("layer_norm_eps", math.inf),
        ("layer_norm_eps", math.nan),
        ("layer_norm_eps", "1e-5"),
        ("attention_dropout", 1.5),
        ("eos_token_id", None),
        ("pad_token_id", "1"),
        ("use_attention_mask", 2),
    ],
)
def test_a_field_out_of_range_is_named_before_anything_is_allocated(
    field: str, value: object
) -> None:
    with pytest.raises(ConfigError, match=field):
        CLIPTextModel({**TINY, field: value})


def test_a_network_of_a_size_that_nobody_trained_is_refused() -> None:
    with pytest.raises(ConfigError, match="parameters"):
        CLIPTextModel(vocab_size=10**7, hidden_size=16_384)


def test_a_misspelt_option_is_reported() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'hidden_size'"):
        CLIPTextModel(hiden_size=32)


def test_the_configuration_of_a_checkpoint_reads_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    published = {
        **TINY,
        "_name_or_path": "openai/clip-vit-large-patch14",
        "architectures": ["CLIPTextModel"],
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "model_type": "clip_text_model",
        "pad_token_id": 1,
        "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0",
    }
    config = CLIPTextConfig.from_dict(published)
    assert config.eos_token_id == 2
    assert not caplog.records
    again = CLIPTextConfig.from_dict(config.to_dict())
    assert again == config
    assert not caplog.records


def test_the_text_half_of_a_whole_clip_configuration_is_taken() -> None:
    whole = {"model_type": "clip", "projection_dim": 512, "text_config": TINY, "vision_config": {}}
    assert CLIPTextConfig.from_dict(whole).hidden_size == 16
