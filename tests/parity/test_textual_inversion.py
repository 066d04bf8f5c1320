"""Textual inversion against diffusers, with our objects and with transformers'."""

from __future__ import annotations

import random
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sfumato.text.tokenizer import CLIPTokenizer
from tests.parity.oracle_pipeline import oracle_network, oracle_of
from tests.pipelines.tiny import WIDTH, tiny_pipeline, tiny_text_encoder, tokenizer, word


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer().save_pretrained(path)
    return path


def embedding(rng: random.Random, index: int) -> dict[str, torch.Tensor]:
    shape = (WIDTH,) if rng.random() < 0.3 else (rng.randint(1, 4), WIDTH)
    generator = torch.Generator().manual_seed(index)
    return {f"<word-{index}>": torch.randn(shape, generator=generator)}


def slow(folder: Path) -> Any:
    return transformers.CLIPTokenizer.from_pretrained(folder)


def test_prompts_embed_as_in_diffusers(folder: Path) -> None:
    rng = random.Random(0)
    ours = tiny_pipeline(tokenizer=CLIPTokenizer(), text_encoder=tiny_text_encoder())
    oracle = oracle_of(ours)
    oracle.tokenizer = slow(folder)
    files = [embedding(rng, index) for index in range(4)]
    names = [None, *("<mine>" if index == 1 else None for index in range(1, 4))]
    for pipe in (ours, oracle):
        for file, name in zip(files, names, strict=True):
            pipe.load_textual_inversion(file, token=name)
    assert ours.tokenizer.get_vocab() == oracle.tokenizer.get_vocab()
    words = ["<word-0>", "<mine>", "<word-2>", "<word-3>"]
    for _ in range(3):
        prompt = f"{word(rng)} {rng.choice(words)} {word(rng)} {rng.choice(words)}"
        converted = [p.maybe_convert_prompt(prompt, p.tokenizer) for p in (ours, oracle)]
        assert converted[0] == converted[1]
        found, expected = (p.encode_prompt(prompt, "cpu", 1, False)[0] for p in (ours, oracle))
        assert torch.allclose(found, expected, atol=1e-5)


def test_unloading_one_leaves_what_diffusers_leaves(folder: Path) -> None:
    ours = tiny_pipeline(tokenizer=slow(folder), text_encoder=oracle_network(tiny_text_encoder()))
    oracle = oracle_of(tiny_pipeline(text_encoder=tiny_text_encoder()))
    oracle.tokenizer = slow(folder)
    for pipe in (ours, oracle):
        for index in range(3):
            pipe.load_textual_inversion({f"<{index}>": torch.full((1, WIDTH), float(index))})
        pipe.unload_textual_inversion("<0>")
    assert ours.tokenizer.get_added_vocab() == oracle.tokenizer.get_added_vocab()
    tables = [p.text_encoder.get_input_embeddings().weight for p in (ours, oracle)]
    assert torch.equal(*tables)


@pytest.mark.parametrize("kind", ["CLIPTokenizer", "CLIPTokenizerFast"])
def test_transformers_objects_are_restored(kind: str, folder: Path) -> None:
    foreign = getattr(transformers, kind).from_pretrained(folder)
    encoder = oracle_network(tiny_text_encoder())
    pipe = tiny_pipeline(tokenizer=foreign, text_encoder=encoder)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    plain = pipe.encode_prompt("a <cat>", "cpu", 1, False)[0]
    pipe.load_textual_inversion({"<cat>": torch.ones(3, WIDTH)})
    assert encoder.config.vocab_size == 49411
    assert not torch.equal(pipe.encode_prompt("a <cat>", "cpu", 1, False)[0], plain)
    pipe.unload_textual_inversion()
    assert len(foreign) == 49408
    assert torch.equal(pipe.encode_prompt("a <cat>", "cpu", 1, False)[0], plain)
    assert all(torch.equal(before[n], t) for n, t in encoder.state_dict().items())


def test_diffusers_reads_the_pickles_of_a1111_the_same_way(tmp_path: Path) -> None:
    from sfumato.text.embedding_files import read_embedding

    value = torch.randn(2, WIDTH)
    torch.save({"string_to_param": {"*": value}, "name": "n", "step": 1}, tmp_path / "a.pt")
    loader = import_module("diffusers.loaders.textual_inversion")
    (content,) = loader.load_textual_inversion_state_dicts([str(tmp_path / "a.pt")])
    read = read_embedding(tmp_path / "a.pt")
    assert read.token == content["name"]
    assert torch.equal(read.vectors, content["string_to_param"]["*"])
