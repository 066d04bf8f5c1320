"""What a key says, and which layer it means, in the spelling of every trainer."""

from __future__ import annotations

import pytest
import torch

from sfumato.adapters.keys import LEAVES, split_key
from sfumato.adapters.names import NameTable, name_table
from sfumato.adapters.parse import sort_tensors
from sfumato.adapters.standard import is_kohya, standard_tables
from sfumato.adapters.state import layers_of
from tests.pipelines.tiny import tiny_unet

TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TO_OUT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
Q_PROJ = "text_model.encoder.layers.11.self_attn.q_proj"
OUT_PROJ = "text_model.encoder.layers.11.self_attn.out_proj"

ATTENTION = "down_blocks_0_attentions_0_transformer_blocks_0"
KEYS = [
    (f"unet.{TO_Q}.lora_A.weight", "unet", TO_Q, "lora_A.weight"),
    (f"unet.{TO_Q}.lora_B.weight", "unet", TO_Q, "lora_B.weight"),
    (f"unet.{TO_Q}.lora_B.bias", "unet", TO_Q, "lora_B.bias"),
    (f"unet.{TO_Q}.lora_A.default.weight", "unet", TO_Q, "lora_A.weight"),
    (f"unet.{TO_Q}.lora_A.default_0.weight", "unet", TO_Q, "lora_A.weight"),
    (f"unet.{TO_Q}.lora.down.weight", "unet", TO_Q, "lora_A.weight"),
    (f"unet.{TO_Q}.lora.up.weight", "unet", TO_Q, "lora_B.weight"),
    (f"unet.{TO_Q}.alpha", "unet", TO_Q, "alpha"),
    (f"unet.{TO_Q}.lora_magnitude_vector", "unet", TO_Q, "lora_magnitude_vector"),
    (f"unet.{TO_Q}.lora_magnitude_vector.weight", "unet", TO_Q, "lora_magnitude_vector"),
    (f"unet.{TO_Q}.lora_magnitude_vector.a.weight", "unet", TO_Q, "lora_magnitude_vector"),
    (f"unet.{TO_Q}.hada_w1_a", "unet", TO_Q, "hada_w1_a"),
    (f"unet.{TO_Q}.hada_w1_a.default", "unet", TO_Q, "hada_w1_a"),
    (f"base_model.model.{TO_Q}.lora_A.weight", "unet", TO_Q, "lora_A.weight"),
    (f"base_model.model.unet.{TO_Q}.lora_A.weight", "unet", TO_Q, "lora_A.weight"),
    (f"unet.base_model.model.{TO_Q}.lora_A.weight", "unet", TO_Q, "lora_A.weight"),
    (f"{TO_Q}.lora_A.weight", "unet", TO_Q, "lora_A.weight"),
    (TO_Q.replace("to_q", "processor.to_q_lora.down.weight"), "unet", TO_Q, "lora_A.weight"),
    (
        "unet." + TO_OUT.replace("to_out.0", "processor.to_out_lora.up.weight"),
        "unet",
        TO_OUT,
        "lora_B.weight",
    ),
    (f"unet.{TO_OUT}.lora.up.weight", "unet", TO_OUT, "lora_B.weight"),
    (f"lora_unet_{ATTENTION}_attn1_to_q.lora_down.weight", "unet", TO_Q, "lora_A.weight"),
    (f"lora_unet_{ATTENTION}_attn1_to_out_0.lora_up.weight", "unet", TO_OUT, "lora_B.weight"),
    (f"lora_unet_{ATTENTION}_attn1_to_q.dora_scale", "unet", TO_Q, "dora_scale"),
    (f"lora_unet_{ATTENTION}_attn1_to_q.lokr_w2_b", "unet", TO_Q, "lokr_w2_b"),
    (f"oft_unet_{ATTENTION}_attn1_to_q.oft_blocks", "unet", TO_Q, "oft_blocks"),
    (f"lycoris_{ATTENTION}_attn1_to_q.lora_up.weight", "unet", TO_Q, "lora_B.weight"),
    (
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
        "unet",
        TO_Q,
        "lora_A.weight",
    ),
    (
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.diff",
        "unet",
        TO_OUT,
        "diff",
    ),
    (
        "model.diffusion_model.output_blocks.5.2.conv.lora_up.weight",
        "unet",
        "up_blocks.1.upsamplers.0.conv",
        "lora_B.weight",
    ),
    ("lora_unet_conv_in.lora_mid.weight", "unet", "conv_in", "lora_mid.weight"),
    ("lora_unet_input_blocks_0_0.diff_b", "unet", "conv_in", "diff_b"),
    ("lora_unet_time_embed_2.alpha", "unet", "time_embedding.linear_2", "alpha"),
    (
        "lora_unet_middle_block_0_in_layers_2.a1.weight",
        "unet",
        "mid_block.resnets.0.conv1",
        "a1.weight",
    ),
    (
        "lora_unet_mid_block_resnets_0_conv1.bm.weight",
        "unet",
        "mid_block.resnets.0.conv1",
        "bm.weight",
    ),
    ("lora_unet_out_2.lora_down.weight", "unet", "conv_out", "lora_A.weight"),
    (
        "lora_unet_down_blocks_0_downsamplers_0_conv.on_input",
        "unet",
        "down_blocks.0.downsamplers.0.conv",
        "on_input",
    ),
    (
        "lora_unet_input_blocks_3_0_op.weight",
        "unet",
        "down_blocks.0.downsamplers.0.conv",
        "weight",
    ),
    (
        "lora_te_text_model_encoder_layers_11_self_attn_q_proj.lora_down.weight",
        "text_encoder",
        Q_PROJ,
        "lora_A.weight",
    ),
    (
        "lora_te1_text_model_encoder_layers_11_self_attn_q_proj.lora_down.weight",
        "text_encoder",
        Q_PROJ,
        "lora_A.weight",
    ),
    (
        f"text_encoder.{Q_PROJ}.lora_linear_layer.down.weight",
        "text_encoder",
        Q_PROJ,
        "lora_A.weight",
    ),
    (
        "text_encoder." + OUT_PROJ.replace("out_proj", "to_out_lora.up.weight"),
        "text_encoder",
        OUT_PROJ,
        "lora_B.weight",
    ),
    (f"text_encoder.{Q_PROJ}.lora_A.weight", "text_encoder", Q_PROJ, "lora_A.weight"),
    (
        f"text_encoder.{Q_PROJ.removeprefix('text_model.')}.lora_A.weight",
        "text_encoder",
        Q_PROJ,
        "lora_A.weight",
    ),
    (
        "lora_te_transformer_resblocks_11_mlp_c_fc.w_norm",
        "text_encoder",
        "text_model.encoder.layers.11.mlp.fc1",
        "w_norm",
    ),
]


