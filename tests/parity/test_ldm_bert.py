"""The paper's text encoder and BERT's tokenizer against diffusers and transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from diffusers.pipelines.latent_diffusion import pipeline_latent_diffusion as oracles

from sfumato.text.bert_tokenizer import BertTokenizer
from sfumato.text.ldm_bert import LDMBertModel
from tests.parity.networks import relative_error, share_weights

WORDS = """[PAD] [UNK] [CLS] [SEP] [MASK] a b c d e the cat ##s dog paint ##ing ##er of on , . ! ? -
' un ##aff ##able cafe 猫 車 \u00df ##\u00df 1 ##2 ##3 \u2019 o ##ne""".split()  # noqa: SIM905


def random_bert(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    return {
        "vocab_size": rng.randint(len(WORDS), 90),
        "max_position_embeddings": rng.randint(6, 80),
        "encoder_layers": rng.randint(0, 4),
        "encoder_ffn_dim": rng.randint(4, 70),
        "encoder_attention_heads": rng.randint(1, 5),
        "head_dim": rng.choice([2, 5, 8, 16]),
        "d_model": rng.randint(6, 50),
        "activation_function": rng.choice(["gelu", "gelu", "relu", "silu", "gelu_new"]),
        "dropout": rng.choice([0.0, 0.1]),
    }


def pair(seed: int) -> tuple[Any, LDMBertModel]:
    torch.manual_seed(seed)
    config = random_bert(seed)
    oracle = oracles.LDMBertModel(oracles.LDMBertConfig(**config))
    ours = LDMBertModel.from_config(oracle.config.to_dict())
    share_weights(oracle, ours, seed)
    return oracle, ours


@pytest.mark.parametrize("seed", range(20))
@torch.no_grad()
def test_all_outputs_equal_those_of_diffusers(seed: int) -> None:
    oracle, ours = pair(seed)
    generator = torch.Generator().manual_seed(seed)
    length = int(torch.randint(1, ours.config.max_position_embeddings + 1, (), generator=generator))
    ids = torch.randint(0, ours.config.vocab_size, (2, length), generator=generator)
    mask = (torch.rand(2, length, generator=generator) > 0.3).long() if seed % 2 else None
    positions = torch.arange(length).flip(0)[None] if seed % 3 == 0 else None
    flags = {"output_hidden_states": True, "output_attentions": True}
    if mask is not None:
        mask[:, 0] = 1
    expected = oracle(ids, attention_mask=mask, position_ids=positions, **flags)
    actual = ours(ids, attention_mask=mask, position_ids=positions, **flags)
    assert list(actual.keys()) == list(expected.keys())
    assert relative_error(actual[0], expected[0]) < 1e-5
    for name in ("hidden_states", "attentions"):
        assert len(actual[name]) == len(expected[name])
        for one, other in zip(actual[name], expected[name], strict=True):
            assert relative_error(one, other) < 1e-5
    embeds = oracle.model.embed_tokens(ids)
    plain = ours(inputs_embeds=embeds, attention_mask=mask, position_ids=positions)
    assert relative_error(plain.last_hidden_state, expected[0]) < 1e-5


@torch.no_grad()
def test_folders_go_both_ways(tmp_path: Path) -> None:
    oracle, ours = pair(3)
    ids = torch.randint(0, 30, (1, 6), generator=torch.Generator().manual_seed(0))
    oracle.save_pretrained(tmp_path / "theirs")
    assert torch.equal(LDMBertModel.from_pretrained(tmp_path / "theirs")(ids)[0], ours(ids)[0])
    ours.save_pretrained(tmp_path / "ours")
    loaded = oracles.LDMBertModel.from_pretrained(tmp_path / "ours")
    assert torch.equal(loaded(ids)[0], oracle(ids)[0])


TEXTS = [
    "The cats, painting of UNAFFABLE dog!",
    "Café 猫車 the[MASK]cat xyz",
    "",
    "a" * 300,
    "the cat on a dog. " * 40,
    "  tab\tand\nline \u00df stra\u00dfe 123 don\u2019t one-two [SEP] \x00 \ufffd",
    "\u0130stanbul \u01c5 \ud7a3 \U0001f600 cat",
]


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(tmp_path: Path, text: str, lower: bool) -> None:
    BertTokenizer(WORDS, model_max_length=77, do_lower_case=lower).save_pretrained(tmp_path)
    oracle = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    ours = BertTokenizer.from_pretrained(tmp_path)
    assert ours.do_lower_case is lower and ours.model_max_length == oracle.model_max_length == 77
    for options in (
        {"padding": "max_length", "max_length": 20, "truncation": True, "return_tensors": "pt"},
        {"padding": "max_length", "truncation": True, "return_tensors": "pt"},
    ):
        mine, theirs = ours(text, **options), oracle(text, **options)
        assert torch.equal(mine.input_ids, theirs.input_ids)
        assert torch.equal(mine.attention_mask, theirs.attention_mask)
    assert ours(text)["input_ids"] == oracle(text)["input_ids"]


def test_a_tokenizer_in_one_file_is_read(tmp_path: Path) -> None:
    BertTokenizer(WORDS).save_pretrained(tmp_path / "listed")
    oracle = transformers.BertTokenizerFast.from_pretrained(tmp_path / "listed")
    oracle.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "vocab.txt").unlink()
    ours = BertTokenizer.from_pretrained(tmp_path / "whole")
    assert ours.get_vocab() == oracle.get_vocab()
    assert ours(TEXTS[0])["input_ids"] == oracle(TEXTS[0])["input_ids"]