@pytest.mark.parametrize(("key", "network", "path", "leaf"), KEYS)
def test_a_key_means_one_tensor_of_one_layer(key: str, network: str, path: str, leaf: str) -> None:
    found = split_key(key)
    assert found is not None
    assert found.leaf == leaf
    assert leaf in LEAVES
    tables = standard_tables()
    names = [network] if found.network == network else list(tables)
    assert found.network in (None, network)
    assert [tables[name].find(found.layer) for name in names if tables[name].find(found.layer)] == [
        path
    ]


@pytest.mark.parametrize("separator", [".", "_"])
def test_every_layer_of_the_original_code_is_found(separator: str) -> None:
    # As the original Stable Diffusion 1 names its modules with weights.
    blocks = []
    for row, numbers, attention in (
        ("input_blocks", range(1, 12), {1, 2, 4, 5, 7, 8}),
        ("output_blocks", range(12), set(range(3, 12))),
    ):
        for i in numbers:
            if row == "input_blocks" and i in (3, 6, 9):
                blocks.append(f"{row}.{i}.0.op")
                continue
            inner = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
            blocks += [f"{row}.{i}.0.{name}" for name in inner]
            if i in attention:
                blocks += [f"{row}.{i}.1.{name}" for name in ("norm", "proj_in", "proj_out")]
            if row == "output_blocks" and i in (2, 5, 8):
                blocks.append(f"{row}.{i}.{1 if i == 2 else 2}.conv")
    table = standard_tables()["unet"]
    found = [table.find(name.replace(".", separator)) for name in blocks]
    assert None not in found
    assert len(set(found)) == len(blocks)
    assert table.find("input_blocks.12.0.in_layers.0") is None


def test_original_names_follow_the_networks_own_blocks() -> None:
    unet = tiny_unet()  # one layer per block, two blocks
    table = name_table("unet", layers_of(unet), unet.config)
    assert table.find("input_blocks_2_0_op") == "down_blocks.0.downsamplers.0.conv"
    assert table.find("input_blocks.3.1.proj_in") == "down_blocks.1.attentions.0.proj_in"
    assert table.find("output_blocks.1.2.conv") == "up_blocks.0.upsamplers.0.conv"
    assert table.find("output_blocks.9.1.proj_in") is None


def test_keys_of_other_kinds_mean_nothing() -> None:
    for key in ("lambda_layer", "lora_unet_x.q_layer.w", "", ".", "lora_down.weight", "emb_params"):
        found = split_key(key)
        assert found is None or standard_tables()["unet"].find(found.layer) is None


def test_alphas_beside_the_tensors_find_their_layers() -> None:
    table = NameTable(frozenset({"a.proj_in", "a.attn1.to_q"}), {})
    tensors = {
        "unet.a.proj_in.lora_A.weight": torch.ones(1, 1),
        "unet.a.attn1.to_q.lora_A.weight": torch.ones(1, 1),
    }
    alphas = {
        "unet.a.proj_in.alpha": 3.0,
        "unet.a.attn1.processor.to_q_lora.down.weight.alpha": 5.0,
        "unet.b.proj_in.alpha": 1.0,
        "unet.a.proj_in.lora_down.alpha": 1.0,
    }
    found = sort_tensors(tensors, {"unet": table}, alphas)
    layers = found.networks["unet"]
    assert (float(layers["a.proj_in"]["alpha"]), float(layers["a.attn1.to_q"]["alpha"])) == (3, 5)
    assert set(found.unknown) == {"unet.b.proj_in.alpha", "unet.a.proj_in.lora_down.alpha"}


def test_every_key_that_cannot_be_placed_is_kept_with_the_reason() -> None:
    table = NameTable(frozenset({"a"}), {})
    tensors = {
        "lora_unet_a.lora_down.weight": torch.ones(1, 1),
        "unet.a.lora_A.weight": torch.ones(1, 1),
        "lora_unet_b.lora_down.weight": torch.ones(1, 1),
        "lora_te2_a.lora_down.weight": torch.ones(1, 1),
        "lora_te_a.lora_down.weight": torch.ones(1, 1),
        "unet.a.weight": torch.ones(1, 1),
        "something": torch.ones(1, 1),
        "bundle_emb.<cat>.string_to_param.*": torch.ones(2, 3),
    }
    found = sort_tensors(tensors, {"unet": table})
    assert list(found.networks) == ["unet"]
    assert found.unknown == {
        "unet.a.lora_A.weight": "the same tensor of the same layer came under another name",
        "lora_unet_b.lora_down.weight": "`unet` has no such layer",
        "lora_te2_a.lora_down.weight": "there is no `text_encoder_2`",
        "lora_te_a.lora_down.weight": "there is no `text_encoder`",
        "unet.a.weight": "this is no tensor of an adapter",
        "something": "this is no tensor of an adapter",
    }
    assert list(found.embeddings) == ["<cat>"]


def test_kohyas_files_are_told_by_their_keys() -> None:
    assert is_kohya(["lora_unet_a.alpha", "lora_te1_b.alpha"])
    assert not is_kohya(["lora_unet_a.alpha", "unet.b.lora_A.weight"])
